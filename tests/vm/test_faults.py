# SPDX-License-Identifier: GPL-2.0-or-later
"""What surrounds a mirror fails: /run and /etc are full, the clock jumps, the kernel refuses a table, and what dmsoft
itself needs lies on the mirror that it holds still."""

import datetime
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmsoft.mirror import attach
from dmsoft.mirror.lock import RUN_DIR
from dmsoft.mirror.running import Running
from dmsoft.units import MIB
from tests.vm.rig import NAME, Rig, dmsoft, ok, refused, sh, suspended, table, write

pytest_plugins = ("tests.vm.rig",)
pytestmark = pytest.mark.slow

SIZE = 40 * MIB
_MIRRORS = Path("/etc/dmsoft/mirrors")


@pytest.fixture
def small(rig: Rig) -> Rig:
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    rig.write(3)
    return rig


@pytest.fixture
def clock() -> Iterator[None]:
    """The time of day is put right afterwards."""
    wall, since = time.time(), time.monotonic()
    yield
    time.clock_settime(time.CLOCK_REALTIME, wall + time.monotonic() - since)


def filled(folder: Path, options: str) -> None:
    """A file system of its own on that folder, with no room left."""
    folder.mkdir(parents=True, exist_ok=True)
    sh("mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "full", folder)
    with (folder / "ballast").open("wb") as file:
        while True:
            try:
                file.write(bytes(65536))
                file.flush()
            except OSError:
                return


def test_full_folders(small: Rig) -> None:
    """Without room in /run and /etc everything goes on; where not even a lock can be made nothing is begun."""
    filled(RUN_DIR, "size=64k")
    filled(_MIRRORS, "size=64k")
    assert small.resync()["kind"] == "incremental"
    small.equal()
    ok("stop", NAME)
    ok("start", NAME)
    assert small.states() == {"one": "current"}
    small.write(4)
    sh("umount", RUN_DIR)
    sh("mount", "-t", "tmpfs", "-o", "nr_inodes=1", "full", RUN_DIR)
    assert "no folder that only root may write" in refused(6, "resync", NAME)
    RUN_DIR.chmod(0o755)
    assert "cannot be made" in refused(6, "resync", NAME)
    write(small.top, 5 * MIB, small.random(MIB))
    sh("umount", RUN_DIR)
    sh("umount", _MIRRORS)
    assert small.stale("one") == {4, 5}
    small.resync()
    small.equal()


@pytest.mark.parametrize("years", [-30, 30])
def test_the_clock_jumps(small: Rig, clock: None, years: int) -> None:
    """Eras count, not times: no block more or less is copied, nothing waits for a time, and no age is negative."""
    started = time.monotonic()
    before = small.secondary("one")
    time.clock_settime(time.CLOCK_REALTIME, time.time() + years * 365 * 86400)
    assert small.stale("one") == {3}
    assert (small.secondary("one")["lag_seconds"] or 0) >= 0
    done = small.resync()
    assert (done["kind"], done["bytes_copied"]) == ("incremental", MIB)
    after = small.secondary("one")
    assert after["consistent_as_of"] != before["consistent_as_of"] and (after["lag_seconds"] or 0) >= 0
    year = datetime.datetime.fromisoformat(after["consistent_as_of"]).year
    assert abs(year - datetime.datetime.fromisoformat(before["consistent_as_of"]).year) >= 29
    small.equal()
    assert time.monotonic() - started < 120


@pytest.mark.kernel_log(allow="raid")
def test_the_kernel_refuses_a_table(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The raid1 that a proof puts in place of the old one: the mirror goes on as it was, and the next try is good."""
    rig.create("--mode", "write-behind", primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    rig.write(3)
    zeroed = attach._zero_slots

    def spoiled(running: Running, slot_set: int, legs: int) -> None:
        zeroed(running, slot_set, legs)
        # A superblock of an array of another shape.
        from dmsoft.member.regions import slot
        from dmsoft.mirror.names import SLOTS_PER_SET

        bad = (b"DmRd" + (1).to_bytes(4, "little") + (7).to_bytes(4, "little")).ljust(4096, b"\xff")
        running.primary.pwrite(bad, slot(running.payload, slot_set * SLOTS_PER_SET).offset)

    with monkeypatch.context() as patch, rig.writing() as writer:
        patch.setattr(attach, "_zero_slots", spoiled)
        ran = dmsoft("resync", NAME)
        assert ran.code == 6 and "could not load m-lower" in ran.err
    assert writer.count and not suspended()
    assert table("m-lower").startswith("raid ") and rig.states() == {"one": "attached"}
    rig.superset("one")
    rig.resync()
    assert rig.states() == {"one": "attached"}
    ok("stop", NAME)
    rig.equal()


def test_what_dmsoft_needs_lies_on_the_mirror(small: Rig, tmp_path: Path) -> None:
    """Its locks, its keys and its working directory, on a file system that the final barrier freezes."""
    sh("mkfs.ext4", "-q", "-E", "nodiscard", small.top)
    point = tmp_path / "mnt"
    point.mkdir()
    sh("mount", small.top, point)
    for folder in (RUN_DIR, Path("/etc/dmsoft")):
        there = point / folder.parent.name
        there.mkdir(parents=True)
        sh("cp", "-a", f"{folder}/.", there)
        sh("mount", "--bind", there, folder)
    here = os.getcwd()
    os.chdir(point)
    busy = subprocess.Popen(["sh", "-c", "while :; do echo x >>busy; sync busy; done"], cwd=point)
    try:
        for _ in range(3):
            small.resync()
            assert not suspended()
    finally:
        busy.kill()
        busy.wait()
        os.chdir(here)
    for folder in (Path("/etc/dmsoft"), RUN_DIR):
        sh("umount", folder)
    sh("umount", point)
    small.resync()
    small.equal()
    sh("fsck.ext4", "-fn", small.top)
