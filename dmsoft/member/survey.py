# SPDX-License-Identifier: GPL-2.0-or-later
"""Every block device of this machine, looked at as the gate would, all reasons at once. Nothing is written.

Devices that are in use are not probed further than their header: what else is on them does not matter.
"""

from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from dmsoft.errors import DmsoftError
from dmsoft.inventory import blivet, signatures
from dmsoft.inventory.candidates import Candidate, Facts, Reason, Role, judge
from dmsoft.inventory.signatures import Signature
from dmsoft.inventory.sysfs import HOST, BlockDevice, Sysfs, block_device
from dmsoft.inventory.udev import HOST as HOST_UDEV
from dmsoft.inventory.udev import Udev
from dmsoft.inventory.usage import Usage, Use
from dmsoft.member import header
from dmsoft.member.claim import claim, open_readonly
from dmsoft.member.distinct import overlap
from dmsoft.member.header import HEADER_BYTES
from dmsoft.member.refusal import GateHeldError
from dmsoft.member.regions import MINIMUM_BYTES
from dmsoft.units import MIB

CACHE_BYTES: Final = 9 * MIB
"""The smallest device that `dmsoft.member.regions.cache_layout` takes."""

_DMSOFT: Final = "DMSOFT-"


class Survey(Struct, frozen=True):
    """The answer of ``dmsoft devices``: what is here, and sentences about what could not be seen and why."""

    devices: tuple[Candidate, ...]
    missing: tuple[str, ...]
    schema: int = 1


@dataclass(frozen=True, slots=True)
class _Contents:
    member: str | None = None
    signatures: tuple[Signature, ...] = ()
    doubt: str | None = None
    other: tuple[Reason, ...] = ()


def survey(primary: str | None = None, sysfs: Sysfs = HOST, udev: Udev = HOST_UDEV) -> Survey:
    """Look at every device. ``primary``: judge secondaries for that one: as large, and not the same storage.

    Raises `DeviceError` when the machine cannot be asked at all, and for ``primary`` the errors of `block_device`.
    """
    chosen = None if primary is None else block_device(primary, sysfs)
    usage = Usage.read(sysfs)
    advice = blivet.advice(udev)
    minimum: dict[Role, int] = {
        "primary": MINIMUM_BYTES,
        "secondary": max(MINIMUM_BYTES, chosen.size_bytes if chosen else 0),
        "cache": CACHE_BYTES,
    }
    found = []
    for device in sysfs.devices():
        uses, why = _uses(device, usage)
        seen = _contents(device, uses, sysfs)
        facts = Facts(
            device=device,
            by_id=tuple(udev.by_id(device)),
            uses=uses,
            signatures=seen.signatures,
            member=seen.member,
            doubt=why or seen.doubt,
            advice=advice.reasons.get(device.name, ()),
            other=(*seen.other, *_overlap(device, chosen, sysfs)),
        )
        found.append(judge(facts, minimum))
    missing = list(advice.missing)
    if not udev.running:
        missing.append("udevd is not running, so names under /dev/disk may be missing.")
    return Survey(tuple(found), tuple(missing))


def _uses(device: BlockDevice, usage: Usage) -> tuple[tuple[Use, ...], str | None]:
    try:
        return tuple(usage.uses(device)), None
    except DmsoftError as err:
        return (), f"cannot be checked: {err.message}"


def _overlap(device: BlockDevice, chosen: BlockDevice | None, sysfs: Sysfs) -> tuple[Reason, ...]:
    if chosen is None:
        return ()
    try:
        why = "is the primary itself" if device.number == chosen.number else overlap(device, chosen, sysfs)
    except DmsoftError as err:
        return (Reason("gate-unknown", f"cannot be checked: {err.message}"),)
    return (Reason("same-device", why if why.startswith("is ") else f"it and the primary {why}"),) if why else ()


def _contents(device: BlockDevice, uses: tuple[Use, ...], sysfs: Sysfs) -> _Contents:
    """What is on a device. One that a read could wait for (suspended, no medium) is not read."""
    try:
        if sysfs.is_asleep(device):
            return _Contents(doubt="suspended, so it cannot be checked")
        if device.kind in ("cdrom", "floppy") or device.size_bytes < HEADER_BYTES:
            return _Contents()
        member = _member(device, sysfs)
        idle = not (member or uses or device.read_only)
        return _Contents(member, _probe(device) if idle else ())
    except GateHeldError:
        return _Contents(other=(Reason("gate-held", "in use by something that the kernel does not name"),))
    except (DmsoftError, OSError) as err:
        return _Contents(doubt=f"cannot be checked: {err.message if isinstance(err, DmsoftError) else err.strerror}")


def _probe(device: BlockDevice) -> tuple[Signature, ...]:
    with claim(device.path, device, exclusive=True) as claimed:
        signatures.readable(claimed.probe_path)
        return tuple(signatures.signatures(claimed.probe_path))


def _member(device: BlockDevice, sysfs: Sysfs) -> str | None:
    if (device.dm_uuid or "").startswith(_DMSOFT):
        return "belongs to a mirror"
    with open_readonly(device.path, sysfs) as disk:
        scan = header.read(disk)
    if not scan.is_member:
        return None
    if scan.header is None:
        return "has a dmsoft header that cannot be used"
    payload = scan.header.payload
    return f"the {payload.__struct_config__.tag} of the mirror {payload.mirror_name}"
