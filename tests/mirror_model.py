# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers of a small mirror for tests of what is decided from them."""

from dmsoft.member import regions
from dmsoft.member.payload import (
    Cache,
    Identity,
    MemberRecord,
    Metadata,
    MetadataRecord,
    Mode,
    Primary,
    Secondary,
    Sync,
    Tracker,
    Via,
)
from dmsoft.mirror.plan import Placed
from dmsoft.units import GIB, MIB

MIRROR = "a" * 32
TRACKER = "c" * 32
TOKEN = "7" * 32
GENERATION = ("d" * 32,)
SIZE = GIB
PRIMARY_NUMBER = "8:0"


def _common(member: str, size: int) -> dict[str, object]:
    return {
        "mirror_uuid": MIRROR,
        "mirror_name": "m",
        "member_uuid": member,
        "identity": Identity(size),
        "created": "2026-01-01T00:00:00Z",
    }


def record(label: str, mode: Mode = "periodic", via: Via | None = None, *, sync: Sync | None = None) -> MemberRecord:
    return MemberRecord(label, f"{label:0>32}", Identity(SIZE), mode, via or Via(), sync=sync or Sync())


def via_cache(label: str) -> Via:
    return Via("writecache", cache_uuid=f"{label:f>32}", cache_identity=Identity(64 * MIB))


def primary(*members: MemberRecord, block_bytes: int = MIB, separate: bool = False) -> Primary:
    return Primary(
        **_common("b" * 32, SIZE),
        regions=regions.primary_layout(SIZE, block_bytes, separate_metadata=separate),
        mode="periodic",
        interval_seconds=300,
        block_bytes=block_bytes,
        tracker=Tracker(TRACKER, formatted=True),
        generation=GENERATION,
        members=members,
        metadata=MetadataRecord("e" * 32, Identity(64 * MIB)) if separate else None,
    )


def placed_primary(*members: MemberRecord, block_bytes: int = MIB, separate: bool = False) -> Placed[Primary]:
    return Placed(primary(*members, block_bytes=block_bytes, separate=separate), PRIMARY_NUMBER)


def metadata(number: str, *, blocks: int) -> Placed[Metadata]:
    layout = regions.metadata_layout(64 * MIB, blocks)
    return Placed(Metadata(**_common("e" * 32, 64 * MIB), regions=layout), number)


def secondary(of: Primary, label: str, *, sync: Sync | None = None) -> Secondary:
    data = of.regions["data"]
    return Secondary(
        **_common(f"{label:0>32}", SIZE),
        regions=regions.secondary_layout(SIZE, data_bytes=data.length, reserve_bytes=data.offset),
        label=label,
        block_bytes=of.block_bytes,
        generation=of.generation,
        sync=sync or Sync(),
    )


def cache(label: str, number: str, size: int = 64 * MIB) -> Placed[Cache]:
    layout = regions.cache_layout(size)
    common = _common(f"{label:f>32}", size)
    return Placed(Cache(**common, regions=layout, label=label, secondary_uuid=f"{label:0>32}"), number)
