# SPDX-License-Identifier: GPL-2.0-or-later
"""A drained write is not a durable one: the primary is flushed before a secondary's S may move.

Its era metadata lies on another device here. On the primary itself the commits of dm-era would flush the primary's
cache by the way, and hide what is tested.
"""

import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest

from dmsoft.mirror import sample
from dmsoft.mirror.catchup import Run
from dmsoft.mirror.job import Job
from dmsoft.mirror.running import Running
from dmsoft.units import MIB
from tests.vm.rig import NAME, Rig, ok
from tests.vm.write_log import LoggedDisk

pytest_plugins = ("tests.vm.rig",)

SIZE = 40 * MIB
WRITTEN = 5


@pytest.fixture
def primary(rig: Rig) -> Iterator[LoggedDisk]:
    disk = LoggedDisk("volatile", rig.cut("p0", SIZE), rig.disks["s2"], SIZE)
    yield disk
    disk.remove()


def cut_after_promise(rig: Rig, primary: LoggedDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a block written without a flush just before the first barrier of a resync, after the last header write that
    would flush it by the way, and lose the primary's cache at the moment when S has just moved."""
    rig.create("--metadata", rig.disks["c0"], primary=primary.path, one=rig.cut("s0", SIZE))
    rig.write(*range(8))
    rig.resync()
    entries: list[int] = []
    promise, begin = Job.promise, Run.run

    def written(run: Run) -> None:
        fd = os.open(rig.top, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, MIB) as buffer:
            buffer[:] = rig.random(MIB)
            assert os.pwritev(fd, [buffer], WRITTEN * MIB) == MIB
        os.close(fd)
        begin(run)

    def counted(job: Job, era: int, tracker: str, **options: Any) -> None:
        promise(job, era, tracker, **options)
        entries.append(primary.entries())

    # The sample that every start compares would find what is missed, more often than not on so small a disk.
    monkeypatch.setattr(sample, "differing", lambda *_, **__: None)
    with monkeypatch.context() as patch:
        patch.setattr(Job, "promise", counted)
        patch.setattr(Run, "run", written)
        rig.resync()
    rig.equal()
    ok("stop", NAME)
    primary.power_cut(entries[-1], rig.cut("s1", SIZE))
    ok("start", NAME)
    assert rig.resync()["kind"] != "compare"


def test_a_resync_after_a_power_cut_ends_equal(rig: Rig, primary: LoggedDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_after_promise(rig, primary, monkeypatch)
    rig.equal()
    ok("stop", NAME)
    ok("destroy", NAME, "--yes")


@pytest.mark.slow
def test_without_the_flush_the_secondary_keeps_what_the_primary_lost(
    rig: Rig, primary: LoggedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rig can see it: this is the test above with the care taken away."""
    monkeypatch.setattr(Running, "flush_primary", lambda _: None)
    cut_after_promise(rig, primary, monkeypatch)
    assert rig.differing("one") == {WRITTEN}
    ok("stop", NAME)
    ok("destroy", NAME, "--yes")
