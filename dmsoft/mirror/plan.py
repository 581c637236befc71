# SPDX-License-Identifier: GPL-2.0-or-later
"""From model to wanted devices: pure functions that print every device-mapper table dmsoft ever loads.

Tables come from here and nowhere else (what ``dmsetup table`` prints for a raid1, loaded again, halves the
write-behind limit and restarts rebuilds). Disks are named by ``MAJOR:MINOR``, so that a path that changed hands
in between cannot get into a table; dmsoft's own devices by their ``/dev/mapper`` path.

    NAME           era: records which blocks were written in which era; linear while nothing is tracked
    NAME-metadata  linear: the era metadata, on NAME-metadata-watch
    NAME-metadata-watch  striped: one stripe, which remembers an error, on NAME-metadata-disk
    NAME-metadata-disk   linear: the era metadata region, on the primary or on a device of its own
    NAME-shield    snapshot-origin, on kernels where discards get through without it
    NAME-lower     linear onto the primary's data region, or raid1 in write-behind mode
    NAME-primary   linear: the primary's data region as a raid1 leg
    NAME-slotN     linear: raid superblock and bitmap of one leg, all on the primary
    NAME-LABEL     the leg of one secondary: linear, delay or writecache
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from dmsoft.dm.targets import (
    Delay,
    DelayClass,
    Era,
    Error,
    Linear,
    Raid1,
    RaidLeg,
    Segment,
    SnapshotOrigin,
    Striped,
    Table,
    WriteCache,
    single,
)
from dmsoft.errors import NotFoundError, UsageError
from dmsoft.member.payload import Cache, MemberRecord, Metadata, Primary, Region, Secondary
from dmsoft.member.regions import raid_region_bytes, slot
from dmsoft.mirror.names import SLOTS_PER_SET, Names, Node
from dmsoft.units import Sectors, sectors

# md halves the number and counts requests: at most 256 behind writes of up to 1 MiB each are held in memory.
MAX_WRITE_BEHIND: Final = 512
# Each leg of the raid1 takes a slot of one set, and so does the primary.
MAX_COUPLED: Final = SLOTS_PER_SET - 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """One device as it has to stand: its node and its table."""

    node: Node
    table: Table

    def lines(self) -> list[str]:
        """The table as ``dmsetup`` prints it, one line a segment, the device's name first."""
        return [f"{self.node.name}: {segment}" for segment in self.table]


# Sectors: one block of metadata, so that nothing is cut.
_METADATA_CHUNK = Sectors(8)

P = TypeVar("P", Primary, Secondary, Cache, Metadata)


@dataclass(frozen=True, slots=True)
class Placed(Generic[P]):
    """A member's payload and the ``MAJOR:MINOR`` number of the device it was read from."""

    payload: P
    number: str


def names_of(primary: Primary) -> Names:
    return Names(primary.mirror_name, primary.mirror_uuid)


def data_sectors(primary: Primary) -> Sectors:
    return sectors(primary.regions["data"].length)


def base(primary: Placed[Primary], metadata: Placed[Metadata] | None, *, shielded: bool = False) -> list[Wanted]:
    """The stack without any secondary, bottom up: the record, lower, the shield if ``shielded``, top.

    Raises `NotFoundError` without its metadata.
    """
    payload, names = primary.payload, names_of(primary.payload)
    era = Era(names.metadata.path, _under_top(names, shielded).path, sectors(payload.block_bytes))
    return [
        *record(primary, metadata),
        lower_linear(primary),
        *([shield(payload)] if shielded else []),
        Wanted(names.top, single(data_sectors(payload), era)),
    ]


def record(primary: Placed[Primary], metadata: Placed[Metadata] | None) -> list[Wanted]:
    """What the record of dm-era lies on, bottom up.

    dm-era forgets that a write of its metadata failed, and marks with it, so below them is a stripe, which does not. It
    counts errors by the device that failed, and a partition or a multipath disk hands its requests on to another one
    before they fail; a device of our own below it does not. From Linux 6.11 on flushes pass a stripe by, unless there
    is a target in its table that does not take part in that: an error, behind the end of what dm-era sees. Raises
    `NotFoundError` without its metadata.
    """
    names, (number, region) = names_of(primary.payload), metadata_place(primary, metadata)
    length, start = sectors(region.length), Sectors(0)
    watch = (
        Segment(start, length, Striped(names.metadata_disk.path, start, _METADATA_CHUNK)),
        Segment(length, _METADATA_CHUNK, Error()),
    )
    return [
        _linear(names.metadata_disk, number, region),
        Wanted(names.metadata_watch, watch),
        Wanted(names.metadata, single(length, Linear(names.metadata_watch.path, start))),
    ]


def likely_shielded() -> bool:
    """Whether a preview should show the shield. What stands in the end is decided by asking the lower."""
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) < (5, 19)


def shield(primary: Primary) -> Wanted:
    """What keeps discards from dm-era where the kernel lets them through a device whose limit for them is zero."""
    names = names_of(primary)
    return Wanted(names.shield, single(data_sectors(primary), SnapshotOrigin(names.lower.path)))


def untracked_top(primary: Primary, *, shielded: bool = False) -> Wanted:
    """The top while nothing is tracked."""
    names = names_of(primary)
    under = Linear(_under_top(names, shielded).path, Sectors(0))
    return Wanted(names.top, single(data_sectors(primary), under))


def _under_top(names: Names, shielded: bool) -> Node:
    return names.shield if shielded else names.lower


def metadata_place(primary: Placed[Primary], metadata: Placed[Metadata] | None) -> tuple[str, Region]:
    """Where the era metadata lies: device number and region. Raises `NotFoundError` if its device is not here."""
    if primary.payload.metadata is None:
        return primary.number, primary.payload.regions["metadata"]
    if metadata is None:
        raise NotFoundError(
            f"The device with the era metadata of {primary.payload.mirror_name} is not here.",
            hint="Plug it in and try again.",
        )
    return metadata.number, metadata.payload.regions["metadata"]


def canary(primary: Placed[Primary], slot_set: int, block_bytes: int) -> list[Wanted]:
    """A little era device, bottom up: metadata, data, and the era, all on the raid slots of ``slot_set``, which no
    raid1 uses at the moment. Nothing of the user's is there."""
    payload, names = primary.payload, names_of(primary.payload)
    first, half = slot_set * SLOTS_PER_SET, SLOTS_PER_SET // 2
    regions = [
        Region(slot(payload, at).offset, slot(payload, at + half - 1).end - slot(payload, at).offset)
        for at in (first, first + half)
    ]
    era = Era(names.canary_metadata.path, names.canary_data.path, sectors(block_bytes))
    return [
        _linear(names.canary_metadata, primary.number, regions[0]),
        _linear(names.canary_data, primary.number, regions[1]),
        Wanted(names.canary, single(sectors(regions[1].length), era)),
    ]


def lower_linear(primary: Placed[Primary]) -> Wanted:
    """The lower device when no secondary is coupled in the kernel."""
    return _linear(names_of(primary.payload).lower, primary.number, primary.payload.regions["data"])


def leg(
    primary: Primary,
    record: MemberRecord,
    secondary: Placed[Secondary],
    cache: Placed[Cache] | None,
    block_bytes: int,
) -> list[Wanted]:
    """The devices of one secondary's leg, bottom up; ``block_bytes`` is the top's logical block size.

    The first one holds the disk itself. A writecache leg without its cache device ends with that.

    A writecache with larger blocks than the top's would refuse the smaller requests that the top lets through, and
    md would throw the leg out.
    """
    names = names_of(primary)
    node, region = names.leg(record.label), secondary.payload.regions["data"]
    if record.via.type == "delay":
        offset, pause = sectors(region.offset), record.via.delay_ms
        # Reads and flushes are not delayed: md sends every flush to every leg, and fsync would pay for it.
        target = Delay(
            secondary.number, offset, 0,
            write=DelayClass(secondary.number, offset, pause), flush=DelayClass(secondary.number, offset, 0),
        )  # fmt: skip
        return [Wanted(node, (Segment(Sectors(0), sectors(region.length), target),))]
    if record.via.type == "writecache" and record.mode == "write-behind":
        under = _linear(names.leg_data(record.label), secondary.number, region)
        if cache is None:
            return [under]
        store = _linear(names.leg_cache(record.label), cache.number, cache.payload.regions["data"])
        target_cache = WriteCache(under.node.path, store.node.path, block_bytes)
        return [under, store, Wanted(node, (Segment(Sectors(0), sectors(region.length), target_cache),))]
    return [_linear(node, secondary.number, region)]


def leg_nodes(names: Names, label: str) -> list[Node]:
    """Every device a leg can have, bottom up, whatever its via."""
    return [names.leg_data(label), names.leg_cache(label), names.leg(label)]


def bottom_up(names: Names, nodes: Sequence[Node]) -> list[Node]:
    """The nodes of a mirror in an order in which each stands on earlier ones only."""

    def height(node: Node) -> int:
        layer = node.uuid.removeprefix(names.prefix)
        order = (names.metadata_watch, names.metadata, names.lower, names.shield, names.top)
        above = {each.uuid: number for number, each in enumerate(order, 1)} | {names.canary.uuid: 5}
        if node.uuid in above:
            return above[node.uuid]
        # Labels have no dash: what has one after its label lies under a leg.
        return 0 if not layer.startswith("leg-") else 1 if "-" in layer.removeprefix("leg-") else 2

    return sorted(nodes, key=height)


def raid(primary: Placed[Primary], labels: Sequence[str], slot_set: int) -> list[Wanted]:
    """The write-behind lower with the legs of ``labels``, bottom up; slots of ``slot_set`` (0 or 1).

    Secondaries come first and the primary last: on 6.1 writes go behind only when the first leg is write-mostly. That
    order would make md's ``repair`` copy from a secondary, which is one reason why dmsoft never sends it. Two slot
    sets take turns, since an old table may still write to its slots while it is being destroyed. Raises `UsageError`
    for more than `MAX_COUPLED` labels.
    """
    check_coupled(len(labels))
    payload, names = primary.payload, names_of(primary.payload)
    length = data_sectors(payload)
    first = slot_set * SLOTS_PER_SET
    indexes = range(first, first + len(labels) + 1)
    slots = [_linear(names.slot(i), primary.number, slot(payload, i)) for i in indexes]
    data = _linear(names.primary, primary.number, payload.regions["data"])
    nodes = [names.leg(label) for label in labels] + [data.node]
    target = Raid1(
        legs=tuple(RaidLeg(s.node.path, node.path) for s, node in zip(slots, nodes, strict=True)),
        write_mostly=tuple(range(len(labels))),
        max_write_behind=MAX_WRITE_BEHIND,
        region=sectors(raid_region_bytes(payload.regions["data"].length)),
        sync="nosync",
    )
    return [*slots, data, Wanted(names.lower, (Segment(Sectors(0), length, target),))]


def check_coupled(count: int) -> None:
    """Raise `UsageError` if so many write-behind secondaries have no slots."""
    if count > MAX_COUPLED:
        raise UsageError(
            f"A mirror has at most {MAX_COUPLED} secondaries in write-behind mode.", hint="Add the others as periodic."
        )


def _linear(node: Node, number: str, region: Region) -> Wanted:
    target = Linear(number, sectors(region.offset))
    return Wanted(node, (Segment(Sectors(0), sectors(region.length), target),))
