# SPDX-License-Identifier: GPL-2.0-or-later
"""What one secondary misses, block by block."""

import msgspec

from dmsoft.era.blocks import BlockSet
from dmsoft.errors import NotFoundError
from dmsoft.member import regions
from dmsoft.mirror import locate
from dmsoft.mirror.decision import decide, from_record
from dmsoft.mirror.running import Running, is_active
from dmsoft.resync.extents import size_bytes


class Missing(msgspec.Struct, frozen=True):
    """``extents``: runs (first block, count) of blocks of ``block_bytes``, ascending; ``since_era`` None lists all."""

    block_bytes: int
    since_era: int | None
    extents: list[tuple[int, int]]
    stale_blocks: int
    stale_bytes: int
    reason: str


def missing(name: str, label: str) -> Missing:
    """The stale set of a secondary, here or away. Raises `NotFoundError`, `MetadataError`."""
    running = Running.of(locate.assemble(name))
    record = running.payload.member(label)
    if record is None:
        raise NotFoundError(f"{name} has no secondary {label}.", hint="`dmsoft status` lists them.")
    placed = running.assembly.secondaries.get(label)
    if placed is None:
        decision = from_record(running.payload, record)
    else:
        decision = decide(running.payload, record, placed.payload, _current_era(running))
    blocks = BlockSet.full(regions.nr_blocks(running.data.length, running.block_bytes))
    if decision.since is not None:
        with running.era_reader() as reader:
            blocks = reader.written_since(decision.since).blocks
    return Missing(
        running.block_bytes, decision.since, [(first, count) for first, count in blocks.extents().tolist()],
        blocks.count(), size_bytes(blocks, block_bytes=running.block_bytes, data_bytes=running.data.length),
        decision.reason,
    )  # fmt: skip


def _current_era(running: Running) -> int | None:
    if is_active(running.names):
        return running.current_era()
    with running.era_reader() as reader:
        return None if reader.is_zero() else reader.superblock().current_era
