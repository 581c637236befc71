# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that can go wrong, as types: one sentence what, one what to do, a stable code and exit status.

``code`` names the error for scripts and for ``dmsoft explain CODE``; ``exit_code`` is the process status. The
exit codes are a contract: 0 done, 1 unexpected, 2 usage, 3 not root or the kernel lacks a target, 4 refused by the
gate, 5 not found, 6 device or I/O error, 7 on-disk metadata bad, 8 diverged, 9 a promise is missed (status only),
10 busy.
"""

from typing import ClassVar


class DmsoftError(Exception):
    """Base of every error a user can see. ``message`` says what is wrong, ``hint`` what to do about it."""

    code: ClassVar[str] = "unexpected"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DmsoftError):
    code = "usage"
    exit_code = 2


class NotRootError(DmsoftError):
    code = "not-root"
    exit_code = 3


class KernelError(DmsoftError):
    """The running kernel lacks a device-mapper target, or has one that is known to lose writes."""

    code = "kernel-lacks-target"
    exit_code = 3


class RefusedError(DmsoftError):
    """The gate before any write to a device said no; ``code`` of the subclass says which check."""

    code = "refused"
    exit_code = 4


class NotFoundError(DmsoftError):
    code = "not-found"
    exit_code = 5


class DeviceError(DmsoftError):
    """A device, a device-mapper ioctl or an I/O failed."""

    code = "device"
    exit_code = 6


class MetadataError(DmsoftError):
    """Something on a disk does not parse, does not verify or contradicts itself."""

    code = "metadata-bad"
    exit_code = 7


class DivergedError(DmsoftError):
    """Both sides were written on their own; nothing is copied until a person chooses."""

    code = "diverged"
    exit_code = 8


class BusyError(DmsoftError):
    code = "busy"
    exit_code = 10
