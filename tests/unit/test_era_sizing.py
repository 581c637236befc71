# SPDX-License-Identifier: GPL-2.0-or-later
"""How large the metadata region becomes."""

import numpy as np
import pytest

from dmsoft.era.layout import MAX_METADATA_BLOCKS
from dmsoft.era.sizing import era_blocks, has_room, metadata_bytes, tree_blocks, writeset_blocks
from dmsoft.units import MIB
from tests.era_image import ImageWriter


@pytest.mark.parametrize("leaves", [1, 125, 126, 127, 126 * 5 + 1])
def test_tree_blocks_are_those_of_a_half_full_tree(leaves: int) -> None:
    writer = ImageWriter(2 * leaves + 100, fanout=126)
    writer.array(np.zeros(leaves * 1018, np.uint32))
    assert tree_blocks(leaves) == len(writer.kinds)


@pytest.mark.parametrize(
    ("nr_blocks", "least", "most"),
    [
        (1, 4 * MIB, 4 * MIB),
        (4096, 4 * MIB, 4 * MIB),
        # 1 TiB in blocks of 64 KiB: an array of 64.4 MiB, writesets of 2.0 MiB.
        (1 << 24, 4 * 64.4 * MIB + 64 * 2 * MIB, 4 * 66 * MIB + 64 * 2.2 * MIB),
        # 1 TiB in blocks of 1 MiB: 4.0 MiB, 132 KiB.
        (1 << 20, 4 * 4 * MIB + 64 * 0.125 * MIB, 4 * 4.1 * MIB + 64 * 0.15 * MIB + MIB),
    ],
)
def test_metadata_bytes(nr_blocks: int, least: float, most: float) -> None:
    size = metadata_bytes(nr_blocks)
    assert least <= size <= most
    assert size % 4096 == 0


def test_it_never_shrinks_with_more_blocks() -> None:
    sizes = [metadata_bytes(nr_blocks) for nr_blocks in range(1, 1 << 26, 999_983)]
    assert sizes == sorted(sizes)


def test_never_more_than_the_kernel_uses() -> None:
    assert metadata_bytes((1 << 31) - 1) == MAX_METADATA_BLOCKS * 4096


@pytest.mark.parametrize("nr_blocks", [0, -1, 1 << 31])
def test_too_many_or_none(nr_blocks: int) -> None:
    with pytest.raises(ValueError, match="dm-era"):
        metadata_bytes(nr_blocks)


@pytest.mark.parametrize(
    ("waiting", "free", "may"), [(0, 68, True), (0, 67, False), (25, 100, True), (26, 100, False), (0, -1, False)]
)
def test_a_barrier_may_begin_an_era(waiting: int, free: int, may: bool) -> None:
    """If there is room for it, and no more than a quarter of the room is what waits to be digested."""
    assert era_blocks(100) == 68
    assert has_room(free=free, waiting=waiting, nr_blocks=100) is may


def test_a_writeset_is_its_bits_and_their_index() -> None:
    assert [writeset_blocks(bits) for bits in (1, 32576, 32577, 1 << 24)] == [2, 2, 3, 516 + 5 + 1]
