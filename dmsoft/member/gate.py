# SPDX-License-Identifier: GPL-2.0-or-later
"""The one gate before any write to a device.

A device passes when it is a block device that can be written, nothing but the mirror's own device-mapper devices
holds it, nothing on it or around it is mounted or in use as swap, nothing foreign is on it, and it is the device
that was recorded. A check that fails to give an answer has answered no. ``force`` overrides what is foreign on the
device and nothing else.

What was examined could have changed before the device was open, so its use is examined again afterwards: from then
on the exclusive claim keeps others away. What is on it is read through the claim, and only then is it opened for
writing. Where the mirror's own devices hold the disk there is no such claim; device-mapper's is in its place, and it
keeps all but dm devices away.
"""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Literal

from dmsoft.errors import DeviceError, DmsoftError, RefusedError
from dmsoft.inventory import signatures
from dmsoft.inventory.signatures import Signature
from dmsoft.inventory.sysfs import HOST, BlockDevice, Sysfs, block_device
from dmsoft.inventory.udev import HOST as HOST_UDEV
from dmsoft.inventory.udev import Udev
from dmsoft.inventory.usage import Usage
from dmsoft.member import header
from dmsoft.member.claim import Claim, claim, open_readonly
from dmsoft.member.disk import ALIGNMENT, FdDisk
from dmsoft.member.header import HEADER_BYTES, NoHeaderError, Scan
from dmsoft.member.identity import identity_of, matches
from dmsoft.member.payload import AnyPayload, Identity
from dmsoft.member.refusal import (
    GateHeldError,
    GateIdentityError,
    GateMemberError,
    GateMountedError,
    GateReadOnlyError,
    GateSignatureError,
    GateSwapError,
    GateTooSmallError,
    GateUnknownError,
)
from dmsoft.units import MIB, align_down, format_size

__all__ = ["GatedDevice", "Purpose", "open_exclusive", "open_readonly"]

log = logging.getLogger(__name__)

Purpose = Literal["new", "member"]

# The prefix of the device-mapper uuids of one mirror: "DMSOFT-", its uuid, "-".
_OWN_PREFIX_START: Final = "DMSOFT-"
_OWN_PREFIX_LENGTH: Final = 40

# What was around a header where nothing foreign was found, by number of the device: another device that gets that
# number is compared as well, and a daemon keeps no more than one MiB for each.
_empty: dict[tuple[int, int], bytes] = {}

_IDENTITY_HINT: Final = "See `dmsoft devices` for where each member is now."

_USE_ERRORS: Final[dict[str, tuple[type[RefusedError], str]]] = {
    "mounted": (GateMountedError, "Unmount it first, if it is not needed."),
    "swap": (GateSwapError, "Turn it off with swapoff, if it is not needed."),
    "held": (GateHeldError, "Stop what holds it (see lsblk), if it is not needed."),
}


@dataclass(frozen=True, slots=True)
class Findings:
    """What the checks saw on a device: its header region, and what ``force`` passed over."""

    scan: Scan
    overridden: tuple[Signature, ...] = ()


class GatedDevice(FdDisk):
    """A device that passed the gate, open O_RDWR | O_DIRECT: a `dmsoft.member.disk.Disk`, good until it is closed.

    ``exclusive``: it is claimed, so close it before a table that uses the device is loaded. ``scan`` is the header
    region as it was at the gate, ``identity`` what to record, ``overridden`` what ``force`` passed over on a device
    that becomes a member: `clear` removes it.
    """

    def __init__(self, fd: int, claimed: Claim, identity: Identity, findings: Findings) -> None:
        super().__init__(fd)
        self.fd = fd
        self.path = claimed.path
        self.device = claimed.device
        self.exclusive = claimed.exclusive
        self.identity = identity
        self.scan = findings.scan
        self.overridden = findings.overridden
        self._claim = claimed

    @property
    def name(self) -> str:
        return self.path

    @property
    def size_bytes(self) -> int:
        return self.device.size_bytes

    def clear(self) -> None:
        """Erase every signature that ``force`` passed over, and have the kernel forget the partitions it had read.

        Raises `DeviceError` when something is still there afterwards.
        """
        if not self.overridden:
            return
        signatures.wipe(self._claim.probe_path)
        self.flush()
        if left := signatures.signatures(self._claim.probe_path):
            raise DeviceError(f"{self.path} still has {left[0]} after it was erased.", hint="Erase it with wipefs.")
        if self.device.partitions:
            try:
                self._claim.forget_partitions()
            except OSError as err:
                log.warning("%s: the kernel still lists the old partitions: %s", self.path, err)
        self.overridden = ()


@contextmanager
def open_exclusive(
    path: str,
    *,
    purpose: Purpose,
    expect: Identity | None = None,
    member_uuid: str | None = None,
    own_uuid_prefix: str | None = None,
    replaces: str | None = None,
    minimum_bytes: int = 0,
    force: bool = False,
    sysfs: Sysfs = HOST,
    udev: Udev = HOST_UDEV,
) -> Iterator[GatedDevice]:
    """Open ``path`` for writing if every check allows it; the device is closed on leaving.

    ``purpose`` new: it becomes a member, so nothing may be on it, above all no dmsoft header but one of the mirror
    ``replaces`` (a create that was cut short and is repeated). ``purpose`` member: it must have the identity
    ``expect`` and a header with ``member_uuid``, at least one of which is given. ``own_uuid_prefix``: what the uuids
    of this mirror's dm devices begin with; those may hold the device. Sizes are bytes.

    Raises `NotFoundError`, `NotBlockError`, the errors of `dmsoft.member.refusal`, and for a member those of
    `dmsoft.member.header.require`.
    """
    _check_arguments(purpose, expect, member_uuid, own_uuid_prefix)
    device = block_device(path, sysfs)
    with ExitStack() as stack:
        with _doubt_is_no(path):
            known = udev.wait(device)
            _check_answers(path, device, purpose, sysfs)
            _check_use(path, device, own_uuid_prefix, sysfs)
            _check_writable(path, device, minimum_bytes)
            exclusive = not _own_holders(device, own_uuid_prefix, sysfs)
            claimed = stack.enter_context(claim(path, device, exclusive=exclusive))
            claimed.device = again = sysfs.by_number(*device.number)
            _check_use(path, again, own_uuid_prefix, sysfs)
            if purpose == "new" and not known:  # its size alone would be its identity for good
                raise GateUnknownError(f"udev has not finished with {path}.", hint="Try again (see udevadm settle).")
            if not exclusive and not _own_holders(again, own_uuid_prefix, sysfs):
                raise GateUnknownError(f"{path} was let go while it was examined.", hint="Try again.")
            identity = identity_of(again, udev)
        if purpose == "new":
            findings = _check_new(claimed, replaces, sysfs, force=force)
        else:
            findings = _check_member(claimed, identity, expect, member_uuid, force=force)
        with _doubt_is_no(path):
            fd = claimed.open_for_write()
        stack.callback(os.close, fd)
        yield GatedDevice(fd, claimed, identity, findings)


def _check_arguments(
    purpose: Purpose, expect: Identity | None, member_uuid: str | None, own_uuid_prefix: str | None
) -> None:
    """Guard against a caller that would disarm a check: an empty prefix would make every dm device ours."""
    if purpose == "member" and expect is None and member_uuid is None:
        raise ValueError("a member is checked against its identity or its uuid")
    if own_uuid_prefix is not None and not (
        own_uuid_prefix.startswith(_OWN_PREFIX_START)
        and len(own_uuid_prefix) == _OWN_PREFIX_LENGTH
        and own_uuid_prefix.endswith("-")
    ):
        raise ValueError(f"'{own_uuid_prefix}' is not the uuid prefix of one mirror")


@contextmanager
def _doubt_is_no(path: str) -> Iterator[None]:
    """Turn whatever keeps a check from answering into a refusal."""
    try:
        yield
    except RefusedError:
        raise
    except (DmsoftError, OSError, ValueError) as err:
        said = err.message if isinstance(err, DmsoftError) else str(err)
        raise GateUnknownError(
            f"{path} cannot be checked, so it is not written: {said}", hint="Put right what keeps it from being read."
        ) from err


def _own_holders(device: BlockDevice, prefix: str | None, sysfs: Sysfs) -> list[str]:
    return [name for name in device.holders if _is_own(sysfs.device(name), prefix)]


def _is_own(holder: BlockDevice, prefix: str | None) -> bool:
    return prefix is not None and (holder.dm_uuid or "").startswith(prefix)


def _check_answers(path: str, device: BlockDevice, purpose: Purpose, sysfs: Sysfs) -> None:
    """A read of what is suspended would wait, maybe forever; and a mirror cannot be a member of itself."""
    if sysfs.is_asleep(device):
        raise GateUnknownError(
            f"{path} is suspended, so it cannot be checked.", hint="Try again when it was resumed (see dmsetup info)."
        )
    if purpose == "new" and (device.dm_uuid or "").startswith(_OWN_PREFIX_START):
        raise GateMemberError(f"{path} belongs to a mirror.", hint="Use a device that is not made by dmsoft.")


def _check_use(path: str, device: BlockDevice, prefix: str | None, sysfs: Sysfs) -> None:
    """Refuse what is in use; our own devices may hold the device itself, never a part or the whole of it."""
    uses = Usage.read(sysfs).uses(device, but=lambda holder: _is_own(holder, prefix))
    # A mount says more to a person than the device in between that carries it.
    for kind, (refusal, hint) in _USE_ERRORS.items():
        reasons = [use.text for use in uses if use.kind == kind]
        if reasons:
            raise refusal(f"{path} is in use: {'; '.join(reasons)}.", hint=hint)


def _check_writable(path: str, device: BlockDevice, minimum_bytes: int) -> None:
    if device.kind == "cdrom" or device.read_only:
        raise GateReadOnlyError(f"{path} is read-only.", hint="Use another disk, or see blockdev --setrw.")
    if device.size_bytes < max(minimum_bytes, HEADER_BYTES):
        raise GateTooSmallError(
            f"{path} has {format_size(device.size_bytes)}, and {format_size(max(minimum_bytes, HEADER_BYTES))} "
            f"({max(minimum_bytes, HEADER_BYTES)} bytes) are needed.",
            hint="Use a larger device.",
        )


def _check_readable(claimed: Claim) -> None:
    """Read both ends, where signatures are: the probes would take a read error for an empty device."""
    tail = align_down(claimed.device.size_bytes, ALIGNMENT) - MIB
    for offset in (0, tail):
        if len(claimed.pread(MIB, offset)) < MIB:
            raise OSError(errno.EIO, f"it ended before byte {offset + MIB}")


def _check_new(claimed: Claim, replaces: str | None, sysfs: Sysfs, *, force: bool) -> Findings:
    """Nothing foreign is on the device, and nothing of any mirror is on it, on a partition of it or on its disk."""
    with _doubt_is_no(claimed.path):
        _check_readable(claimed)
        scan = header.read(claimed)
        if scan.is_member and not _is_of(scan, replaces):
            raise _member(claimed.path, scan)
        for name in (*claimed.device.partitions, *((claimed.device.parent,) if claimed.device.parent else ())):
            other = sysfs.device(name)
            if other.size_bytes < HEADER_BYTES:
                continue  # the link block of an extended partition
            with open_readonly(other.path, sysfs) as disk:
                part = header.read(disk)
            if part.is_member:
                raise _member(other.path, part)
        found = tuple(signatures.signatures(claimed.probe_path))
    if found and not force:
        raise _signature(claimed, found)
    return Findings(scan, found)


def _is_of(scan: Scan, mirror_uuid: str | None) -> bool:
    return mirror_uuid is not None and scan.header is not None and scan.header.payload.mirror_uuid == mirror_uuid


def _check_member(
    claimed: Claim, seen: Identity, expect: Identity | None, member_uuid: str | None, *, force: bool
) -> Findings:
    """It is the member that was recorded, and nobody has begun something else where its header is."""
    if expect is not None and (why := matches(expect, seen)) is not None:
        raise GateIdentityError(f"{claimed.path} is not the device that was recorded. {why}", hint=_IDENTITY_HINT)
    try:
        payload = header.require(claimed).payload
    except NoHeaderError as err:
        raise GateIdentityError(f"{claimed.path} has no dmsoft header any more.", hint=_IDENTITY_HINT) from err
    if member_uuid is not None and payload.member_uuid != member_uuid:
        raise GateIdentityError(
            f"{claimed.path} is another member: the {_role(payload)} of '{payload.mirror_name}'.", hint=_IDENTITY_HINT
        )
    with _doubt_is_no(claimed.path):
        scan = header.read(claimed)
        found = _foreign(claimed, scan)
    if found and not force:
        raise _signature(claimed, found)
    return Findings(scan)


def _foreign(claimed: Claim, scan: Scan) -> list[Signature]:
    """Signatures where the header is; behind it lie regions of ours, whose contents may well look like something.

    The programs that look for them take half of the time of a gate that a command passes several times, so they are
    asked again only if anything there but the header itself is no longer what it was when they found nothing.
    """
    number = claimed.device.number
    around: bytes | None = None
    if all(copy.status == "ok" for copy in scan.copies):
        with suppress(OSError):  # a bad place where nothing of ours is
            around = header.surroundings(claimed)
    if around is not None and _empty.get(number) == around:
        return []
    probed = signatures.signatures(claimed.probe_path)
    found = [one for one in probed if one.offset is not None and one.offset < HEADER_BYTES]
    if around is not None and not found:
        _empty[number] = around
    return found


def _member(path: str, scan: Scan) -> GateMemberError:
    if scan.header is None:
        return GateMemberError(
            f"{path} has a dmsoft header that cannot be used.",
            hint=f"Look at it with `dmsoft examine {path}`; if it is not needed, zero its first MiB.",
        )
    payload = scan.header.payload
    return GateMemberError(
        f"{path} is the {_role(payload)} of the mirror '{payload.mirror_name}'.",
        hint=f"Use `dmsoft remove` or `dmsoft destroy` on '{payload.mirror_name}' first, if it is not needed.",
    )


def _signature(claimed: Claim, found: Sequence[Signature]) -> GateSignatureError:
    parts = len(claimed.device.partitions)
    also = f" with {parts} partition{'s' if parts > 1 else ''}" if parts and any(one.is_table for one in found) else ""
    return GateSignatureError(
        f"{claimed.path} is not empty: it has {', '.join(map(str, found))}{also}.",
        hint="If nothing on it is needed, use --force, which erases it.",
    )


def _role(payload: AnyPayload) -> str:
    return str(payload.__struct_config__.tag)
