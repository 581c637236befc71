# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in the header region of a device, for a person to look at: trusts nothing, changes nothing."""

import msgspec

from dmsoft.errors import DmsoftError
from dmsoft.inventory.sysfs import block_device
from dmsoft.member import header, keys, regions
from dmsoft.member.identity import identity_of, matches
from dmsoft.member.payload import AnyPayload, MemberRecord, Region, Secondary, Sync
from dmsoft.member.record import Record, record_of


class CopyView(msgspec.Struct, frozen=True):
    """One of the two copies: ``ok``, or why not."""

    slot: int
    status: str
    sequence: int | None
    reason: str | None


class Examination(msgspec.Struct, frozen=True):
    """A header as it stands. Sizes and offsets are bytes; ``authentic`` null: this host has no key for the mirror;
    ``journal``: what a resync that was cut off left; a committed one counts, and ``consistent_as_of`` is its point in
    time; ``problems``: what does not fit together, or does not fit the device."""

    device: str
    size_bytes: int
    role: str
    mirror_name: str
    mirror_uuid: str
    member_uuid: str
    sequence: int
    authentic: bool | None
    created: str
    data_offset_bytes: int | None
    data_bytes: int | None
    regions: dict[str, Region]
    copies: tuple[CopyView, ...]
    problems: tuple[str, ...]
    label: str | None
    sync: Sync | None
    consistent_as_of: str | None
    journal: Record | None
    members: tuple[MemberRecord, ...] | None
    payload: AnyPayload


def examine(path: str) -> Examination:
    """Read the header on ``path``. Raises `NotFoundError` for none, `MetadataError` for two bad copies."""
    device = block_device(path)
    found = header.require(path)
    payload = found.payload
    key = keys.load(payload.mirror_uuid)
    scan = header.read(path, key=key)
    data = payload.regions.get("data")
    sync = payload.sync if isinstance(payload, Secondary) else None
    journal = record_of(path, key)
    whole = journal.sync if journal is not None and journal.committed else sync
    return Examination(
        device=path, size_bytes=device.size_bytes, role=payload.role, mirror_name=payload.mirror_name,
        mirror_uuid=payload.mirror_uuid, member_uuid=payload.member_uuid, sequence=found.sequence,
        authentic=None if key is None or scan.header is None else scan.header.verified, created=payload.created,
        data_offset_bytes=None if data is None else data.offset, data_bytes=None if data is None else data.length,
        regions=payload.regions,
        copies=tuple(CopyView(c.slot, c.status, c.sequence, c.reason) for c in scan.copies),
        problems=tuple(_problems(payload, scan, path)), label=getattr(payload, "label", None), sync=sync,
        consistent_as_of=None if whole is None else whole.consistent_as_of, journal=journal,
        members=getattr(payload, "members", None), payload=payload,
    )  # fmt: skip


def _problems(payload: AnyPayload, scan: header.Scan, path: str) -> list[str]:
    device = block_device(path)
    problems = [] if scan.doubt is None else [scan.doubt]
    try:
        regions.check(payload, device.size_bytes)
    except DmsoftError as err:
        problems.append(err.message)
    differs = matches(payload.identity, identity_of(device))
    return [*problems, f"It was written for another device: {differs}"] if differs else problems
