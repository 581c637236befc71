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
from dmsoft.era.errors import EraAheadError, EraBusyError
from dmsoft.era.reader import EraReader
from tests.era_history import Step, Write
from tests.vm.era_bed import ORIGIN_BYTES, LoopBed, Program, bits_of, sh

READINGS = 25


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    sh("modprobe", "loop")
    require_targets(["era"])


@pytest.fixture(params=[64 << 10])
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopBed]:
    made = LoopBed(tmp_path, request.param)
    try:
        made.do(Step("start"))
        yield made
    finally:
        made.close()


def run_program(bed: LoopBed, seed: int, steps: int) -> None:
    print(f"seed {seed}, {steps} steps, block of {bed.block_bytes} bytes")
    program = Program(bed, seed)
    program.history.apply(Step("start"))
    try:
        program.run(steps)
    finally:
        print("\n".join(program.log[-100:]))


@pytest.mark.smoke
@pytest.mark.parametrize("bed", [12 << 10], indirect=True)
def test_short_random_program(bed: LoopBed, seed: int) -> None:
    run_program(bed, seed, 20)


@pytest.mark.parametrize("bed", [4 << 10, pytest.param(64 << 10, marks=pytest.mark.long)], indirect=True)
def test_random_program(bed: LoopBed, seed: int) -> None:
    run_program(bed, seed, 100)


@pytest.mark.long
@pytest.mark.parametrize("bed", [4 << 10, 24 << 10, 64 << 10, 1 << 20], indirect=True)
def test_long_random_program(bed: LoopBed, seed: int) -> None:
    run_program(bed, seed, 300)


@pytest.mark.smoke
def test_what_a_buffered_reader_misses(bed: LoopBed) -> None:
    """The target writes past the page cache: whoever reads through it stays in the past."""
    with open(bed.metadata, "rb") as buffered:
        before = buffered.read(4096)
        bed.write(Write("direct", 0, 512))
        bed.device.message("checkpoint")
        buffered.seek(0)
        assert buffered.read(4096) == before
    with EraReader(bed.metadata) as reader:
        assert reader.superblock().current_era == 2
        assert reader.written_since(1).blocks.extents().tolist() == [[0, 1]]


@pytest.mark.smoke
def test_a_table_loaded_before_the_suspend_loses_marks(bed: LoopBed) -> None:
    """The kernel's trap: the era goes back. What asks for an era that no longer exists is told so."""
    table = sh("dmsetup", "table", bed.device.name).strip()
    sh("dmsetup", "load", bed.device.name, "--table", table)
    for number in range(3):
        bed.write(Write("direct", number * bed.block_bytes, 512))
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


@pytest.mark.smoke
def test_no_limit_makes_discards_safe(bed: LoopBed) -> None:
    """Why there is no option for them: cut to single blocks, a discard across a border still marks one side alone."""
    if not bed.takes_discards():  # 5.10 complains about one here; `test_discards_are_refused` has some that it takes
        assert os.uname().release.startswith("5.10.")
        return
    limit = Path(f"/sys/dev/block/{bed.device.number}/queue/discard_max_bytes")
    limit.write_text(str(bed.block_bytes))
    border, page = 8 * bed.block_bytes, 4096
    bed.write(Write("discard", border - page, 2 * page))
    with EraReader(bed.metadata) as reader:
        assert reader.written_since(1).blocks.extents().tolist() == [[7, 1]]
        bed.do(Step("checkpoint"))
        bed.write(Write("discard", border - page, 4 * bed.block_bytes))
        # Of five blocks touched, the last.
        assert reader.written_since(2).blocks.extents().tolist() == [[7, 4]]
    # And the limit is gone with the next table.
    bed.do(Step("resize", blocks=bed.blocks))
    assert int(limit.read_text()) > bed.block_bytes


def test_live_reads_under_load(bed: LoopBed, seed: int) -> None:
    """While writers mark blocks and eras go by, no reading lacks a block that was written before it began."""
    blocks = ORIGIN_BYTES // bed.block_bytes
    done = np.zeros(blocks, np.bool_)
    closed = np.zeros(blocks, np.bool_)
    stop = threading.Event()
    pause = threading.Lock()
    rng = random.Random(seed)

    failed: list[OSError] = []

    def write() -> None:
        descriptor = os.open(bed.device.path, os.O_RDWR | os.O_DSYNC)
        try:
            while not stop.is_set():
                with pause:
                    block = rng.randrange(blocks)
                    os.pwrite(descriptor, b"x" * 512, block * bed.block_bytes)
                    done[block] = True
        except OSError as err:
            failed.append(err)
        finally:
            os.close(descriptor)

    writer = threading.Thread(target=write)
    writer.start()
    reads, busy, since, era = 0, 0, 0, 1
    try:
        deadline = time.monotonic() + 60
        with EraReader(bed.metadata) as reader:
            while reads < READINGS and time.monotonic() < deadline:
                if reads % 5 == 0:
                    with pause:
                        bed.device.message("checkpoint")
                        since, era = era, era + 1
                        closed, done[:] = done.copy(), False
                wanted = closed | done
                try:
                    found = bits_of(reader.written_since(since).blocks)
                except EraBusyError:
                    # Where the processor is emulated, a write may mark a block for each that is read.
                    busy += 1
                    continue
                assert not (wanted & ~found).any(), f"after {reads} readings"
                reads += 1
    finally:
        stop.set()
        writer.join()
    print(f"{reads} readings, {busy} given up, {era} eras")
    assert reads == READINGS and not failed
