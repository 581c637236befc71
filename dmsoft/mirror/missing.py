# SPDX-License-Identifier: GPL-2.0-or-later
"""What one secondary misses, block by block."""

import contextlib

import msgspec

from dmsoft.dm.failures import SuspendedError
from dmsoft.era.blocks import BlockSet
from dmsoft.era.spread import spread
from dmsoft.errors import DmsoftError, NotFoundError
from dmsoft.member import regions
from dmsoft.mirror import locate
from dmsoft.mirror.decision import Decision, decide, from_record
from dmsoft.mirror.running import Running, is_active
from dmsoft.mirror.start import doubt_of
from dmsoft.mirror.untracked import lately_doubted
from dmsoft.resync.extents import size_bytes

_MAP_PARTS = 64


class Missing(msgspec.Struct, frozen=True):
    """``extents``: runs (first block, count) of blocks of ``block_bytes``, ascending; ``since_era`` None lists all.

    ``asked``: since_era is what the caller wanted to know, and not what the secondary misses. ``size_bytes`` is that
    of the mirror's device, ``stale_map`` how much of each of up to 64 equal parts of it is listed, in percent.
    """

    block_bytes: int
    since_era: int | None
    extents: list[tuple[int, int]]
    stale_blocks: int
    stale_bytes: int
    reason: str
    size_bytes: int
    stale_map: tuple[int, ...]
    asked: bool = False


def missing(name: str, label: str, since: int | None = None) -> Missing:
    """The stale set of a secondary, here or away; with ``since`` what was written in that era or later.

    Eras are counted within one life of the tracking. So of a secondary of which nothing is known for sure, or that was
    never copied, every block is listed with ``since`` as well: no number of an era means anything for it. Raises
    `NotFoundError`, `MetadataError`, and `EraAheadError` for an era that is yet to come.
    """
    running = Running.of(locate.assemble(name))
    decision = _decision(running, label)
    asked = decision.since is not None and since is not None
    era = since if asked else decision.since
    blocks = BlockSet.full(regions.nr_blocks(running.data.length, running.block_bytes))
    if era is not None:
        with running.era_reader() as reader:
            blocks = reader.written_since(era).blocks
    return Missing(
        running.block_bytes, era, list(blocks.runs()), blocks.count(),
        size_bytes(blocks, block_bytes=running.block_bytes, data_bytes=running.data.length),
        decision.reason, running.data.length, spread(blocks, _MAP_PARTS), asked,
    )  # fmt: skip


def _decision(running: Running, label: str) -> Decision:
    record = running.payload.member(label)
    if record is None:
        raise NotFoundError(f"{running.names.name} has no secondary {label}.", hint="`dmsoft status` lists them.")
    # Of a mirror that runs the rest was found out when it was started.
    doubt = lately_doubted(running) if is_active(running.names) else doubt_of(running)
    if doubt is not None:
        return Decision("compare", f"nothing is known of what was written: {doubt}")
    placed = running.assembly.secondaries.get(label)
    if placed is None:
        return from_record(running.payload, record)
    return decide(running.payload, record, placed.payload, _current_era(running))


def _current_era(running: Running) -> int | None:
    if is_active(running.names):
        with contextlib.suppress(SuspendedError):
            return running.current_era()
    # While a mirror is stopped or suspended its metadata lie still.
    with running.era_reader() as reader:
        return None if reader.is_zero() else reader.superblock().current_era


class StaleSets:
    """W(S) for each S asked for, read once; None when the metadata cannot answer."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._known: dict[int, BlockSet | None] = {}

    def get(self, decision: Decision) -> BlockSet | None:
        nr_blocks = regions.nr_blocks(self._running.data.length, self._running.block_bytes)
        if decision.since is None:
            return BlockSet.full(nr_blocks)
        if decision.since not in self._known:
            self._known[decision.since] = self._read(decision.since)
        return self._known[decision.since]

    def _read(self, era: int) -> BlockSet | None:
        try:
            with self._running.era_reader() as reader:
                return reader.written_since(era).blocks
        except DmsoftError:
            return None
