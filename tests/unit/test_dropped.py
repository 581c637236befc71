# SPDX-License-Identifier: GPL-2.0-or-later
"""What the raid slots of a primary say after a crash."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmsoft.member import header
from dmsoft.member.regions import SLOTS, slot
from dmsoft.mirror.dropped import says_dropped
from dmsoft.mirror.names import SLOTS_PER_SET
from tests import mirror_model
from tests.journal_model import KEY, RecordedDisk

PRIMARY = mirror_model.primary()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[RecordedDisk]:
    made = RecordedDisk(tmp_path / "primary", b"")
    os.truncate(made.path, mirror_model.SIZE)
    header.write_first(made, PRIMARY, KEY)
    yield made
    made.close()


ALL = (1 << 64) - 1


def note(disk: RecordedDisk, index: int, *, legs: int = 2, failed: int = 0, recovered: int = ALL) -> None:
    block = struct.pack("<4sIIIQQQ", b"DmRd", 0, legs, index % SLOTS_PER_SET, 1, failed, recovered)
    disk.pwrite(block.ljust(4096, b"\0"), slot(PRIMARY, index).offset)


@pytest.mark.parametrize(
    ("slots", "dropped"),
    [
        ({}, False),
        ({0: (2, 0), 1: (2, 0)}, False),
        ({0: (2, 0b01), 1: (2, 0b01)}, False),  # a secondary
        ({0: (2, 0b10), 1: (2, 0)}, True),  # the slot of the leg that failed is not written any more
        ({8: (3, 0b100), 9: (3, 0b100), 0: (2, 0)}, True),
        ({8: (3, 0b010)}, False),
        ({0: (0, 0xFF), 1: (65, 0xFF)}, False),
    ],
)
def test_the_last_leg_is_the_primary(disk: RecordedDisk, slots: dict[int, tuple[int, int]], dropped: bool) -> None:
    for index, (legs, failed) in slots.items():
        note(disk, index, legs=legs, failed=failed)
    assert says_dropped(disk, PRIMARY) is dropped


@pytest.mark.parametrize("bad", range(SLOTS))
def test_a_slot_that_cannot_be_read_hides_no_other(
    disk: RecordedDisk, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in (8, 9):
        note(disk, index, failed=0b10)
    pread = disk.pread

    def broken(length: int, offset: int) -> bytes:
        if offset == slot(PRIMARY, bad).offset:
            raise OSError(5, "bad sector")
        return pread(length, offset)

    monkeypatch.setattr(disk, "pread", broken)
    assert says_dropped(disk, PRIMARY)


@pytest.mark.parametrize(
    ("index", "recovered", "dropped"), [(1, 0, True), (1, 8, True), (0, 8, False), (1, ALL, False)]
)
def test_a_primary_that_was_being_written_anew_is_older(
    disk: RecordedDisk, index: int, recovered: int, dropped: bool
) -> None:
    """As it is after a resume, which has forgotten that it failed."""
    for each in (0, 1):
        note(disk, each, recovered=recovered if each == index else ALL)
    assert says_dropped(disk, PRIMARY) is dropped
