# SPDX-License-Identifier: GPL-2.0-or-later
"""What surrounds a mirror fails: /run, /etc and /var are full, the clock jumps, the kernel refuses a table or a resume,
and what dmsoft itself needs lies on the mirror that it holds still."""

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from dmsoft.dm.cookie import Cookie
from dmsoft.dm.device import Device
from dmsoft.dm.helper import Helper
from dmsoft.mirror import attach, final, guard, lower
from dmsoft.mirror.lock import RUN_DIR
from dmsoft.mirror.running import Running
from dmsoft.units import MIB
from tests.vm.rig import NAME, Rig, dmsoft, ok, refused, sh, suspended, table, write

pytest_plugins = ("tests.vm.rig",)
pytestmark = pytest.mark.slow

SIZE = 40 * MIB
VAR = Path("/var")
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


def test_a_full_var(small: Rig) -> None:
    """Nothing of dmsoft's is kept there. What it does is done, whatever becomes of what it says into a file there; of
    an answer that is lost its status tells."""
    filled(VAR, "size=64k")
    with (VAR / "log").open("w") as log:
        argv = [sys.executable, "-m", "dmsoft.cli", "resync", NAME]
        assert subprocess.run(argv, stdout=log, stderr=log, check=False, timeout=60).returncode == 6
    assert not suspended() and not small.stale("one")
    small.equal()
    ok("stop", NAME)
    ok("start", NAME)
    assert small.states() == {"one": "current"}
    sh("umount", VAR)


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


@pytest.mark.kernel_log(allow="raid|I/O error|md")
@pytest.mark.parametrize("proof", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_kernel_refuses_a_resume(rig: Rig, monkeypatch: pytest.MonkeyPatch, proof: bool) -> None:
    """In the middle of the swap: the old table is gone, and the new raid1 cannot read its bitmap. The mirror goes on
    without the secondary, in a proof and in an attach."""
    path = rig.cut("p0", SIZE)
    rig.create("--mode", "write-behind", primary=path, one=rig.cut("s0", SIZE))
    if proof:
        rig.resync()
    rig.write(3)
    slots = rig.primary_header().regions["slots"]
    resume, refusals = guard.resume_watched, 0

    def refused_once(helper: Helper, target: Device) -> Cookie:
        nonlocal refusals
        if refusals:
            return resume(helper, target)
        rig.behave(path, "p0", bad=(slots.offset // 512, slots.length // 512))
        try:
            return resume(helper, target)
        finally:
            refusals += 1
            rig.behave(path, "p0")

    with monkeypatch.context() as patch, rig.writing(span=MIB) as writer:
        for module in (lower, final):
            patch.setattr(module, "resume_watched", refused_once)
        ran = dmsoft("resync", NAME)
    print(f"longest {writer.longest:.1f} s, {ran}")
    assert refusals == 1 and ran.code == 6 and not suspended()
    assert table("m-lower").startswith("linear ")
    assert not proof or 3 in rig.stale("one")
    rig.superset("one")
    rig.resync()
    assert rig.states() == {"one": "attached"}
    ok("stop", NAME)
    rig.equal()


@pytest.mark.long
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


_ROOT = """
mount --make-rprivate /
for each in "$@"; do mount --bind "$POINT$each" "$each" || exit 99; done
cd /
echo 3 >/proc/sys/vm/drop_caches
exec "$PYTHON" -m dmsoft.cli resync m --json
"""


def test_its_programs_lie_on_the_mirror(rig: Rig, tmp_path: Path) -> None:
    """As they do where the root file system is the mirror: whatever a command has not read before the final barrier, it
    could read only after it. So nothing may be looked for in there."""
    rig.create(primary=rig.disks["p0"], one=rig.disks["s0"])
    sh("mkfs.ext4", "-q", "-E", "nodiscard", rig.top)
    point = tmp_path / "root"
    point.mkdir()
    sh("mount", rig.top, point)
    packages = ("click", "crc32c", "dmsoft", "msgspec", "pyudev", "rich", "xxhash")  # numpy alone is as large again
    folders = [Path(os.__file__).parent, *(Path(str(files(each))) for each in packages)]
    program = Path(sys.executable).resolve()
    skipped = shutil.ignore_patterns("test", "tests", "config-*", "idlelib", "lib2to3", "ensurepip", "dist-packages")
    for folder in folders:
        shutil.copytree(folder, f"{point}{folder}", ignore=skipped, symlinks=True)
    Path(f"{point}{program.parent}").mkdir(parents=True, exist_ok=True)
    shutil.copy2(program, f"{point}{program}")
    rig.resync()
    busy = subprocess.Popen(["sh", "-c", "while :; do echo x >>busy; sync busy; done"], cwd=point)
    try:
        argv = ["unshare", "-m", "sh", "-c", _ROOT, "sh", *map(str, (*folders, program))]
        ran = subprocess.run(
            argv, env={**os.environ, "POINT": str(point), "PYTHON": sys.executable}, capture_output=True, check=False,
            timeout=120,
        )  # fmt: skip
        assert ran.returncode == 0 and b"guard" not in ran.stderr, ran
        print(json.loads(ran.stdout.splitlines()[-1]))
    finally:
        busy.kill()
        busy.wait()
    sh("umount", point)
    rig.resync()
    rig.equal()
