# SPDX-License-Identifier: GPL-2.0-or-later
"""A write-behind mirror that goes on without its primary: what its secondaries alone have is never overwritten by what
the primary had before, whatever the machine forgets, and can be got back."""

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmsoft.dm.device import Device
from dmsoft.member import header
from dmsoft.mirror import locate, lower
from dmsoft.mirror.running import Running, guard_of
from dmsoft.units import MIB
from tests import features
from tests.vm.monitor_bed import monitoring
from tests.vm.owner import start
from tests.vm.rig import NAME, Rig, crash, dmsoft, ok, read, refused, sh, suspended, table, wait_until, write

pytest_plugins = ("tests.vm.rig",)

SIZE = 40 * MIB
WRITE_BEHIND = ("--mode", "write-behind")
AT = 9 * MIB


def health() -> str:
    """md's letters for the legs, secondaries first."""
    return sh("dmsetup", "status", "m-lower").split()[5]


def unplug_primary(rig: Rig) -> bytes:
    """Unplug the primary while one place of the mirror is written without a pause; returns what is acknowledged after.

    md has to meet the loss by a write to the data. By one to its own notes, which it keeps on the primary for all legs,
    it would take it for the loss of the secondary, and fail every write.
    """
    fd = os.open(rig.top, os.O_RDWR | os.O_DIRECT)
    thread = threading.Thread(target=rig.disks.unplug, args=("small0",))
    try:
        with mmap.mmap(-1, 4096) as buffer:
            for _ in range(20):
                os.pwritev(fd, [buffer], AT)
            thread.start()
            while thread.is_alive():
                os.pwritev(fd, [buffer], AT)
            os.pwritev(fd, [buffer], AT)
    finally:
        thread.join()
        os.close(fd)
    assert health() == "AD"
    newest = rig.random(MIB)
    write(rig.top, AT, newest)
    return newest


def fail_primary(rig: Rig) -> bytes:
    """A primary that fails one write and is well again; returns what since then only the secondary has."""
    path = rig.cut("p0", SIZE)
    rig.create(*WRITE_BEHIND, primary=path, one=rig.cut("s0", SIZE))
    rig.resync()
    rig.behave(path, "p0", bad=((rig.primary_header().regions["data"].offset + 5 * MIB) // 512, 8))
    rig.write(5)
    assert health() == "AD"
    newest = rig.random(MIB)
    write(rig.top, AT, newest)
    rig.behave(path, "p0")
    return newest


@contextlib.contextmanager
def slow_recovery() -> Iterator[None]:
    """md makes nearly no way with what it writes anew."""
    limits = {Path("/proc/sys/dev/raid") / name: "1" for name in ("speed_limit_min", "speed_limit_max")}
    before = {path: path.read_text() for path in limits}
    try:
        for path, limit in limits.items():
            path.write_text(limit)
        yield
    finally:
        for path, text in reversed(before.items()):
            path.write_text(text)


def copies(path: str) -> list[object]:
    """What both copies of the header on a disk say."""
    return [copy.payload for copy in header.read(path).copies]


@pytest.mark.slow
@pytest.mark.parametrize("separate", [pytest.param(True, marks=pytest.mark.long, id="elsewhere"), False])
def test_a_primary_that_was_unplugged_does_not_come_back_older(rig: Rig, tmp_path: Path, separate: bool) -> None:
    options = ("--metadata", str(rig.disks["c0"])) if separate else ()
    rig.create(*WRITE_BEHIND, *options, primary=str(rig.disks["small0"]), one=rig.cut("s0", 32 * MIB))
    rig.resync()
    rig.write(9)  # so that it is marked: without its record the mirror takes writes to no other block
    before = rig.secondary_header("one").generation
    with monitoring(tmp_path) as monitor:
        newest = unplug_primary(rig)
        monitor.wait_for("secondary-alone", label="one")
        monitor.wait_for("alert-raised", code="primary-left-out")
        view = rig.status(code=9)
        assert [alert["code"] for alert in view["alerts"]][:2] == ["primary-missing", "primary-left-out"]
        marked = rig.secondary_header("one")
        assert marked.generation[:-1] == before and copies(rig.secondaries["one"]) == [marked, marked]
        for verb in ("stop", "resync"):
            wait_until("the daemon lets it", lambda verb=verb: dmsoft(verb, NAME).code != 10)
            assert "its secondaries alone" in refused(6, verb, NAME)
        monitor.kill()
        monitor.start()
        monitor.wait_for("secondary-alone", 2, label="one")
        assert rig.secondary_header("one") == marked
    crash()

    rig.disks.replug("small0")
    for _ in range(2):
        assert [label for label, _ in ok("start", NAME, "--json").json["problems"]] == ["one"]
        one = rig.secondary("one", code=9)
        assert (one["state"], one["reason"]) == ("diverged", "it has what was written while the primary was left out")
    assert "what was written while the primary was left out" in refused(8, "resync", NAME, "one")
    assert dmsoft("resync", NAME).code == 8
    with monitoring(tmp_path) as monitor:
        monitor.wait_for("alert-raised", code="secondary-diverged")
    assert read(rig.top, AT, MIB) != newest
    get_back(rig, newest)


def get_back(rig: Rig, newest: bytes) -> None:
    """As dmsoft(8) has it: the secondary's data onto the mirror, then the secondary anew."""
    data = rig.secondary_header("one").regions["data"]
    where = f"0 {data.length // 512} linear {rig.secondaries['one']} {data.offset // 512}"
    sh("dmsetup", "create", "newer", "--readonly", "--table", where)
    assert read("/dev/mapper/newer", AT, MIB) == newest
    sh("dd", "if=/dev/mapper/newer", f"of={rig.top}", "bs=1M", "iflag=direct", "oflag=direct", "conv=fsync")
    sh("dmsetup", "remove", "--retry", "newer")
    assert read(rig.top, AT, MIB) == newest
    ok("remove", NAME, "one", "--yes")
    ok("add", NAME, f"one={rig.secondaries['one']}", "--yes", *WRITE_BEHIND)
    assert rig.resync()["kind"] == "full"
    assert rig.states() == {"one": "attached"} and table("m-lower").startswith("raid ")
    ok("stop", NAME)
    rig.equal()


@pytest.mark.slow
def test_a_start_hears_the_raid1_that_others_left(rig: Rig) -> None:
    """Nobody ran a verb, there is no daemon, and only the top was removed."""
    options = ("--metadata", str(rig.disks["c0"]))
    rig.create(*WRITE_BEHIND, *options, primary=str(rig.disks["small0"]), one=rig.cut("s0", 32 * MIB))
    rig.resync()
    newest = unplug_primary(rig)
    sh("dmsetup", "remove", "--retry", NAME)
    rig.disks.replug("small0")
    ok("start", NAME)
    assert rig.states(code=9) == {"one": "diverged"}
    assert dmsoft("resync", NAME).code == 8
    get_back(rig, newest)


@pytest.mark.long
def test_secondaries_that_go_on_alone_share_a_generation(rig: Rig) -> None:
    """A primary that is here and failed one write: its slots tell as well. One that md dropped is not newer."""
    path = rig.cut("p0", SIZE)
    cuts = {label: rig.cut(disk, SIZE) for label, disk in (("one", "s0"), ("two", "s1"), ("old", "s2"))}
    rig.create(*WRITE_BEHIND, primary=path, **cuts)
    rig.resync()
    rig.behave(cuts["old"], "s2", bad=((rig.secondary_header("old").regions["data"].offset + 3 * MIB) // 512, 8))
    rig.write(3)
    rig.behave(path, "p0", bad=((rig.primary_header().regions["data"].offset + 5 * MIB) // 512, 8))
    rig.write(5)
    assert sorted(health()) == ["A", "A", "D", "D"]
    newest = rig.random(MIB)
    write(rig.top, AT, newest)
    before = {label: rig.secondary_header(label) for label in cuts}
    refused(6, "resync", NAME, "--dry-run")
    assert {label: rig.secondary_header(label) for label in cuts} == before
    for _ in range(2):
        assert "its secondaries alone" in refused(6, "stop", NAME)
        now = {label: rig.secondary_header(label) for label in cuts}
        (fresh,) = {now[label].generation[-1] for label in ("one", "two")}
        wanted = {label: before[label].replace(generation=(*before[label].generation, fresh)) for label in before}
        assert now == wanted | {"old": before["old"]}
    crash()
    rig.behave(path, "p0")
    rig.behave(cuts["old"], "s2")

    assert {label for label, _ in ok("start", NAME, "--json").json["problems"]} == set(cuts)
    assert set(rig.states(code=9).values()) == {"diverged"}
    refused(8, "resync", NAME, "one")
    assert dmsoft("resync", NAME).code == 8
    for label in ("one", "two"):
        assert read(cuts[label], now[label].regions["data"].offset + AT, MIB) == newest


@pytest.mark.long
def test_a_swap_that_finds_the_primary_left_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a write that was under way: it comes to nothing, and the primary stays out although it would answer now."""
    newest = fail_primary(rig)
    before = rig.secondary_header("one")
    running = Running.of(locate.assemble(NAME))
    with guard_of(running, coupled=True) as guard, monkeypatch.context() as patch:
        patch.setattr(lower.health, "goes_without_primary", lambda _: False)  # as it was before the suspend
        with pytest.raises(lower.PrimaryDroppedError):
            lower.swap(running.names, guard, guard.fallback)
    assert [table(f"m-slot{index}").split()[0] for index in (0, 1)] == ["linear", "error"]
    for verb in ("verify", "resync", "stop"):
        assert "its secondaries alone" in refused(6, verb, NAME)
    assert health() == "AD" and read(rig.top, AT, MIB) == newest
    assert rig.secondary_header("one").generation[:-1] == before.generation


@pytest.mark.slow
@pytest.mark.core
def test_a_primary_that_md_tries_again_is_older(rig: Rig) -> None:
    """That is what any other resume does. Until md has copied all that it knows of, nothing is believed of it; that it
    knows of the write that failed is so on old kernels only."""
    newest = fail_primary(rig)
    before = rig.secondary_header("one")
    with slow_recovery():
        sh("dmsetup", "suspend", "m-lower")
        sh("dmsetup", "resume", "m-lower")
        wait_until("md tries it again", lambda: health() == "Aa")
        for verb in ("verify", "resync", "stop"):
            assert "its secondaries alone" in refused(6, verb, NAME)
        assert health() == "Aa" and read(rig.top, AT, MIB) == newest
        assert rig.secondary_header("one").generation[:-1] == before.generation
    wait_until("md has copied it all", lambda: health() == "AA", seconds=120)
    refused(8, "resync", NAME, "one")
    assert health() == "AA", "it was uncoupled, and both would go apart"
    ok("stop", NAME)
    assert rig.differing("one") == (set() if features.RECOVERS[features.series(os.uname().release)] else {5})


@pytest.mark.slow
def test_a_crash_while_md_writes_the_primary_anew(rig: Rig) -> None:
    """The resume has forgotten that it failed, and nobody saw it; its slot tells how far it is."""
    newest = fail_primary(rig)
    with slow_recovery():
        sh("dmsetup", "suspend", "m-lower")
        sh("dmsetup", "resume", "m-lower")
        wait_until("md tries it again", lambda: health() == "Aa")
        crash()
    ok("start", NAME)
    assert rig.states(code=9) == {"one": "diverged"}
    refused(8, "resync", NAME, "one")
    assert read(rig.secondaries["one"], rig.secondary_header("one").regions["data"].offset + AT, MIB) == newest


@pytest.mark.slow
@pytest.mark.parametrize("what", [pytest.param("lower", marks=pytest.mark.long), "both"])
def test_the_guard_leaves_a_raid1_without_its_primary(rig: Rig, what: str) -> None:
    newest = fail_primary(rig)
    process = start(what, 600)
    process.kill()
    process.wait()
    wait_until("nothing is suspended", lambda: not suspended())
    assert table("m-lower").startswith("raid ") and read(rig.top, AT, MIB) == newest
    assert health() == "AD"


@pytest.mark.slow
def test_a_primary_that_goes_as_its_raid1_is_replaced(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """md meets that as it writes its notes, and takes it for the loss of the secondary. The linear table leads to the
    disk that is gone, so it cannot be loaded; what waits gets an error all the same."""
    rig.create(*WRITE_BEHIND, primary=rig.disks["small0"], one=rig.cut("s0", SIZE))
    rig.resync()
    rig.write(3)
    suspend = Device.suspend

    def late(target: Device, **options: bool) -> object:
        if target.name == "m-lower":
            rig.disks.unplug("small0")
        return suspend(target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Device, "suspend", late)
        assert dmsoft("resync", NAME).code == 10
    wait_until("nothing is suspended", lambda: not suspended(), seconds=60)
    with pytest.raises(OSError, match="Input/output error"):
        write(rig.top, 4 * MIB, rig.random(4096))
    rig.disks.replug("small0")
