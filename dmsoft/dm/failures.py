# SPDX-License-Identifier: GPL-2.0-or-later
"""What device-mapper can answer, as types: an errno becomes the error that a caller can act on."""

import errno
import os

from dmsoft.errors import BusyError, DeviceError, DmsoftError, NotFoundError, NotRootError, RefusedError


class DmIoctlError(DeviceError):
    """A device-mapper ioctl failed. ``operation`` is its name, ``device`` whom it addressed, ``errno`` the reason."""

    code = "dm-ioctl"

    def __init__(self, operation: str, device: str, number: int, *, hint: str | None = None) -> None:
        reason = os.strerror(number) if number else "no answer from device-mapper"
        super().__init__(f"device-mapper could not {operation} {device}: {reason}.", hint=hint or _HINTS.get(number))
        self.operation = operation
        self.device = device
        self.errno = number


class DmNotFoundError(NotFoundError):
    code = "dm-not-found"


class DmBusyError(BusyError):
    code = "dm-busy"


class NameTakenError(RefusedError):
    code = "name-taken"


class SuspendedError(BusyError):
    """A question that the device's targets would have to answer, put while it is suspended."""

    code = "suspended"


class EraOrderError(RefusedError):
    """An era table would be loaded, or asked, in an order that loses marks."""

    code = "era-order"


class TargetTextError(DeviceError):
    """The kernel printed a table or status line that is not understood."""

    code = "target-text"


class CookieTimeoutError(BusyError):
    code = "udev-timeout"


_HINTS = {
    errno.EINVAL: "The kernel log (dmesg) has the target's own words.",
    errno.ENOSPC: "A target is out of room; the kernel log (dmesg) says which.",
    errno.EINTR: "A signal interrupted it; the device is as it was. Try again.",
    0: "Load the kernel module dm-mod and see that /dev/mapper/control exists.",
}


def failure(operation: str, device: str, number: int) -> DmsoftError:
    """The error for ``number`` (an errno, or 0 where no ioctl was reached)."""
    match number:
        case errno.ENXIO:
            return DmNotFoundError(f"There is no device-mapper device {device}.")
        case errno.EBUSY:
            return DmBusyError(f"{device} is in use: device-mapper could not {operation} it.")
        case errno.EACCES | errno.EPERM:
            return NotRootError(f"Only root may {operation} {device}.", hint="Run this as root.")
    return DmIoctlError(operation, device, number)
