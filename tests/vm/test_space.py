# SPDX-License-Identifier: GPL-2.0-or-later
"""The metadata have room for the worst that mirrors do to them, and barriers wait before it gets worse.

The worst: every era leaves a bit in each block of the era array, so that its digestion copies the whole array; as many
eras wait to be digested as the rule for barriers allows; somebody holds a metadata snapshot, which pins a third array.
"""

import mmap
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dmsoft.dm.status import EraStatus
from dmsoft.dm.targets import Era, Zero
from dmsoft.doctor.bed import Bed
from dmsoft.era.layout import array_capacity
from dmsoft.era.reader import EraReader
from dmsoft.era.sizing import has_room, metadata_bytes, writeset_blocks
from dmsoft.mirror.observe import _FILL_WARNING
from dmsoft.mirror.running import node_path
from dmsoft.units import KIB, sectors
from tests.vm.rig import sh

pytest_plugins = ("tests.vm.rig",)

BLOCK = 4 * KIB
NR_BLOCKS = 1024 * 1024


class Worst:
    """An era device over some GiB of nothing, on metadata of the size that dmsoft gives them."""

    def __init__(self, bed: Bed, nr_blocks: int, seed: int) -> None:
        self.nr_blocks = nr_blocks
        self.metadata = node_path(bed.ram(metadata_bytes(nr_blocks)))
        data = bed.make("zero", nr_blocks * BLOCK, Zero())
        self.era = bed.make("space", nr_blocks * BLOCK, Era(self.metadata, str(data.path), sectors(BLOCK)))
        self.chance = random.Random(seed)
        self.peak = 0

    def status(self) -> EraStatus:
        (line,) = self.era.status()
        status = EraStatus.parse(line.text)
        assert not status.failed
        self.peak = max(self.peak, status.used)
        return status

    def waiting(self) -> int:
        with EraReader(self.metadata) as reader:
            return sum(map(writeset_blocks, reader.undigested()))

    def may_roll(self) -> bool:
        status = self.status()
        return has_room(free=status.total - status.used, waiting=self.waiting(), nr_blocks=self.nr_blocks)

    def scatter(self, count: int) -> None:
        """Write ``count`` blocks, all in different blocks of the array if there are as many."""
        step = array_capacity(4)
        arrays = range(0, self.nr_blocks, step)
        chosen = self.chance.sample(arrays, min(count, len(arrays)))
        places = [min(at + self.chance.randrange(step), self.nr_blocks - 1) for at in chosen]
        with mmap.mmap(-1, BLOCK) as buffer, ThreadPoolExecutor(16) as pool:
            fd = os.open(self.era.path, os.O_WRONLY | os.O_DIRECT)
            try:
                done = list(pool.map(lambda block: os.pwritev(fd, [buffer], block * BLOCK), places))
            finally:
                os.close(fd)
        assert set(done) == {BLOCK}

    def digest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.waiting():
            self.status()
            assert time.monotonic() < deadline, "not digested in time"
            time.sleep(0.02)


def _worst(nr_blocks: int, eras: int, writes: int, seed: int) -> None:
    sh("modprobe", "dm_era")
    with Bed() as bed:
        worst = Worst(bed, nr_blocks, seed)
        total, idle = worst.status().total, worst.status().used
        worst.era.message("take_metadata_snap")
        most = held_up = 0
        for _ in range(eras):
            worst.scatter(writes)
            most = max(most, worst.waiting())
            while not worst.may_roll():
                held_up += 1
                time.sleep(0.02)
            worst.era.message("checkpoint")
        worst.digest(300)
        worst.era.message("drop_metadata_snap")
        print(
            f"{nr_blocks} blocks: {total} metadata blocks, {idle} used at first, peak {worst.peak} "
            f"({100 * worst.peak / total:.0f} %), {most} in waiting writesets at most, held up {held_up} times"
        )
        # Neither is the warning given, nor is it anywhere near full.
        assert worst.peak < _FILL_WARNING * total
        assert worst.status().used < total // 2


@pytest.mark.long
def test_the_metadata_have_room_for_the_worst(seed: int) -> None:
    _worst(NR_BLOCKS, 30, 16, seed)


@pytest.mark.long
@pytest.mark.parametrize(
    ("nr_blocks", "eras", "writes"),
    [(NR_BLOCKS // 8, 60, 1000), (2 * NR_BLOCKS, 120, 100)],
)
def test_the_metadata_have_room_for_the_worst_at_length(nr_blocks: int, eras: int, writes: int, seed: int) -> None:
    """Few blocks that are all copied in each era, and many whose eras pile up."""
    _worst(nr_blocks, eras, writes, seed)
