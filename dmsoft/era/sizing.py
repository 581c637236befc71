# SPDX-License-Identifier: GPL-2.0-or-later
"""How large the metadata region must be."""

from typing import Final

from dmsoft.era.layout import (
    BLOCK_BYTES,
    MAX_DATA_BLOCKS,
    MAX_METADATA_BLOCKS,
    array_capacity,
    blocks_needed,
    node_capacity,
)
from dmsoft.units import MIB

# Digesting an era rewrites the array in one transaction (two copies), a held metadata snapshot pins a third; the
# fourth is room for the blocks freed only by the next commit.
_ARRAYS: Final = 4
# Eras that may wait to be digested.
_WRITESETS: Final = 64
# Room for two commits: superblock, tree nodes, space map.
_COMMIT_BLOCKS: Final = 64


def metadata_bytes(nr_blocks: int) -> int:
    """Bytes of metadata wanted for ``nr_blocks`` data blocks: whole metadata blocks, at least 4 MiB.

    Four era arrays, 64 writesets, each with its index nodes, and 1 MiB for everything else. Never more than the
    kernel uses: a result of `MAX_METADATA_BLOCKS` may not be enough, and larger data blocks are the answer.
    ``ValueError`` when dm-era cannot track that many blocks.
    """
    if not 0 < nr_blocks <= MAX_DATA_BLOCKS:
        raise ValueError(f"dm-era cannot track {nr_blocks} blocks")
    array = tree_blocks(blocks_needed(nr_blocks, array_capacity(4)))
    wanted = _ARRAYS * array + _WRITESETS * writeset_blocks(nr_blocks) + MIB // BLOCK_BYTES
    return max(min(wanted, MAX_METADATA_BLOCKS) * BLOCK_BYTES, 4 * MIB)


def era_blocks(nr_blocks: int) -> int:
    """Metadata blocks that must be free for a new era to begin: its writeset, and copies of what its commits change."""
    return 2 * writeset_blocks(nr_blocks) + _COMMIT_BLOCKS


def writeset_blocks(nr_bits: int) -> int:
    """Metadata blocks of a writeset over that many data blocks."""
    return tree_blocks(blocks_needed(blocks_needed(nr_bits, 64), array_capacity(8)))


def has_room(*, free: int, waiting: int, nr_blocks: int) -> bool:
    """Whether a new era may begin, with ``free`` metadata blocks and ``waiting`` in writesets not yet digested.

    Those become blocks of the array, in copies, before they are free again: more than a quarter of the room is too
    many.
    """
    return free >= era_blocks(nr_blocks) and 4 * waiting <= free


def tree_blocks(leaves: int) -> int:
    """Metadata blocks of an array with ``leaves`` array blocks: they and their index nodes."""
    # An ascending insert leaves nodes half full behind itself.
    fanout = node_capacity(8) // 2
    total, nodes = leaves, max(leaves, 1)
    while True:
        nodes = blocks_needed(nodes, fanout)
        total += nodes
        if nodes == 1:
            return total
