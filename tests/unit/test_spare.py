# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading from a secondary what the primary could not give: which blocks it has clean is asked by many threads."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dmsoft.era.blocks import BlockSet
from dmsoft.member.regions import Region
from dmsoft.mirror.decision import Decision
from dmsoft.mirror.spare import Spares, _Spare
from dmsoft.resync.buffers import aligned_buffer
from dmsoft.resync.copy import Side
from dmsoft.units import MIB

BLOCKS = 8
STALE = 5


class OneAtATime:
    """A reader that notices when two threads are in it; block `STALE` was written."""

    def __init__(self) -> None:
        self.inside, self.asked = threading.Lock(), 0

    def written_since(self, era: int) -> SimpleNamespace:
        assert self.inside.acquire(blocking=False), "two threads share its buffers"
        time.sleep(0.002)
        self.asked += 1
        self.inside.release()
        return SimpleNamespace(blocks=BlockSet.from_extents(BLOCKS, [(STALE, 1)]))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "disk"
    path.write_bytes(b"".join(bytes([block]) * MIB for block in range(BLOCKS)))
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    yield fd
    os.close(fd)


def test_threads_take_turns_with_its_own_reader(disk: int) -> None:
    reader = OneAtATime()
    running = SimpleNamespace(
        era_reader=lambda: contextlib.nullcontext(reader), assembly=SimpleNamespace(secondaries={}), block_bytes=MIB,
        data=Region(0, BLOCKS * MIB),
    )  # fmt: skip
    with Spares(cast(Any, running), 9) as spares:
        spares._spares.append(_Spare(Side(disk, 0), Decision("incremental", "", 3)))

        def had(block: int) -> bool:
            view = aligned_buffer(MIB)
            return spares.read(block * MIB, view) and bytes(view) == bytes([block]) * MIB

        with ThreadPoolExecutor(BLOCKS) as pool:
            assert list(pool.map(had, range(BLOCKS))) == [block != STALE for block in range(BLOCKS)]
    assert reader.asked == BLOCKS


def test_without_a_reader_nothing_is_clean(disk: int) -> None:
    running = SimpleNamespace(block_bytes=MIB, data=Region(0, BLOCKS * MIB))
    spares = Spares(cast(Any, running), None)
    spares._spares.append(_Spare(Side(disk, 0), Decision("incremental", "", 3)))
    assert not spares.read(0, aligned_buffer(MIB))
