# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon on real devices: it keeps what was promised, whatever comes, goes, fails or kills it."""

import signal
import time
from pathlib import Path

import pytest

from dmsoft.mirror.times import now
from dmsoft.units import MIB
from tests.vm.monitor_bed import LONG, current, monitoring
from tests.vm.rig import NAME, Rig, dmsoft, ok, ours, refused, suspended, table, wait_until

pytest_plugins = ("tests.vm.rig",)

SIZE = 40 * MIB


def hook(tmp_path: Path) -> Path:
    """A hook that keeps what it is told."""
    told, script = tmp_path / "told", Path("/etc/dmsoft/hooks.d/10-test")
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f'#!/bin/sh\necho "$DMSOFT_EVENT $DMSOFT_MIRROR $DMSOFT_LABEL $(cat)" >>{told}\n')
    script.chmod(0o755)
    told.touch()
    return told


def test_a_mirror_is_kept_as_promised(rig: Rig, tmp_path: Path) -> None:
    """By itself: the first copy, what is written, a disk that was away, and all that after a kill as well."""
    rig.create("--interval", "3s", primary=rig.cut("p0", SIZE), one=rig.disks["s0"], two=rig.disks["s1"])
    told = hook(tmp_path)
    with monitoring(tmp_path) as monitor:
        monitor.wait_for("caught-up", label="one", kind="full")
        monitor.wait_for("caught-up", label="two", kind="full")
        current("one", "two")
        rig.equal()
        refused(10, "monitor")

        rig.write(5, 6)
        monitor.wait_for("caught-up", label="two", kind="incremental")
        current("one", "two")
        rig.equal()

        rig.disks.unplug("s0")
        monitor.wait_for("disk-went", label="one")
        rig.write(7)
        monitor.wait_for("caught-up", label="two", kind="incremental", bytes_copied=MIB)
        assert rig.states() == {"one": "missing", "two": "current"}
        monitor.kill()
        assert [alert["code"] for alert in rig.status(9)["alerts"]] == ["monitor-dead"]
        monitor.start()
        rig.disks.replug("s0")
        monitor.wait_for("caught-up", label="one", kind="incremental", bytes_copied=MIB)
        current("one", "two")
        rig.equal()

        # Nothing is written: nobody touches a disk, and no lag is felt.
        before = rig.secondary_header("one")
        time.sleep(5)
        assert rig.secondary_header("one") == before
        start = time.monotonic()
        rig.write(8)
        view = dmsoft("status", NAME, "--json").json["mirrors"][0]["secondaries"][0]
        # Felt from the write on, and not from the last copy, which is longer ago.
        assert view["state"] in ("current", "syncing") or view["lag_seconds"] < time.monotonic() - start + 4, view

        # A daemon that stands still misses what was promised, and says so once it goes on.
        monitor.process.send_signal(signal.SIGSTOP)
        try:
            rig.write(9)
            wait_until("a lag is missed", lambda: dmsoft("status", NAME).code == 9, LONG)
            alerts = rig.status(9)["alerts"]
            assert {alert["code"] for alert in alerts} == {"lag-missed"}
            assert alerts[0]["summary"].startswith("one lags ") and "3.0 s was promised" in alerts[0]["summary"]
        finally:
            monitor.process.send_signal(signal.SIGCONT)
        current("one", "two")
        rig.equal()
        assert rig.status()["alerts"] == []
    lines = told.read_text().splitlines()
    assert any(line.startswith(f'caught-up {NAME} two {{"event":"caught-up"') for line in lines), lines
    assert {"monitor-started", "disk-went", "mirror-started"} <= {line.split()[0] for line in lines}
    assert now() >= monitor.events("monitor-stopped")[0]["time"]


@pytest.mark.long
def test_a_coupled_secondary_goes_under_load(rig: Rig, tmp_path: Path) -> None:
    """The raid1 gives way to the primary alone at once, and is back by itself when the disk is."""
    rig.create("--mode", "write-behind", primary=rig.cut("p0", SIZE), one=rig.disks["s0"], two=rig.disks["s1"])
    rig.resync()
    assert rig.states() == {"one": "attached", "two": "attached"}
    with monitoring(tmp_path) as monitor, rig.writing(span=4 * MIB) as writer:
        rig.disks.unplug("s0")
        monitor.wait_for("leg-detached", label="one")
        # The other one is well: it is coupled again, alone.
        monitor.wait_for("caught-up", label="two")
        current("two", state="attached")
        assert "m-one" not in ours()
        rig.disks.replug("s0")
        monitor.wait_for("disk-came", label="one")
        current("one", "two", state="attached")
        assert "raid1" in table("m-lower")
    assert writer.count and writer.longest < 60
    ok("stop", NAME)
    rig.equal()


@pytest.mark.slow
@pytest.mark.kernel_log(allow="dm-flakey|I/O error|era|space map|Buffer")
def test_tracking_that_fails_is_mended(rig: Rig, tmp_path: Path) -> None:
    """dm-era tells of no failure by itself, and fails writes until somebody notices."""
    metadata = rig.cut("c0", 16 * MIB)
    rig.create("--metadata", metadata, "--interval", "3s", primary=rig.cut("p0", SIZE), one=rig.disks["s0"])
    rig.resync()
    with monitoring(tmp_path) as monitor:
        rig.behave(metadata, "c0", "error_writes")
        with pytest.raises(OSError, match="Input/output error"):
            rig.write(21)
        rig.behave(metadata, "c0")
        # Mended by itself, or in the course of a catch-up.
        monitor.wait_for("caught-up", label="one", kind="compare")
        rig.write(22)
        current("one")
        rig.equal()
        assert rig.status()["alerts"] == [] and table(NAME).startswith("era ")
        assert rig.primary_header().tracker.doubt is None


@pytest.mark.long
def test_a_kill_in_the_middle_of_a_copy(rig: Rig, tmp_path: Path) -> None:
    """Nothing is lost: the worker stops in good order, and the next daemon goes on."""
    rig.create("--interval", "3s", one=rig.disks["s0"])
    with monitoring(tmp_path) as monitor:
        for _ in range(3):
            wait_until("it copies", lambda: rig.states()["one"] == "syncing", LONG)
            monitor.kill()
            rig.superset("one")
            assert not suspended()
            rig.write(rig.chance.randrange(80))
            monitor.start()
        current("one")
        rig.equal()
