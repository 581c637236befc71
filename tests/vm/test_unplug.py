# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that go in the middle of something, and come back: the primary goes on, and status tells the truth at once."""

import threading

import pytest

from dmsoft.units import MIB
from tests.vm.rig import NAME, Rig, dmsoft, ok, ours, refused, sectors_written, sh, suspended, table, wait_until

pytest_plugins = ("tests.vm.rig",)


def test_a_secondary_is_away_for_a_while(rig: Rig) -> None:
    rig.create(one=rig.disks["s0"], two=rig.disks["s1"])
    rig.resync()
    with rig.writing(span=MIB) as writer:
        rig.disks.unplug("s0")
        view = {each["label"]: each for each in rig.status()["secondaries"]}
        assert (view["one"]["state"], view["one"]["device"]) == ("missing", None)
        assert view["two"]["state"] in ("current", "stale")
        rig.write(40, 41)
        assert rig.stale("one") == {0, 40, 41}
        # What is here is served; what is not is named.
        done = rig.resync()
        assert [part["label"] for part in done["secondaries"]] == ["two"]
        assert "not here" in refused(5, "resync", NAME, "one")
    assert writer.longest < 60

    # Over a stop and a start, and back at another moment.
    ok("stop", NAME)
    assert rig.states() == {"one": "missing", "two": "stale"} and rig.stale("one") == {0, 40, 41}
    assert ok("start", NAME, "--json").json["missing"] == ["one"]
    rig.write(60)
    rig.disks.replug("s0")
    assert rig.states() == {"one": "stale", "two": "stale"}
    one = rig.secondary("one")
    assert (one["stale_bytes"], one["device"]) == (4 * MIB, str(rig.disks["s0"].resolve()))
    done = rig.resync("one")
    assert (done["kind"], done["bytes_copied"]) == ("incremental", 4 * MIB)
    rig.equal("one")
    rig.superset("two")
    assert rig.states() == {"one": "current", "two": "stale"}


@pytest.mark.slow
def test_a_secondary_goes_while_it_is_copied_to(rig: Rig) -> None:
    """The other one is served all the same."""
    rig.create(one=rig.disks["s0"], two=rig.disks["s1"])
    rig.resync("one")
    rig.write(*range(0, 80, 2))
    before = sectors_written(rig.secondaries["one"])

    def pull() -> None:
        wait_until(
            "some MiB are copied", lambda: sectors_written(rig.secondaries["one"]) > before + 8 * 2048, seconds=60
        )
        rig.disks.unplug("s0")

    thread = threading.Thread(target=pull)
    with rig.writing(span=MIB) as writer:
        thread.start()
        ran = dmsoft("resync", NAME, "--json")
        thread.join()
        assert rig.states() | {"two": ""} == {"one": "missing", "two": ""}
    assert writer.longest < 60
    assert ran.code == 6, ran
    parts = {part["label"]: part for part in ran.json["secondaries"]}
    assert parts["one"]["error"] and parts["two"]["error"] is None
    assert not suspended()
    rig.superset("two")
    rig.resync()
    rig.equal("two")

    rig.disks.replug("s0")
    assert rig.states() == {"one": "stale", "two": "current"}
    rig.superset("one")
    done = rig.resync()
    assert done["kind"] == "incremental" and done["bytes_copied"] <= 41 * MIB
    rig.equal()


@pytest.mark.parametrize(
    "kind",
    [
        "direct",
        *(pytest.param(kind, marks=pytest.mark.long) for kind in ("writecache", "delay")),
    ],
)
def test_an_attached_secondary_goes(rig: Rig, kind: str) -> None:
    way = {"writecache": f"writecache:{rig.disks['c0']}", "delay": "delay:100", "direct": "direct"}[kind]
    rig.create("--mode", "write-behind", "--via", way, one=rig.disks["s0"])
    rig.resync()
    assert rig.states() == {"one": "attached"}
    with rig.writing(span=MIB) as writer:
        rig.disks.unplug("s0")
        assert rig.states() == {"one": "missing"}
        rig.write(30, 31, 32)
        assert rig.states() == {"one": "missing"}
        rig.disks.replug("s0")
        # Its leg still leads to the disk that is gone.
        assert rig.states() == {"one": "stale"}
        assert rig.stale("one") == {0, 30, 31, 32}
    assert writer.longest < 60
    rig.superset("one")
    done = rig.resync()
    assert (done["kind"], done["bytes_stale"]) == ("incremental", 4 * MIB)
    assert rig.states() == {"one": "attached"} and "raid1" in table("m-lower")
    rig.write(33)
    ok("stop", NAME)
    rig.equal()

    # Away at the start: no failure, and nothing is coupled.
    rig.disks.unplug("s0")
    ok("start", NAME)
    assert rig.states() == {"one": "missing"}
    rig.write(34)
    ok("stop", NAME)
    rig.disks.replug("s0")
    ok("start", NAME)
    assert rig.stale("one") == {33, 34}
    assert rig.resync()["kind"] == "incremental"
    ok("stop", NAME)
    rig.equal()


@pytest.mark.slow
def test_a_cache_device_goes(rig: Rig) -> None:
    """What it held is lost to the secondary, and in its stale set."""
    rig.create("--mode", "write-behind", "--via", f"writecache:{rig.disks['c0']}", one=rig.disks["s0"])
    rig.resync()
    with rig.writing(span=MIB) as writer:
        rig.write(80, 81)
        rig.disks.unplug("c0")
        rig.write(82, 83)
    assert writer.longest < 60
    assert rig.secondary("one", code=9)["state"] == "failed"
    assert rig.stale("one") >= {0, 80, 81, 82, 83}
    rig.superset("one")
    ran = dmsoft("resync", NAME, "one")
    assert ran.code == 5 and "cache device of one is not here" in ran.err, ran
    rig.superset("one")
    rig.disks.replug("c0")
    done = rig.resync()
    assert done["kind"] == "incremental"
    assert rig.states() == {"one": "attached"}
    ok("stop", NAME)
    rig.equal()


def test_the_primary_goes(rig: Rig) -> None:
    rig.create(one=rig.disks["s0"])
    rig.resync()
    rig.write(12)
    rig.disks.unplug("p0")
    view = rig.status(code=9)
    assert view["primary"] == {"device": None, "state": "missing"} and view["active"]
    assert [alert["code"] for alert in view["alerts"]] == ["primary-missing"]
    refused(5, "resync", NAME)
    ok("stop", NAME)
    assert ours() == []
    refused(5, "start", NAME)
    assert not rig.status(code=9)["active"]

    rig.disks.replug("p0")
    assert ok("start", NAME, "--json").json["doubt"] is None
    assert rig.stale("one") == {12}
    assert rig.resync()["bytes_copied"] == MIB
    rig.equal()


@pytest.mark.slow
def test_the_metadata_device_goes(rig: Rig) -> None:
    """Nothing can be marked without it, so writes fail rather than go unnoticed; what was written is on it alone."""
    rig.create("--metadata", rig.disks["c0"], one=rig.disks["s0"])
    rig.resync()
    rig.write(5)
    rig.disks.unplug("c0")
    with pytest.raises(OSError):
        rig.write(6)
    rig.status(code=9)
    ok("stop", NAME)
    assert ours() == []
    rig.disks.replug("c0")
    ok("start", NAME)
    rig.write(7)
    rig.superset("one")
    rig.resync()
    rig.equal()

    rig.write(8)
    ok("stop", NAME)
    rig.disks.unplug("c0")
    assert "metadata" in refused(5, "start", NAME)
    assert ours() == [] and "metadata-missing" in [alert["code"] for alert in rig.status(code=9)["alerts"]]
    rig.disks.replug("c0")
    assert ok("start", NAME, "--json").json["doubt"] is None
    assert rig.stale("one") == {8}
    rig.resync()
    rig.equal()
    sh("dmsetup", "status", NAME)
