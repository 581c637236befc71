# SPDX-License-Identifier: GPL-2.0-or-later
"""What device-mapper can answer, as types: an errno becomes the error that a caller can act on."""

import errno
import os

from dmsoft.errors import BusyError, DeviceError, DmsoftError, NotFoundError, NotRootError, RefusedError


class DmIoctlError(DeviceError):
    """The kernel refused a device-mapper operation.

    The message has the kernel's reason. The kernel log (dmesg) often has more, in the words of the target that said no.
    Look there, then run the command again; if it stays, report it with the log.
    """

    code = "dm-ioctl"

    def __init__(self, operation: str, device: str, number: int, *, hint: str | None = None) -> None:
        """``operation`` is its name, ``device`` whom it addressed, ``number`` the errno, 0 if there is none."""
        reason = os.strerror(number) if number else "no answer from device-mapper"
        super().__init__(f"device-mapper could not {operation} {device}: {reason}.", hint=hint or _HINTS.get(number))
        self.operation = operation
        self.device = device
        self.errno = number


class DmNotFoundError(NotFoundError):
    """A device-mapper device of the mirror is gone.

    The mirror is not running, or somebody removed one of its devices by hand. `dmsoft status` tells; `dmsoft stop NAME`
    and `dmsoft start NAME` make them anew.
    """

    code = "dm-not-found"


class DmBusyError(BusyError):
    """A device-mapper device is in use, so it cannot be removed or replaced.

    Unmount what is on it and end what is built on it (lsblk shows both), then try again. After a disk was unplugged the
    kernel may need a while to let go of it.
    """

    code = "dm-busy"


class NameTakenError(RefusedError):
    """The name belongs to another mirror or device already.

    Choose another name, or destroy the mirror that has it. `dmsoft status` and `dmsetup info -c` list the names that
    are taken.
    """

    code = "name-taken"


class SuspendedError(BusyError):
    """The device is suspended, so it can answer nothing.

    Another dmsoft command holds the mirror still, which takes a moment. Try again. If it stays so, that command and its
    guard died: `dmsoft start NAME` lets I/O go on.
    """

    code = "suspended"


class EraOrderError(RefusedError):
    """The tracking device was about to be used in an order that loses marks.

    It was not done. Either somebody changed the mirror's devices by hand, or this is a fault of dmsoft. Stop the
    mirror, start it again, and report it if you touched nothing.
    """

    code = "era-order"


class TargetTextError(DeviceError):
    """The kernel printed something about a device that dmsoft does not understand.

    Probably the kernel is newer than this dmsoft. Update dmsoft, or report the message with the version of the kernel.
    """

    code = "target-text"


class CookieTimeoutError(BusyError):
    """udev did not answer in time.

    The device itself is there; its links under /dev may be missing. See whether udev is overloaded or stuck (journalctl
    -u systemd-udevd), then run the command again.
    """

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
