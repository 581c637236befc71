# SPDX-License-Identifier: GPL-2.0-or-later
"""The sample: which places are compared, and what a difference there means."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsoft.era.blocks import BlockSet
from dmsoft.mirror import sample
from dmsoft.resync.copy import Side
from dmsoft.units import KIB, MIB

ALIGNMENT = 4096


def touched(place: tuple[int, int], block_bytes: int) -> range:
    offset, length = place
    return range(offset // block_bytes, (offset + length - 1) // block_bytes + 1)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[BlockSet, int, int, int]:
    block = draw(st.sampled_from([4 * KIB, 12 * KIB, 64 * KIB, 100 * KIB, MIB, 4 * MIB]))
    data = draw(st.integers(1, 2048)) * ALIGNMENT
    blocks = -(-data // block)
    runs = st.tuples(st.integers(0, blocks - 1), st.integers(1, blocks)).map(lambda r: (r[0], min(r[1], blocks - r[0])))
    return BlockSet.from_extents(blocks, draw(st.lists(runs, max_size=4))), block, data, draw(st.integers())


@given(shapes())
def test_places_are_clean_aligned_and_inside(shape: tuple[BlockSet, int, int, int]) -> None:
    stale, block, data, seed = shape
    found = sample.places(stale, block_bytes=block, data_bytes=data, chance=random.Random(seed))
    for offset, length in found:
        assert offset % ALIGNMENT == 0 == length % ALIGNMENT and length > 0 and offset + length <= data
        assert not any(number in stale for number in touched((offset, length), block))
    assert found == sorted(set(found))


@given(st.sampled_from([4 * KIB, 100 * KIB, MIB]), st.integers(1, 2048).map(lambda n: n * ALIGNMENT), st.integers())
def test_of_a_clean_disk_both_ends_are_compared_to_the_last_byte(block: int, data: int, seed: int) -> None:
    clean = BlockSet.empty(-(-data // block))
    found = sample.places(clean, block_bytes=block, data_bytes=data, chance=random.Random(seed))
    covered = {at for offset, length in found for at in range(offset, offset + length, ALIGNMENT)}
    assert covered >= set(range(0, min(MIB, data), ALIGNMENT))
    assert covered >= set(range(max(0, data - MIB), data, ALIGNMENT))


@settings(max_examples=20)
@given(st.integers())
def test_the_random_places_lie_all_over_the_disk(seed: int) -> None:
    """Drawn 30 times, 16 at a time: no quarter of the disk goes without."""
    blocks, chance = 4096, random.Random(seed)
    clean, quarters = BlockSet.empty(blocks), [0] * 4
    for _ in range(30):
        for offset, _length in sample.places(clean, block_bytes=MIB, data_bytes=blocks * MIB, chance=chance):
            if MIB <= offset < (blocks - 1) * MIB:
                quarters[4 * offset // (blocks * MIB)] += 1
    assert min(quarters) > sum(quarters) / 8, quarters


def test_a_disk_that_is_stale_all_over_has_nothing_to_compare() -> None:
    full = BlockSet.full(64)
    assert sample.places(full, block_bytes=MIB, data_bytes=64 * MIB, chance=random.Random(1)) == []


Compare = Callable[..., int | None]


@pytest.fixture
def compare(tmp_path: Path, seed: int) -> Compare:
    """Compare two files of 8 MiB; ``at``: bytes of the second that differ. Data begins at 1 MiB."""
    data = random.Random(seed).randbytes(8 * MIB)

    def run(at: list[int], *, stale: list[tuple[int, int]], later: list[tuple[int, int]] | None = None) -> int | None:
        other = bytearray(data)
        for offset in at:
            other[offset] ^= 1
        fds = []
        for name, content in (("one", data), ("two", bytes(other))):
            path = tmp_path / name
            path.write_bytes(bytes(MIB) + content)
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECT))
        try:
            before = BlockSet.from_extents(128, stale)
            now = before if later is None else BlockSet.from_extents(128, later)
            return sample.differing(
                Side(fds[0], MIB), Side(fds[1], MIB), before, block_bytes=64 * KIB, data_bytes=8 * MIB,
                now_stale=lambda: now, chance=random.Random(seed),
            )  # fmt: skip
        finally:
            for fd in fds:
                os.close(fd)

    return run


@pytest.mark.parametrize("at", [0, MIB - 1, 7 * MIB, 8 * MIB - 1])
def test_a_changed_byte_at_either_end_is_found(compare: Compare, at: int) -> None:
    found = compare([at], stale=[])
    assert found is not None and found <= at < found + 64 * KIB


def test_equal_disks_are_equal(compare: Compare) -> None:
    assert compare([], stale=[(3, 4)]) is None


def test_what_is_known_to_be_stale_may_differ(compare: Compare) -> None:
    assert compare([0, 64 * KIB], stale=[(0, 2)]) is None


def test_a_block_written_between_the_two_reads_is_no_difference(compare: Compare) -> None:
    assert compare([0], stale=[], later=[(0, 1)]) is None
    assert compare([0, 64 * KIB], stale=[], later=[(0, 1)]) == 64 * KIB


def test_a_disk_that_cannot_be_read_raises(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(64 * KIB))
    fd = os.open(tmp_path / "short", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="end of the device"):
            sample.differing(
                Side(fd, 0), Side(fd, 0), BlockSet.empty(128), block_bytes=64 * KIB, data_bytes=8 * MIB,
                now_stale=lambda: BlockSet.empty(128), chance=random.Random(1),
            )  # fmt: skip
    finally:
        os.close(fd)
