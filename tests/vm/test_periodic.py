# SPDX-License-Identifier: GPL-2.0-or-later
"""Periodic mode: copies of exactly what was written, on real era metadata."""

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from dmsoft.mirror.observe import status
from dmsoft.mirror.views import MirrorView
from dmsoft.units import KIB, MIB
from tests.vm.rig import (
    NAME,
    Rig,
    crash,
    dmsoft,
    fingerprint,
    ok,
    ours,
    refused,
    sectors_written,
    sh,
    suspended,
    table,
    unchanged,
    wait_until,
)

pytest_plugins = ("tests.vm.rig",)


@pytest.mark.smoke
def test_a_secondary_gets_everything_once_and_then_only_what_changed(rig: Rig) -> None:
    rig.create(one=rig.disks["s0"])
    rig.write(0, 3, 86)
    view = rig.status()
    assert (view["active"], view["mode"], view["primary"]["state"]) == (True, "periodic", "ok")
    (first,) = view["secondaries"]
    assert (first["state"], first["synced_era"], first["stale_bytes"]) == ("stale", None, view["size_bytes"])
    assert rig.stale("one") == set(range(87))

    full = rig.resync()
    assert (full["kind"], full["bytes_stale"], full["bytes_copied"]) == ("full", 87 * MIB, 87 * MIB)
    rig.equal()
    assert rig.stale("one") == set()
    synced = rig.secondary("one")
    assert (synced["state"], synced["stale_bytes"], synced["lag_seconds"]) == ("current", 0, 0.0)

    # Part of a block, a whole one, three in a row, and the last one.
    written = {7, 20, 21, 22, 60, 86}
    rig.write(7, length=4 * KIB)
    rig.write(*(written - {7}))
    assert rig.stale("one") == written
    assert rig.differing("one") == written
    behind = rig.secondary("one")
    assert (behind["state"], behind["stale_blocks"], behind["stale_bytes"]) == ("stale", 6, 6 * MIB)
    assert behind["lag_seconds"] > 0 and behind["synced_era"] == synced["synced_era"]

    again = rig.resync()
    assert (again["kind"], again["bytes_stale"], again["bytes_copied"]) == ("incremental", 6 * MIB, 6 * MIB)
    rig.equal()
    header, record = rig.secondary_header("one"), rig.record("one")
    assert header.sync.era == rig.secondary("one")["synced_era"] > synced["synced_era"]
    assert header.sync.token == record.token_confirmed and record.token_pending is None
    assert header.sync.consistent and header.sync.doubt is None
    assert not suspended()


@pytest.mark.long
def test_each_secondary_has_its_own_synced_era(rig: Rig) -> None:
    """One is resynced while the other lags; each then gets what itself missed, and no more."""
    rig.create("--metadata", rig.disks["c0"], one=rig.disks["s0"], two=rig.cut("big0", 300 * MIB))
    assert str(rig.disks["c0"].resolve()).removeprefix("/dev/") in _slaves("m-metadata-disk")
    rig.write(1, 2)
    both = rig.resync()
    assert both["bytes_copied"] == 2 * both["secondaries"][0]["bytes_copied"]
    rig.equal()

    rig.write(10, 11)
    only = rig.resync("one")
    assert [part["label"] for part in only["secondaries"]] == ["one"] and only["bytes_copied"] == 2 * MIB
    assert rig.states() == {"one": "current", "two": "stale"}
    rig.write(11, 30)
    assert (rig.stale("one"), rig.stale("two")) == ({11, 30}, {10, 11, 30})
    rig.superset("one")
    rig.superset("two")
    eras = {label: rig.secondary_header(label).sync.era for label in ("one", "two")}
    assert eras["one"] > eras["two"]

    both = rig.resync()
    assert {part["label"]: part["bytes_copied"] for part in both["secondaries"]} == {"one": 2 * MIB, "two": 3 * MIB}
    rig.equal()
    assert rig.secondary_header("one").sync.era == rig.secondary_header("two").sync.era


def _slaves(name: str) -> list[str]:
    return os.listdir(Path("/sys/class/block", Path(f"/dev/mapper/{name}").resolve().name, "slaves"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "block_bytes",
    [pytest.param(64 * KIB, marks=pytest.mark.long), 4 * MIB, 4 * KIB, pytest.param(96 * KIB, marks=pytest.mark.long)],
)
def test_block_sizes(rig: Rig, block_bytes: int) -> None:
    """The last block is a partial one wherever the size allows."""
    rig.create("--block-size", block_bytes, primary=rig.cut("p0", 50 * MIB), one=rig.cut("s0", 50 * MIB + 512))
    data = rig.primary_header().regions["data"].length
    last = (data - 1) // block_bytes
    rig.resync()
    # Across the border of two blocks, and the last sectors of all.
    rig.write(1, block_bytes=block_bytes - 4 * KIB, length=8 * KIB)
    rig.write(1, block_bytes=data - 4 * KIB, length=4 * KIB)
    expected = {0, 1, last}
    assert rig.stale("one") == expected == rig.differing("one") | expected
    done = rig.resync()
    assert done["bytes_copied"] == 2 * block_bytes + data - last * block_bytes
    rig.equal()


def test_a_mirror_stops_and_starts(rig: Rig) -> None:
    rig.create(one=rig.disks["s0"])
    rig.resync()
    rig.write(5)
    assert len(json.loads(ok("stop", NAME, "--dry-run", "--json").out)["devices"]) == len(ours())
    assert ok("stop", NAME, "--json").json["was_running"] is True
    assert ours() == []
    # Stopped, and still it is known what is missing.
    assert rig.stale("one") == {5} == rig.differing("one")
    assert rig.secondary("one")["state"] == "stale" and not rig.status()["active"]
    assert ok("stop", NAME, "--json").json["was_running"] is False
    refused(5, "resync", NAME)

    started = ok("start", NAME, "--json").json
    assert (started["already"], started["doubt"], started["missing"]) == (False, None, [])
    rig.write(6)
    assert ok("start", NAME, "--json").json["already"] is True
    assert rig.stale("one") == {5, 6}
    with open(rig.top, "rb"):
        assert "in use" in refused(10, "stop", NAME)
    assert rig.status()["active"]
    done = rig.resync()
    assert (done["kind"], done["bytes_copied"]) == ("incremental", 2 * MIB)
    rig.equal()

    # An unclean end: nobody wrote the digest of the metadata, and the marks are all there.
    rig.write(8)
    crash()
    assert rig.stale("one") == {8}
    assert ok("start", NAME, "--json").json["doubt"] is None
    done = rig.resync()
    assert (done["kind"], done["bytes_copied"]) == ("incremental", MIB)
    rig.equal()


@pytest.mark.slow
def test_secondaries_come_and_go(rig: Rig) -> None:
    rig.create(one=rig.disks["s0"])
    rig.resync()
    rig.write(3)
    two = str(rig.disks["s1"])
    added = ok("add", NAME, f"two={two}", "--yes", "--json").json
    rig.secondaries["two"] = two
    assert added["label"] == "two" and added["tables"]
    assert rig.states() == {"one": "stale", "two": "stale"}
    assert rig.stale("one") == {3} and len(rig.stale("two")) == 87
    assert rig.resync("two")["kind"] == "full"
    rig.equal("two")

    assert ok("remove", NAME, "one", "--yes", "--json").json["header_wiped"] is True
    del rig.secondaries["one"]
    assert "m-one" not in ours() and rig.states() == {"two": "current"}
    refused(5, "examine", rig.disks["s0"])
    assert "no secondary one" in refused(5, "remove", NAME, "one", "--yes")

    # The same on a stopped mirror, with a label that dmsoft chooses.
    ok("stop", NAME)
    ok("remove", NAME, "two", "--yes")
    assert ok("add", NAME, rig.disks["s2"], "--yes", "--json").json["label"] == "s1"
    rig.secondaries = {"s1": str(rig.disks["s2"])}
    assert ours() == []
    ok("start", NAME)
    assert rig.states() == {"s1": "stale"}
    assert rig.resync()["kind"] == "full"
    rig.equal()
    wiped = ok("destroy", NAME, "--yes", "--json").json["devices"]
    assert sorted(wiped) == sorted(str(Path(p).resolve()) for p in (rig.primary, *rig.secondaries.values()))
    assert ours() == [] and dmsoft("status", "--json").json["mirrors"] == []
    assert not any(Path("/etc/dmsoft/keys").iterdir()) and not any(Path("/etc/dmsoft/mirrors").iterdir())


def test_a_dry_run_says_the_tables_and_changes_nothing(rig: Rig) -> None:
    size = 32 * MIB
    disks = [rig.cut(serial, size) for serial in ("p0", "s0", "s1", "c0")]
    primary, one, two, cache = disks
    create = ("create", NAME, "--primary", primary, "--secondary", f"one={one}", "--yes")
    with unchanged(*disks):
        planned = ok(*create, "--dry-run", "--json").json["tables"]
        assert all(line in ok(*create, "--dry-run").out for line in planned)
        assert ours() == [] and not Path("/etc/dmsoft").exists()
    rig.create(primary=primary, one=one)
    assert _live(planned) == _live(planned, live=True) and set(_live(planned)) == set(ours())

    with unchanged(*disks):
        said = ok("resync", NAME, "--dry-run", "--json").json
        assert (said["kind"], said["bytes_stale"], said["bytes_copied"]) == ("full", 23 * MIB, 0)
        assert "would copy all 23 MiB, because it was never copied" in ok("resync", NAME, "--dry-run").out
    rig.resync()
    rig.write(4)
    add = ("add", NAME, f"two={two}", "--mode", "write-behind", "--via", f"writecache:{cache}", "--yes")
    before = ours()
    with unchanged(*disks):
        said = ok("resync", NAME, "--dry-run", "--json").json
        assert (said["kind"], said["bytes_stale"], said["bytes_copied"]) == ("incremental", MIB, 0)
        leg = ok(*add, "--dry-run", "--json").json["tables"]
        assert [line.split(":")[0] for line in leg] == ["m-two-data", "m-two-cache", "m-two"]
        assert "writecache s " in leg[-1]
        assert ok("remove", NAME, "one", "--yes", "--dry-run", "--json").json["header_wiped"] is False
        assert set(ok("stop", NAME, "--dry-run", "--json").json["devices"]) == set(before)
        assert len(ok("destroy", NAME, "--yes", "--dry-run", "--json").json["devices"]) == 2
        ok("stale", NAME, "one")
        ok("examine", one)
        ok("status")
        assert ours() == before
    ok("stop", NAME)
    with unchanged(*disks):
        planned = ok("start", NAME, "--dry-run", "--json").json["tables"]
        assert ours() == []
    ok("start", NAME)
    assert _live(planned) == _live(planned, live=True) and set(_live(planned)) == set(ours())


def _live(lines: list[str], *, live: bool = False) -> dict[str, list[str]]:
    """Planned tables by device, with paths as numbers; or what the kernel has for the same devices."""
    planned: dict[str, list[str]] = {}
    for line in lines:
        name, segment = line.split(": ")
        planned.setdefault(name, []).append(segment)
    if live:
        return {name: [line.strip() for line in sh("dmsetup", "table", name).splitlines()] for name in planned}
    return {name: [_numbers(segment) for segment in segments] for name, segments in planned.items()}


def _numbers(text: str) -> str:
    return " ".join(
        sh("dmsetup", "info", "-c", "--noheadings", "-o", "major,minor", word).strip() if "/" in word else word
        for word in text.split()
    )


@pytest.mark.smoke
def test_discards_are_refused(rig: Rig) -> None:
    """dm-era would mark only the first block of one. On 5.10 no limit keeps them off, and a layer more does."""
    rig.create(one=rig.disks["s0"])
    rig.write(*range(8))
    rig.resync()
    before = fingerprint(rig.primary)
    for act in (None, ("stop", NAME), ("start", NAME), ("resync", NAME)):
        if act:
            ok(*act)
        if act != ("stop", NAME):
            done = subprocess.run(["blkdiscard", rig.top], capture_output=True, check=False)
            assert done.returncode != 0 and b"not supported" in done.stderr
    # What stands in for a discard is a write, and is marked.
    sh("blkdiscard", "-z", "-o", 2 * MIB, "-l", 3 * MIB, rig.top)
    assert fingerprint(rig.primary)[12:] != before[12:]
    assert rig.stale("one") == {2, 3, 4}
    rig.resync()
    rig.equal()


@pytest.mark.slow
def test_a_resync_under_load(rig: Rig) -> None:
    """The writer never stops; whatever differs afterwards is known to be stale, and a quiet resync ends equal."""
    rig.create("--block-size", "64K", one=rig.disks["s0"])
    with rig.writing(pause_ms=60) as writer:
        # Next to nothing may be left for the final barrier, so it takes pass after pass, each of which has to begin
        # where the one before ended; it need not come to an end before the writer does.
        first = rig.resync("--max-stall", "1ms")
        rig.superset("one")
        second = rig.resync()
    assert (first["kind"], second["kind"], second["converged"]) == ("full", "incremental", True)
    assert first["passes"] >= 2 and first["bytes_copied"] > first["bytes_stale"]
    assert writer.count > 50 and writer.longest < 60
    rig.superset("one")
    assert rig.resync()["kind"] == "incremental"
    rig.equal()


@pytest.mark.long
def test_writes_that_outrun_the_copy(rig: Rig) -> None:
    """It says so and ends, and promises no more than it has; nobody was held up for it, and the next one goes on."""
    rig.create("--block-size", "64K", primary=rig.cut("p0", 24 * MIB), one=rig.cut("s0", 24 * MIB))
    with rig.writing(pause_ms=0) as writer:
        ran = dmsoft("resync", NAME, "--rate", "8M", "--max-stall", "1ms", "--json")
        rig.superset("one")
    assert not ran.json["converged"] and "writes outrun the copy" in ran.out + ran.err, ran
    assert ran.json["passes"] > 2 and ran.json["stall_ms"] < 5000
    assert rig.secondary_header("one").sync.consistent_as_of is None
    assert writer.count > 50
    rig.superset("one")
    again = rig.resync()
    assert (again["kind"], again["converged"]) == ("incremental", True)
    assert again["bytes_copied"] < 24 * MIB
    rig.equal()


@pytest.mark.slow
def test_a_mounted_file_system_is_copied_as_if_it_were_unmounted(rig: Rig, tmp_path: Path) -> None:
    """The final barrier freezes it: what the secondary then holds needs no recovery of a journal."""
    rig.create(one=rig.disks["s0"])
    sh("mkfs.ext4", "-q", "-E", "nodiscard", rig.top)
    sh("mount", rig.top, tmp_path)
    stop = threading.Event()

    def churn() -> None:
        for number in iter(int, 1):
            if stop.is_set():
                return
            (tmp_path / f"f{number % 50}").write_bytes(os.urandom(40000))

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        rig.resync()
        assert rig.resync()["kind"] == "incremental"
    finally:
        stop.set()
        thread.join()
    data = rig.secondary_header("one").regions["data"]
    line = f"0 {data.length // 512} linear {rig.secondaries['one']} {data.offset // 512}"
    sh("umount", tmp_path)
    ok("stop", NAME)
    sh("dmsetup", "create", "copy", "--readonly", data=line.encode())
    sh("e2fsck", "-f", "-n", "/dev/mapper/copy")
    assert b"needs_recovery" not in sh("dumpe2fs", "-h", "/dev/mapper/copy").encode()


@pytest.mark.slow
def test_a_cancelled_resync_goes_on_later(rig: Rig) -> None:
    rig.create(one=rig.disks["s0"], two=rig.disks["s1"])
    rig.resync("two")
    rig.write(9)
    start = sectors_written(rig.secondaries["one"])

    seen: list[MirrorView] = []

    def interrupt() -> None:
        wait_until("some MiB are copied", lambda: sectors_written(rig.secondaries["one"]) > start + 10 * 2048, 60)
        seen.extend(status(NAME).mirrors)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    ran = dmsoft("resync", NAME, "one", "--rate", "5M")
    thread.join()
    assert ran.code == 1 and "cancelled" in ran.err, ran
    assert not suspended()
    (run,) = [view.run for view in seen]
    assert run is not None and (run.verb, run.pid, run.labels, run.phase) == ("resync", os.getpid(), ("one",), "pass 1")
    assert run.requests_pending and run.requests_done is not None and run.requests_failed == 0
    assert run.requests_pending + run.requests_done == 87 and run.bytes_queued
    assert {each.label: each.state for each in seen[0].secondaries} == {"one": "syncing", "two": "stale"}
    assert rig.status()["run"] is None
    assert not rig.secondary_header("one").sync.consistent
    rig.superset("one")
    done = rig.resync()
    assert {part["label"]: part["kind"] for part in done["secondaries"]} == {"one": "full", "two": "incremental"}
    rig.equal()


@pytest.mark.long
def test_a_killed_resync_leaves_nothing_suspended_and_nothing_forgotten(rig: Rig) -> None:
    rig.create(one=rig.disks["s0"])
    rig.resync()
    kills = 0
    while kills < 3:
        rig.write(*rig.chance.sample(range(87), 40))
        with rig.writing():
            child = os.fork()
            if not child:
                os._exit(dmsoft("resync", NAME).code)
            threading.Event().wait(rig.chance.uniform(0.5, 6))
            os.kill(child, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            wait_until("the guard resumes", lambda: not suspended())
            rig.write(5)
        rig.superset("one")
    assert rig.resync()["kind"] == "incremental"
    rig.equal()


def test_examine_and_explain(rig: Rig) -> None:
    rig.create(one=rig.disks["s0"])
    for role, path in (("primary", rig.primary), ("secondary", rig.secondaries["one"])):
        found = ok("examine", path, "--json").json
        assert (found["role"], found["authentic"], found["problems"]) == (role, True, [])
        assert found["data_offset_bytes"] == 9 * MIB and found["data_bytes"] == 87 * MIB
        assert role in ok("examine", path).out
    codes = [each["code"] for each in ok("explain", "--json").json["codes"]]
    assert {"gate-mounted", "header-torn", "secondary-unknown", "too-small"} <= set(codes)
    assert ok("explain", "gate-mounted", "--json").json["text"] in ok("explain", "gate-mounted").out
    refused(5, "explain", "nonsense")
    assert "m-lower" in ours() and table("m-lower").startswith("linear ")
