# SPDX-License-Identifier: GPL-2.0-or-later
"""A write-behind secondary's cache device that fails or is full, and a primary with bad places under a raid1."""

from pathlib import Path

import pytest

from dmsoft.units import MIB
from tests.vm.faulty import faulty
from tests.vm.rig import NAME, Rig, dmsoft, ok, read, refused, sh, wait_until, write

pytest_plugins = ("tests.vm.rig",)
pytestmark = [pytest.mark.slow, pytest.mark.kernel_log(allow="I/O error|nbd|writecache|flakey|raid1")]

SIZE = 32 * MIB
BEHIND = ("--mode", "write-behind")


def test_a_cache_that_fails(rig: Rig) -> None:
    """It is here and takes no writes: md drops the leg, the primary goes on, and what the cache held is stale."""
    cache = rig.cut("c0", 16 * MIB)
    rig.create(*BEHIND, "--via", f"writecache:{cache}", primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    with rig.writing(span=MIB) as writer:  # raises at its end if a write failed
        rig.write(10, 11)
        rig.behave(cache, "c0", "error_writes")
        rig.write(12, 13)
        wait_until("md drops the leg", lambda: "D" in sh("dmsetup", "status", "m-lower").split()[5])
    assert writer.longest < 10
    assert rig.secondary("one", code=9)["state"] == "failed"
    assert {10, 11, 12, 13} <= rig.stale("one")
    rig.superset("one")
    before = rig.secondary_header("one").sync.era
    ran = dmsoft("resync", NAME)
    assert ran.code == 6, ran
    rig.superset("one")
    now = rig.secondary_header("one").sync.era
    assert now == before or not rig.differing("one")
    rig.behave(cache, "c0")
    rig.resync()
    assert rig.states() == {"one": "attached"}
    ok("stop", NAME)
    rig.equal()


def test_a_cache_that_is_full(rig: Rig, tmp_path: Path) -> None:
    """Writes go at the disk's pace then; nothing fails and nothing is lost."""
    with faulty(tmp_path, SIZE) as disk:
        cache = rig.cut("c0", 9 * MIB)
        rig.create(*BEHIND, "--via", f"writecache:{cache}", primary=rig.cut("p0", SIZE), one=disk.path)
        try:
            rig.resync()
            assert rig.states() == {"one": "attached"}
            disk.pause = 0.005
            with rig.writing(span=MIB) as writer:
                rig.write(*range(2, 20))
                free = sh("dmsetup", "status", "m-one").split("writecache")[1].split()[2]
            print(f"longest {writer.longest:.1f} s, {writer.count} writes, {free} blocks free")
            disk.mend()
            rig.superset("one")
            assert rig.resync()["kind"] == "incremental"
            assert rig.states() == {"one": "attached"}
        finally:
            disk.mend()
            ok("stop", NAME)
        disk.power_cut()
        rig.equal()


def test_a_bad_place_of_the_primary_under_a_raid1(rig: Rig) -> None:
    """A read of it is answered by the secondary, which waits for what is on its way there. md writes the place anew;
    that fails as well here, and the primary is left out."""
    path = rig.cut("p0", SIZE)
    rig.create(*BEHIND, primary=path, one=rig.cut("s0", SIZE))
    rig.resync()
    newest = rig.random(MIB)
    write(rig.top, 5 * MIB, newest)
    data = rig.primary_header().regions["data"].offset
    rig.behave(path, "p0", bad=((data + 5 * MIB) // 512, 8))
    assert read(rig.top, 5 * MIB, MIB) == newest
    assert sh("dmsetup", "status", "m-lower").split()[5] == "AD"
    rig.behave(path, "p0")
    assert rig.status(code=9)["primary"]["state"] == "failed"
    assert "its secondaries alone" in refused(6, "resync", NAME)
    assert read(rig.top, 5 * MIB, MIB) == newest
    ok("destroy", NAME, "--yes")
