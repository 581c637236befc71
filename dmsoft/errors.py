# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that can go wrong, as types: one sentence what, one what to do, a stable code and exit status.

``code`` names the error for scripts; ``exit_code`` is the process status. The docstring of an error is what
``dmsoft explain CODE`` prints, so it speaks to the user: first what it means, then what to do. The
exit codes are a contract: 0 done, 1 unexpected, 2 usage, 3 not root or the kernel lacks a target, 4 refused by the
gate, 5 not found, 6 device or I/O error, 7 on-disk metadata bad, 8 diverged, 9 a promise is missed (status only),
10 busy.
"""

from typing import ClassVar


class DmsoftError(Exception):
    """Something went wrong that dmsoft has no better name for.

    What `dmsoft status` says of a secondary still holds: nothing is promised before it is on the disk. Run the command
    again as `dmsoft --debug VERB ...`, and report what it shows.
    """

    # Base of every error that a user can see: ``message`` says what is wrong, ``hint`` what to do about it; without one
    # the user is sent to ``dmsoft explain``.
    code: ClassVar[str] = "unexpected"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class OutOfMemoryError(DmsoftError):
    """There was too little memory to go on.

    What was suspended is resumed, what was promised before still holds, and nothing new was promised. End something
    else, or raise the limit that this command runs under, and run it again: it goes on where it can.
    """

    code = "out-of-memory"
    exit_code = 1


class UsageError(DmsoftError):
    """The command line does not fit.

    Nothing was changed. The message says which word it is about, and `dmsoft VERB --help` what a verb takes.
    """

    code = "usage"
    exit_code = 2


class NotRootError(DmsoftError):
    """Only root may do this.

    dmsoft reads disks directly and talks to the kernel's device-mapper, so every verb but `explain` needs root. Run it
    with sudo.
    """

    code = "not-root"
    exit_code = 3


class KernelError(DmsoftError):
    """The running kernel cannot do what this mirror needs.

    Either it lacks a device-mapper target (every mirror needs era; write-behind mode needs raid, and writecache or
    delay if a secondary is reached through one), or its raid1 is known to lose write-behind writes (6.14 to 6.16). Boot
    another kernel, such as Debian's own, or use periodic mode. Nothing was changed.
    """

    code = "kernel-lacks-target"
    exit_code = 3


class RefusedError(DmsoftError):
    """The device may not be written, so it was not.

    Before dmsoft writes to a device it makes sure that nothing else uses it and that it is the device that is meant.
    The message says what stood against it; of all that, --force overrides only what is left on a disk by something
    else.
    """

    code = "refused"
    exit_code = 4


class NotFoundError(DmsoftError):
    """There is no such mirror, secondary or device here.

    The name may be misspelt, or the disk not plugged in. `dmsoft status` lists the mirrors and `dmsoft devices` the
    disks. A secondary that is away is no fault: it catches up when it is back.
    """

    code = "not-found"
    exit_code = 5


class DeviceError(DmsoftError):
    """A disk, a file or the kernel did not do what it was asked to.

    What `dmsoft status` says of a secondary still holds: nothing is promised before it is on the disk. Look at the
    kernel log (journalctl -k) and at the disk's cable and SMART state, then run the command again: it goes on where it
    can.
    """

    code = "device"
    exit_code = 6


class MetadataError(DmsoftError):
    """Something that dmsoft wrote on a disk does not read back as it should.

    What is doubtful is not used: a secondary that it concerns is compared block by block at its next resync. `dmsoft
    examine DEV` shows what stands on a disk.
    """

    code = "metadata-bad"
    exit_code = 7


class DivergedError(DmsoftError):
    """A secondary was written on its own since it left the mirror.

    It may have writes that the primary lacks: those of a time when the kernel went on without the primary, say.
    Nothing is copied until you choose. To keep the primary's side: save from the secondary what you need, remove it
    from the mirror and add it again. To keep the secondary's, copy its data to the mirror's device before that:
    dmsoft(8) tells how, under A SECONDARY NEWER THAN THE PRIMARY.
    """

    code = "diverged"
    exit_code = 8


class BusyError(DmsoftError):
    """Somebody else uses the mirror or its device at this moment.

    Either another dmsoft command is at work (the message names its process), or the device is mounted or something is
    built on it. Wait, or end the other one; a resync can be stopped with Ctrl-C at any time.
    """

    code = "busy"
    exit_code = 10
