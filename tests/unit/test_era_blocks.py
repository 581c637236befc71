# SPDX-License-Identifier: GPL-2.0-or-later
"""Block sets against Python's own sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.era.blocks import BlockSet

# Sizes around words and around the parts in which long sets are handled.
SIZES = st.sampled_from([0, 1, 63, 64, 65, 128, 1000, 4096, 70000])
LARGE = 3 * (1 << 21) + 17


@st.composite
def sets(draw: st.DrawFn, size: int | None = None) -> tuple[int, set[int]]:
    nr = draw(SIZES) if size is None else size
    members: set[int] = set()
    if nr:
        for first, count in draw(st.lists(st.tuples(st.integers(0, nr - 1), st.integers(1, 200)), max_size=20)):
            members.update(range(first, min(first + count, nr)))
    return nr, members


def runs(members: set[int]) -> list[list[int]]:
    """The extents of ``members``, counted one by one."""
    rows: list[list[int]] = []
    for block in sorted(members):
        if rows and sum(rows[-1]) == block:
            rows[-1][1] += 1
        else:
            rows.append([block, 1])
    return rows


def block_set(nr: int, members: set[int]) -> BlockSet:
    return BlockSet.from_extents(nr, [(block, 1) for block in members])


@given(sets())
def test_extents_and_count(case: tuple[int, set[int]]) -> None:
    nr, members = case
    blocks = block_set(nr, members)
    assert blocks.extents().tolist() == [list(run) for run in blocks.runs()] == runs(members)
    assert blocks.extents().dtype == np.int64 and blocks.extents().shape[1] == 2
    assert blocks.count() == len(members)
    assert bool(blocks) == bool(members)
    assert BlockSet.from_extents(nr, blocks.extents()) == blocks
    assert all(block in blocks for block in members)
    assert {block for block in range(-2, min(nr, 1000) + 65) if block in blocks} == {b for b in members if b < 1065}


@given(st.data(), SIZES)
def test_operations(data: st.DataObject, nr: int) -> None:
    (_, left), (_, right) = data.draw(sets(nr)), data.draw(sets(nr))
    a, b = block_set(nr, left), block_set(nr, right)
    assert a | b == block_set(nr, left | right)
    assert a & b == block_set(nr, left & right)
    assert a - b == block_set(nr, left - right)
    assert a.issubset(b) == (left <= right)
    assert (a & b).issubset(a) and a.issubset(a | b)
    assert a == block_set(nr, left), "an operand was changed"
    a |= b
    assert a == block_set(nr, left | right)


@given(st.data(), st.sampled_from([1, 64, 65, 1000, 70000]))
def test_ranges(data: st.DataObject, nr: int) -> None:
    extents = data.draw(st.lists(st.tuples(st.integers(0, nr), st.integers(0, nr)), max_size=12))
    extents = [(first, min(count, nr - first)) for first, count in extents]
    blocks, members = BlockSet.empty(nr), set[int]()
    for first, count in extents:
        blocks.add_range(first, count)
        members.update(range(first, first + count))
    assert blocks.extents().tolist() == runs(members)
    assert BlockSet.from_extents(nr, extents) == blocks
    assert BlockSet.from_extents(nr, np.array(extents, np.int64).reshape(-1, 2)) == blocks


def test_runs_across_parts() -> None:
    blocks = BlockSet.empty(LARGE)
    blocks.add_range(5, (1 << 21) - 5)
    blocks.add_range((1 << 21) + 1, (1 << 22) - 10)
    blocks.add_range(LARGE - 1, 1)
    assert blocks.extents().tolist() == [[5, (1 << 21) - 5], [(1 << 21) + 1, (1 << 22) - 10], [LARGE - 1, 1]]
    assert BlockSet.full(LARGE).extents().tolist() == [[0, LARGE]]
    assert BlockSet.full(LARGE).count() == LARGE
    assert BlockSet.empty(LARGE).extents().shape == (0, 2)


def test_full_has_no_bit_behind_its_end() -> None:
    assert int.from_bytes(BlockSet.full(65).bits, "little") == (1 << 65) - 1
    assert (BlockSet.full(65) - BlockSet.empty(65)).count() == 65


def test_a_copy_is_its_own() -> None:
    blocks = BlockSet.empty(10)
    copy = blocks.copy()
    copy.add_range(3, 2)
    assert not blocks and copy.count() == 2


@pytest.mark.parametrize("extent", [(-1, 1), (0, 11), (10, 1), (5, -1), (1 << 62, 1 << 62)])
def test_outside(extent: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        BlockSet.from_extents(10, [extent])
    with pytest.raises(ValueError):
        BlockSet.empty(10).add_range(*extent)


def test_sizes_must_match() -> None:
    a, b = BlockSet.empty(64), BlockSet.empty(65)
    for operation in (lambda: a | b, lambda: a & b, lambda: a - b, lambda: a.issubset(b)):
        with pytest.raises(ValueError):
            operation()
    assert a != b


@given(sets(), st.data())
def test_windows(case: tuple[int, set[int]], data: st.DataObject) -> None:
    nr, members = case
    first = 64 * data.draw(st.integers(0, nr // 64))
    count = data.draw(st.integers(0, nr - first))
    seen = block_set(nr, members).window(first, count)
    assert seen.nr_blocks == count
    assert {first + block for begin, length in seen.runs() for block in range(begin, begin + length)} == {
        block for block in members if first <= block < first + count
    }


@pytest.mark.parametrize(("first", "count"), [(1, 1), (-64, 64), (64, 37), (128, 0), (0, -1)])
def test_no_window(first: int, count: int) -> None:
    with pytest.raises(ValueError, match="window"):
        BlockSet.full(100).window(first, count)
