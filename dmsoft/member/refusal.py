# SPDX-License-Identifier: GPL-2.0-or-later
"""Why the gate says no, one type and one stable code a check. All exit with the status of `RefusedError`."""

from dmsoft.errors import RefusedError


class GateMountedError(RefusedError):
    """A file system on the device, on a partition of it or on its whole disk is mounted.

    dmsoft would write under it. Unmount it first if you do not need it; findmnt shows where it is mounted, also in
    other places than you look at.
    """

    code = "gate-mounted"


class GateSwapError(RefusedError):
    """The kernel swaps on the device or on a part of it.

    Turn it off with swapoff first, if that memory can be spared.
    """

    code = "gate-swap"


class GateHeldError(RefusedError):
    """Something else is built on the device or holds it.

    LVM, md, device-mapper, a loop device, or a program that opened it exclusively: lsblk shows most of them. Stop what
    holds it, if it is not needed.
    """

    code = "gate-held"


class GateSignatureError(RefusedError):
    """There is something on the device that dmsoft did not write.

    The message names it: a file system, a partition table, a volume of LVM, md or LUKS. If nothing of it is needed,
    --force erases it; no other refusal can be overridden.
    """

    code = "gate-signature"


class GateMemberError(RefusedError):
    """The device is or was a member of a mirror.

    So may be a partition of it or the disk that it is part of. --force does not help here. Take it out with `dmsoft
    remove` or `dmsoft destroy`; if that mirror is gone, zero the first MiB of the device.
    """

    code = "gate-member"


class GateReadOnlyError(RefusedError):
    """The device cannot be written.

    It is write-protected, or set to read-only: see its switch, and `blockdev --setrw`.
    """

    code = "gate-readonly"


class GateIdentityError(RefusedError):
    """The device is not the one that was recorded.

    Its size, its names under /dev/disk/by-id or its member uuid differ: another disk took its place, or it changed
    while it was looked at. `dmsoft devices` says where each member is now.
    """

    code = "gate-identity"


class GateTooSmallError(RefusedError):
    """The device has less room than what is to be put on it.

    Use a larger one.
    """

    code = "gate-too-small"


class GateUnknownError(RefusedError):
    """A check of the device failed, and a check without an answer counts as no.

    The message says what kept it from answering. Put that right and run the command again.
    """

    code = "gate-unknown"


class SameDeviceError(RefusedError):
    """Two of the devices named are one, or one contains the other.

    A mirror of a disk with itself protects nothing. Partitions of one disk, two names of one device, a device built on
    another and two paths to one drive count as the same; give each member a disk of its own.
    """

    code = "same-device"
