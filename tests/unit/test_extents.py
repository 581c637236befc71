# SPDX-License-Identifier: GPL-2.0-or-later
"""From stale sets to requests: against a model that looks at one block at a time."""

import itertools
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.era.blocks import BlockSet
from dmsoft.resync import extents
from dmsoft.resync.extents import Request, batches, count, requests, runs, size_bytes
from dmsoft.units import MIB

SECTOR = 512


@st.composite
def block_sets(draw: st.DrawFn, most: int = 6) -> list[BlockSet]:
    """One to ``most`` sets over the same blocks; ends and word boundaries are drawn often."""
    nr = draw(st.integers(1, 200) | st.sampled_from([63, 64, 65, 127, 128, 129]))
    edge = st.sampled_from(sorted({block for block in (0, 1, 62, 63, 64, 65, nr - 2, nr - 1) if 0 <= block < nr}))
    run = st.tuples(edge | st.integers(0, nr - 1), st.integers(1, nr)).map(lambda r: (r[0], min(r[1], nr - r[0])))
    return [
        BlockSet.from_extents(nr, rows) for rows in draw(st.lists(st.lists(run, max_size=6), min_size=1, max_size=most))
    ]


def masks(sets: list[BlockSet]) -> list[int]:
    """The mask of every block, the slow way."""
    return [sum((block in each) << bit for bit, each in enumerate(sets)) for block in range(sets[0].nr_blocks)]


@given(block_sets(), st.sampled_from([64, 128, 1 << 18]))
def test_runs_are_the_union_cut_where_the_targets_change(sets: list[BlockSet], window: int) -> None:
    blocks = enumerate(masks(sets))
    expected = []
    for mask, group in itertools.groupby(blocks, key=lambda item: item[1]):
        numbers = [number for number, _ in group]
        if mask:
            expected.append([numbers[0], len(numbers), mask])
    with mock.patch.object(extents, "_WINDOW", window):
        assert runs(sets).tolist() == expected


@given(block_sets(most=62))
def test_any_number_of_targets_up_to_62(sets: list[BlockSet]) -> None:
    found = [0] * sets[0].nr_blocks
    for first, length, mask in runs(sets).tolist():
        for block in range(first, first + length):
            assert found[block] == 0
            found[block] = mask
    assert found == masks(sets)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[BlockSet], int, int, int]:
    """Sets, block size, data size with a last block that may be short, request size; in bytes."""
    sets = draw(block_sets())
    block = draw(st.integers(1, 40)) * SECTOR
    data = (sets[0].nr_blocks - 1) * block + draw(st.integers(1, block // SECTOR)) * SECTOR
    return sets, block, data, draw(st.integers(1, 100)) * SECTOR


@given(layouts(), st.sampled_from([1, 3, 1 << 12]))
def test_requests_cover_every_stale_byte_once_for_each_target(
    layout: tuple[list[BlockSet], int, int, int], at_a_time: int
) -> None:
    sets, block, data, largest = layout
    with mock.patch.object(extents, "_ROWS", at_a_time):
        made = list(requests(runs(sets), block_bytes=block, data_bytes=data, request_bytes=largest))
    wanted = np.repeat(np.array(masks(sets), np.int64), block // SECTOR)[: data // SECTOR]
    found = np.zeros_like(wanted)
    for request in made:
        assert 0 < request.length <= largest and request.offset % SECTOR == 0 == request.length % SECTOR
        assert request.offset + request.length <= data
        part = found[request.offset // SECTOR : (request.offset + request.length) // SECTOR]
        assert not part.any()
        part[:] = request.targets
    assert np.array_equal(found, wanted)
    assert [r.offset for r in made] == sorted(r.offset for r in made)
    assert count(runs(sets), block_bytes=block, data_bytes=data, request_bytes=largest) == len(made)


@given(layouts())
def test_size_is_what_the_requests_add_up_to(layout: tuple[list[BlockSet], int, int, int]) -> None:
    sets, block, data, largest = layout
    for each in sets:
        made = requests(runs([each]), block_bytes=block, data_bytes=data, request_bytes=largest)
        assert size_bytes(each, block_bytes=block, data_bytes=data) == sum(request.length for request in made)


def test_nothing_stale_is_no_run_and_no_request() -> None:
    empty = BlockSet.empty(100)
    assert runs([empty, empty]).shape == (0, 3)
    assert list(requests(runs([empty]), block_bytes=MIB, data_bytes=100 * MIB, request_bytes=MIB)) == []
    assert size_bytes(empty, block_bytes=MIB, data_bytes=100 * MIB) == 0


def test_a_full_set_with_a_short_last_block() -> None:
    full = BlockSet.full(3)
    data = 2 * MIB + 4096
    assert list(requests(runs([full]), block_bytes=MIB, data_bytes=data, request_bytes=2 * MIB)) == [
        Request(0, 2 * MIB, 1),
        Request(2 * MIB, 4096, 1),
    ]
    assert size_bytes(full, block_bytes=MIB, data_bytes=data) == data


@pytest.mark.parametrize("blocks", [1 << 18, (1 << 18) + 1])
def test_a_large_disk_with_scattered_blocks_stays_cheap(blocks: int) -> None:
    every_other = BlockSet.from_extents(
        blocks, np.column_stack((np.arange(0, blocks, 2), np.ones(-(-blocks // 2), int)))
    )
    rows = runs([every_other, BlockSet.full(blocks)])
    assert len(rows) == blocks and rows[0].tolist() == [0, 1, 3] and rows[1].tolist() == [1, 1, 2]


def test_what_is_made_on_the_way_takes_little_memory() -> None:
    blocks = 1 << 20
    every_other = BlockSet(blocks, bytearray(b"\x55" * (blocks // 8)))
    tracemalloc.start()
    try:
        rows = runs([every_other])
        for _ in requests(rows, block_bytes=MIB, data_bytes=blocks * MIB, request_bytes=MIB):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * rows.nbytes


@given(st.lists(st.integers(1, 16), max_size=300), st.integers(1, 20), st.integers(0, 4))
def test_batches_are_all_of_it_in_order_and_begin_small(lengths: list[int], most: int, rise: int) -> None:
    given = [Request(number * 16, length, 1) for number, length in enumerate(lengths)]
    groups = list(batches(given, batch_bytes=16, most=most, rise=rise))
    assert [request for group in groups for request in group] == given
    for number, group in enumerate(groups):
        assert 1 <= len(group) <= (min(most, 1 + number // rise) if rise else most)
        assert len(group) == 1 or sum(request.length for request in group) <= 16
