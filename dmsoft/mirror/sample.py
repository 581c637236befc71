# SPDX-License-Identifier: GPL-2.0-or-later
"""The sample check: a few clean blocks, compared before anything is believed.

A disk that was written behind dmsoft's back marks nothing. Before a secondary's S is used, both ends of the data region
and some clean blocks drawn at random must be equal; one that is not makes the secondary unknown.
"""

import random
from collections.abc import Callable

from dmsoft.era.blocks import BlockSet
from dmsoft.resync.buffers import aligned_buffer
from dmsoft.resync.copy import Side, read_all
from dmsoft.units import KIB, MIB, align_down

_RANDOM_BLOCKS = 16
_BYTES_EACH = 64 * KIB


def places(stale: BlockSet, *, block_bytes: int, data_bytes: int, chance: random.Random) -> list[tuple[int, int]]:
    """Byte ranges (offset, length) to compare, none of which touches a stale block: what is clean of the first and
    last MiB, and pieces of clean blocks drawn at random from the whole disk."""
    step = min(block_bytes, _BYTES_EACH)
    ends = {*range(0, min(MIB, data_bytes), step), *range(align_down(max(0, data_bytes - MIB), step), data_bytes, step)}
    found = {(at, min(step, data_bytes - at)) for at in ends}
    drawn = dict.fromkeys(chance.randrange(stale.nr_blocks) for _ in range(4 * _RANDOM_BLOCKS))
    for block in [block for block in drawn if block not in stale][:_RANDOM_BLOCKS]:
        piece = align_down(chance.randrange(block_bytes), _BYTES_EACH)
        at = block * block_bytes + piece
        if at < data_bytes:
            found.add((at, min(_BYTES_EACH, block_bytes - piece, data_bytes - at)))
    return sorted((at, length) for at, length in found if _is_clean(stale, at, length, block_bytes))


def _is_clean(stale: BlockSet, offset: int, length: int, block_bytes: int) -> bool:
    return not any(block in stale for block in range(offset // block_bytes, (offset + length - 1) // block_bytes + 1))


def differing(
    primary: Side, secondary: Side, stale: BlockSet, *, block_bytes: int, data_bytes: int,
    now_stale: Callable[[], BlockSet], chance: random.Random | None = None,
) -> int | None:  # fmt: skip
    """The offset of a clean range that differs, or None. Raises OSError when either side cannot be read.

    While the mirror runs a clean block may be written between the two reads; ``now_stale`` is asked again before a
    difference counts.
    """
    import numpy as np

    ours, theirs = aligned_buffer(_BYTES_EACH), aligned_buffer(_BYTES_EACH)
    wanted = places(stale, block_bytes=block_bytes, data_bytes=data_bytes, chance=chance or random.SystemRandom())
    for offset, length in wanted:
        read_all(primary, ours[:length], offset)
        read_all(secondary, theirs[:length], offset)
        if not np.array_equal(np.frombuffer(ours[:length], np.uint8), np.frombuffer(theirs[:length], np.uint8)):
            later = now_stale()
            if _is_clean(later, offset, length, block_bytes):
                return offset
    return None
