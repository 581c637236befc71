# SPDX-License-Identifier: GPL-2.0-or-later
"""The metadata reader against the running kernel."""

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dmsoft.dm.device import require_targets
from dmsoft.era.errors import EraAheadError
from dmsoft.era.reader import EraReader
from tests.vm.era_bed import ORIGIN_BYTES, EraBed, Program, bits_of, sh

STEPS = int(os.environ.get("DMSOFT_ERA_STEPS", "200"))


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    sh("modprobe", "loop")
    require_targets(["era"])


@pytest.fixture(params=[128])
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EraBed]:
    made = EraBed(tmp_path, request.param)
    try:
        made.start()
        yield made
    finally:
        made.close()


def run_program(bed: EraBed, steps: int) -> None:
    seed = int(os.environ.get("DMSOFT_ERA_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}, {steps} steps, block of {bed.block_bytes} bytes")
    try:
        Program(bed, random.Random(seed)).run(steps)
    finally:
        print("\n".join(bed.log[-200:]))


@pytest.mark.smoke
@pytest.mark.parametrize("bed", [24], indirect=True)
def test_short_random_program(bed: EraBed) -> None:
    run_program(bed, 20)


@pytest.mark.parametrize("bed", [8, 128], indirect=True)
def test_random_program(bed: EraBed) -> None:
    run_program(bed, STEPS // 2)


@pytest.mark.smoke
def test_what_a_buffered_reader_misses(bed: EraBed) -> None:
    """The target writes past the page cache: whoever reads through it stays in the past."""
    with open(bed.metadata, "rb") as buffered:
        before = buffered.read(4096)
        bed.write("direct", 0, 512)
        bed.message("checkpoint")
        buffered.seek(0)
        assert buffered.read(4096) == before
    bed.check([1, 2, 3])
    with EraReader(bed.metadata) as reader:
        assert reader.superblock().current_era == 2
        assert reader.written_since(1).blocks.extents().tolist() == [[0, 1]]


@pytest.mark.smoke
def test_a_table_loaded_before_the_suspend_loses_marks(bed: EraBed) -> None:
    """The kernel's trap: the era goes back. What asks for an era that no longer exists is told so."""
    table = sh("dmsetup", "table", bed.device.name).strip()
    sh("dmsetup", "load", bed.device.name, "--table", table)
    for number in range(3):
        bed.write("direct", number * bed.block_bytes, 512)
        # Through dmsetup: the library refuses it, and rightly.
        sh("dmsetup", "message", bed.device.name, "0", "checkpoint")
    with EraReader(bed.metadata) as reader:
        assert reader.superblock().current_era == 4
        sh("dmsetup", "suspend", bed.device.name)
        sh("dmsetup", "resume", bed.device.name)
        assert reader.superblock().current_era == 2
        assert not reader.written_since(1).blocks
        with pytest.raises(EraAheadError):
            reader.written_since(4)


def test_live_reads_under_load(bed: EraBed) -> None:
    """While writers mark blocks and eras go by, no reading lacks a block that was written before it began."""
    blocks = ORIGIN_BYTES // bed.block_bytes
    done = np.zeros(blocks, np.bool_)
    closed = np.zeros(blocks, np.bool_)
    stop = threading.Event()
    pause = threading.Lock()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)

    def write() -> None:
        descriptor = os.open(bed.device.path, os.O_RDWR | os.O_DSYNC)
        while not stop.is_set():
            with pause:
                block = rng.randrange(blocks)
                os.pwrite(descriptor, b"x" * 512, block * bed.block_bytes)
                done[block] = True
        os.close(descriptor)

    writer = threading.Thread(target=write)
    writer.start()
    reads = since = 0
    try:
        deadline = time.monotonic() + 20
        with EraReader(bed.metadata) as reader:
            while time.monotonic() < deadline:
                if reads % 5 == 0:
                    with pause:
                        bed.message("checkpoint")
                        since = bed.model.era - 1
                        closed, done[:] = done.copy(), False
                wanted = closed | done
                found = bits_of(reader.written_since(since).blocks)
                assert not (wanted & ~found).any(), f"after {reads} readings"
                reads += 1
    finally:
        stop.set()
        writer.join()
    print(f"{reads} readings, {bed.model.era} eras")
    assert reads > 20
