# SPDX-License-Identifier: GPL-2.0-or-later
"""What a failed primary and an interrupt leave behind: nothing suspended, nothing older on top of something newer."""

import pytest

from dmsoft.dm.device import Device
from dmsoft.mirror import plug
from dmsoft.mirror.names import Names
from dmsoft.units import MIB
from tests.vm.rig import NAME, Rig, crash, dmsoft, ok, ours, read, refused, sh, suspended, table, write

pytest_plugins = ("tests.vm.rig",)

SIZE = 40 * MIB
WRITE_BEHIND = ("--mode", "write-behind")


def load(name: str, *lines: str) -> None:
    """Swap the table of a device of the test's own."""
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", name)
    sh("dmsetup", "load", name, data="".join(f"{line}\n" for line in lines).encode())
    sh("dmsetup", "resume", name)


def small(rig: Rig, *words: str, **secondaries: str) -> str:
    """A mirror on small disks; returns the table of the primary's device."""
    path = rig.cut("p0", SIZE)
    linear = sh("dmsetup", "table", "cut-p0-0").strip()
    rig.create(*words, primary=path, **secondaries)
    return linear


def test_a_primary_that_md_dropped_does_not_come_back_older(rig: Rig) -> None:
    sh("modprobe", "dm_flakey")
    # The metadata are elsewhere: a flush of theirs would fail as well, and the era device would pass that on.
    linear = small(rig, *WRITE_BEHIND, "--metadata", rig.cut("c0", 16 * MIB), one=rig.cut("s0", SIZE))
    rig.resync()
    assert rig.states() == {"one": "attached"}
    start, disk = (rig.primary_header().regions["data"].offset + 20 * MIB) // 512, linear.split()[3]
    rest = SIZE // 512 - start
    load("cut-p0-0", f"0 {start} linear {disk} 0", f"{start} {rest} flakey {disk} {start} 0 3600 1 error_writes")
    newest = rig.random(MIB)
    write(rig.top, 20 * MIB, newest)  # no error: it is on the secondary
    load("cut-p0-0", linear)
    assert sh("dmsetup", "status", "m-lower").split()[5] == "AD"
    assert read(rig.top, 20 * MIB, MIB) == newest

    assert rig.status(code=9)["primary"]["state"] == "failed"
    for words in (("resync", NAME), ("stop", NAME), ("remove", NAME, "one", "--yes")):
        assert "its secondaries alone" in refused(6, *words)
    assert read(rig.top, 20 * MIB, MIB) == newest
    ok("destroy", NAME, "--yes")


@pytest.mark.long
def test_a_primary_that_md_dropped_before_a_crash_does_not_come_back_older(rig: Rig) -> None:
    path = rig.cut("p0", SIZE)
    rig.create(*WRITE_BEHIND, primary=path, one=rig.cut("s0", SIZE))
    rig.resync()
    bad = (rig.primary_header().regions["data"].offset + 5 * MIB) // 512
    rig.behave(path, "p0", bad=(bad, 8))
    rig.write(5)
    assert sh("dmsetup", "status", "m-lower").split()[5] == "AD"
    newest = rig.random(MIB)
    write(rig.top, 9 * MIB, newest)
    crash()
    rig.behave(path, "p0")

    for _ in range(2):
        assert [label for label, _ in ok("start", NAME, "--json").json["problems"]] == ["one"]
        assert rig.states(code=9) == {"one": "diverged"}
    refused(8, "resync", NAME, "one")
    place = rig.secondary_header("one").regions["data"].offset + 9 * MIB
    assert read(rig.secondaries["one"], place, MIB) == newest
    # Somebody has chosen.
    ok("remove", NAME, "one", "--yes")
    ok("add", NAME, f"one={rig.secondaries['one']}", "--yes", *WRITE_BEHIND)
    assert rig.resync()["kind"] == "full"
    rig.write(20)
    ok("stop", NAME)
    rig.equal()
    ok("start", NAME)
    assert rig.states() == {"one": "stale"}


@pytest.mark.slow
def test_an_interrupt_when_the_lower_has_just_been_suspended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    small(rig, *WRITE_BEHIND, one=rig.cut("s0", SIZE))
    rig.resync()
    suspend = Device.suspend

    def interrupted(self: Device, *, lockfs: bool = True, flush: bool = True) -> None:
        suspend(self, lockfs=lockfs, flush=flush)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Device, "suspend", interrupted)
        assert dmsoft("remove", NAME, "one", "--yes").code == 130
    assert suspended() == []
    rig.write(3)
    ok("remove", NAME, "one", "--yes")
    assert table("m-lower").startswith("linear ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "down",
    [
        pytest.param(("m",), marks=pytest.mark.long),
        ("m", "m-lower", "m-metadata", "m-metadata-watch", "m-metadata-disk", "m-one"),
    ],
)
def test_what_others_took_down_is_closed(rig: Rig, down: tuple[str, ...]) -> None:
    """As lvm2 does at shutdown, which removes every device that is not in use: the end is as good as one of ours."""
    small(rig, one=rig.cut("s0", SIZE))
    rig.resync()
    rig.write(3)
    for name in down:
        sh("dmsetup", "remove", name)
    assert rig.primary_header().tracker.clean_digest is None
    names = Names(NAME, rig.primary_header().mirror_uuid)
    plug.end(names)  # as if another machine had the disks: what this one did not start is not its own to close
    assert ok("stop", "--all").out == "" and ok("stop", NAME).out == f"{NAME} was not running.\n"
    assert rig.primary_header().tracker.clean_digest is None
    plug.begin(names)
    assert ok("stop", "--all", "--json").json == {"name": NAME, "was_running": False, "closed": True}
    assert ours() == []
    sealed = rig.primary_header().tracker
    assert sealed.clean_digest is not None and sealed.era_floor > 0
    # Nothing is left to be done, and nothing more is said.
    assert ok("stop", "--all").out == ""
    assert ok("stop", NAME).out == f"{NAME} was not running.\n"
    ok("start", NAME)
    assert rig.primary_header().tracker.clean_digest is None
    assert rig.states() == {"one": "stale"} and rig.resync()["kind"] == "incremental"
    rig.equal()
    ok("destroy", NAME, "--yes")
    assert not plug.has_begun(names.mirror_uuid)
