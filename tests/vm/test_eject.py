# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that take turns: each leaves as a whole copy of a moment, and gets exactly its own delta when it is back."""

import os
import threading

import pytest

from dmsoft.errors import BusyError
from dmsoft.mirror import sync
from dmsoft.mirror.progress import Silent
from dmsoft.mirror.sync import Request
from dmsoft.units import MIB
from tests.vm.rig import NAME, Rig, dmsoft, ok, ours, refused, table, wait_until

pytest_plugins = ("tests.vm.rig",)

SIZE = 40 * MIB


def test_disks_take_turns(rig: Rig) -> None:
    rig.create(primary=rig.cut("p0", SIZE), one=rig.disks["s0"], two=rig.disks["s1"])
    rig.write(1)
    rig.resync()
    missed: dict[str, set[int]] = {"one": set(), "two": set()}
    for turn, (leaver, stayer, serial) in enumerate([("one", "two", "s0"), ("two", "one", "s1"), ("one", "two", "s0")]):
        rig.write(block := 3 + turn)
        missed["one"].add(block)
        missed["two"].add(block)
        assert rig.stale(leaver) == missed[leaver]
        done = ok("eject", NAME, leaver, "--json").json
        assert (done["safe_to_unplug"], done["resync"]["bytes_copied"]) == (True, len(missed[leaver]) * MIB)
        missed[leaver] = set()
        rig.equal(leaver)  # nothing was written since
        header = rig.secondary_header(leaver).sync
        assert header.consistent and header.consistent_as_of == done["consistent_as_of"]
        # Nothing holds the disk, and nothing of ours takes it back while it waits for a hand.
        with open(rig.secondaries[leaver], "r+b", opener=lambda path, flags: os.open(path, flags | os.O_EXCL)):
            pass
        rig.write(20 + turn)
        missed["one"].add(20 + turn)
        missed["two"].add(20 + turn)
        view = rig.secondary(leaver)
        assert (view["state"], view["stale_blocks"]) == ("away", 1) and view["away_since"]
        assert f"m-{leaver}" not in ours()
        with pytest.raises(BusyError):  # what was decided before the eject comes too late
            sync.resync(Request(NAME, (leaver,), unattended=True), Silent(), threading.Event())
        ok("start", NAME)
        assert [part["label"] for part in rig.resync()["secondaries"]] == [stayer]
        missed[stayer] = set()
        assert rig.states() == {leaver: "away", stayer: "current"}

        rig.disks.unplug(serial)
        assert rig.states()[leaver] == "away" and rig.stale(leaver) == missed[leaver]
        rig.write(25 + turn)
        missed["one"].add(25 + turn)
        missed["two"].add(25 + turn)
        rig.disks.replug(serial)
        assert rig.states()[leaver] == "stale" and rig.stale(leaver) == missed[leaver]
        back = rig.resync(leaver)
        assert (back["kind"], back["bytes_copied"]) == ("incremental", len(missed[leaver]) * MIB)
        missed[leaver] = set()
        rig.equal(leaver)
        assert rig.secondary(leaver)["away_since"] is None


@pytest.mark.long
def test_three_disks_rotate(rig: Rig) -> None:
    """One is here, two are away; each gets exactly what was written since it left, and is whole when it leaves."""
    labels = {"east": "s0", "west": "s1", "vault": "s2"}
    disks = {label: rig.disks[serial] for label, serial in labels.items()}
    rig.create("--expect-every", "1h", "--expect-every", "vault=1s", primary=rig.cut("p0", SIZE), **disks)
    rig.resync("--rate", "max")  # one that held itself back would measure nothing
    missed: dict[str, set[int]] = {label: set() for label in labels}
    left: dict[str, str] = {}

    def written() -> None:
        blocks = rig.chance.sample(range(25), rig.chance.randrange(1, 6))
        rig.write(*blocks)
        for each in missed.values():
            each.update(blocks)

    def leaves(label: str) -> None:
        done = ok("eject", NAME, label, "--json").json
        assert done["resync"]["bytes_copied"] == len(missed[label]) * MIB
        missed[label], left[label] = set(), done["consistent_as_of"]
        rig.equal(label)
        rig.disks.unplug(labels[label])

    for label in ("west", "vault"):
        written()
        leaves(label)
    here = "east"
    for _ in range(15):
        written()
        comes = rig.chance.choice([label for label in labels if label != here])
        rig.disks.replug(labels[comes])
        assert rig.secondary_header(comes).sync.consistent_as_of == left[comes]
        assert rig.stale(comes) == missed[comes]
        done = rig.resync(comes)
        assert (done["kind"], done["bytes_copied"]) == ("incremental", len(missed[comes]) * MIB)
        missed[comes] = set()
        assert ok("wait", NAME, comes, "--json").json["state"] == "current"
        written()
        leaves(here)
        here = comes
        gone = [label for label in labels if label != here]
        if "vault" in gone:
            wait_until("it is overdue", lambda: dmsoft("status", NAME).code == 9)
        views = {each["label"]: each for each in rig.status(9 if "vault" in gone else 0)["secondaries"]}
        assert {label: views[label]["state"] for label in gone} == dict.fromkeys(gone, "away")
        assert all(views[label]["stale_blocks"] == len(missed[label]) and views[label]["away_since"] for label in gone)
        assert all(views[label]["catch_up_seconds"] is not None for label in gone)
        if "vault" in gone:
            (alert,) = rig.status(9)["alerts"]
            assert alert["code"] == "secondary-overdue" and alert["summary"].startswith("vault is away for ")
    assert ok("wait", NAME, gone[0], "--until", "away", "--timeout", "5s").code == 0
    assert "is away and not current after" in refused(1, "wait", NAME, gone[0], "--timeout", "1s")


@pytest.mark.slow
def test_a_coupled_disk_leaves_as_a_whole_copy(rig: Rig) -> None:
    """The other one stays coupled; the one that leaves is drained, uncoupled and one point in time."""
    rig.create("--mode", "write-behind", primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE), two=rig.cut("s1", SIZE))
    rig.resync()
    assert rig.states() == {"one": "attached", "two": "attached"}
    rig.write(5, 6)
    with rig.writing(span=2 * MIB) as writer:
        done = ok("eject", NAME, "one", "--json").json
    assert writer.count
    assert done["consistent_as_of"] == rig.secondary_header("one").sync.consistent_as_of
    assert "m-one" not in ours() and "raid1" in table("m-lower")
    assert rig.states()["two"] == "attached"
    rig.superset("one")
    assert "whole copy" not in dmsoft("eject", NAME, "one", "--dry-run").out
    rig.resync("one")
    assert rig.states() == {"one": "attached", "two": "attached"}


def test_what_is_not_here_cannot_leave(rig: Rig) -> None:
    rig.create(primary=rig.cut("p0", SIZE), one=rig.disks["s0"])
    refused(5, "eject", NAME, "nobody")
    rig.disks.unplug("s0")
    refused(5, "eject", NAME, "one")
    rig.disks.replug("s0")
    ok("stop", NAME)
    refused(5, "eject", NAME, "one")
