# SPDX-License-Identifier: GPL-2.0-or-later
"""Why the gate says no, one type and one stable code a check. All exit with the status of `RefusedError`."""

from dmsoft.errors import RefusedError


class GateMountedError(RefusedError):
    """A file system on the device, on a partition of it or on its whole disk is mounted."""

    code = "gate-mounted"


class GateSwapError(RefusedError):
    """The kernel swaps on the device or on a part of it."""

    code = "gate-swap"


class GateHeldError(RefusedError):
    """Another device is built on it (device-mapper, md, LVM, a loop device), or somebody has it exclusively."""

    code = "gate-held"


class GateSignatureError(RefusedError):
    """Something that dmsoft did not write is on the device; the one refusal that ``--force`` overrides."""

    code = "gate-signature"


class GateMemberError(RefusedError):
    """The device, a partition of it or its whole disk is or was a member of a mirror."""

    code = "gate-member"


class GateReadOnlyError(RefusedError):
    """The device cannot be written."""

    code = "gate-readonly"


class GateIdentityError(RefusedError):
    """The device is not the member that was recorded."""

    code = "gate-identity"


class GateTooSmallError(RefusedError):
    """The device has less room than what is to be put on it."""

    code = "gate-too-small"


class GateUnknownError(RefusedError):
    """A check failed, so whether the device may be written is not known: that counts as no."""

    code = "gate-unknown"


class SameDeviceError(RefusedError):
    """Two arguments are one device, or one contains the other."""

    code = "same-device"
