# SPDX-License-Identifier: GPL-2.0-or-later
"""Write-behind mode: secondaries coupled in the kernel, and md's word that never counts."""

import contextlib
import os
import re
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dmsoft.member.regions import SLOTS, slot
from dmsoft.mirror import attach, backlog, proof
from dmsoft.mirror.barrier import Barrier
from dmsoft.units import KIB, MIB
from tests.harness.guestkit import KernelLog
from tests.vm.rig import NAME, Rig, crash, dm_name, dmsoft, ok, ours, read, refused, sh, table, wait_until, write

pytest_plugins = ("tests.vm.rig",)

MODE = ("--mode", "write-behind")
CREATED = "Superblocks created for new raid set"


def fresh_raids(log: KernelLog) -> int:
    """How often dm-raid took all its legs as new."""
    return sum(CREATED in line for line in log.lines())


def raid_health() -> str:
    return sh("dmsetup", "status", "m-lower").split()[5]


def no_discards(rig: Rig) -> None:
    done = subprocess.run(["blkdiscard", rig.top], capture_output=True, check=False)
    assert done.returncode != 0 and b"not supported" in done.stderr


def via(rig: Rig, kind: str) -> str:
    return {"writecache": f"writecache:{rig.disks['c0']}", "delay": "delay:5000", "direct": "direct"}[kind]


@pytest.mark.parametrize(
    "kind",
    ["writecache", pytest.param("delay", marks=pytest.mark.long), "direct"],
)
def test_attached_and_detached(rig: Rig, kernel_log: KernelLog, kind: str) -> None:
    rig.create(*MODE, "--via", via(rig, kind), one=rig.disks["s0"])
    assert rig.states() == {"one": "stale"} and table("m-lower").startswith("linear ")
    no_discards(rig)

    assert rig.resync()["kind"] == "full"
    attached = rig.secondary("one")
    assert (attached["state"], attached["via"]) == ("attached", {"type": kind})
    assert fresh_raids(kernel_log) == 1
    no_discards(rig)
    # On 6.1 only a write-mostly leg that comes first is written behind.
    raid = table("m-lower").split()
    legs = raid[raid.index("2") + 1 :]
    assert "write_mostly 0" in table("m-lower") and [dm_name(legs[1]), dm_name(legs[3])] == ["m-one", "m-primary"]
    assert raid_health() == "AA"

    synced = attached["synced_era"]
    slowest = _slowest_write(rig, range(10, 40, 3))
    assert slowest < 5, "a write waited for the secondary"
    assert rig.stale("one") == set(range(10, 40, 3))  # md's word moves nothing
    rig.superset("one")
    assert rig.secondary("one")["synced_era"] == synced
    ok("stop", NAME)
    assert ours() == []
    rig.equal()

    # What md left in the slots is poison by now: it must not be read again.
    _poison(rig)
    ok("start", NAME)
    assert rig.states() == {"one": "stale"} and table("m-lower").startswith("linear ")
    no_discards(rig)
    rig.write(50)
    again = rig.resync()
    assert (again["kind"], again["bytes_stale"]) == ("incremental", 11 * MIB)
    assert fresh_raids(kernel_log) == 2 and raid_health() == "AA"
    assert rig.states() == {"one": "attached"}

    # Once more without a stop in between: it stays attached, and what it got is compared. A new raid1 on the other set
    # of slots, poisoned as well, is what makes sure that nothing is on its way any more. Nobody waits for a long delay.
    stays = kind != "delay"
    synced = rig.secondary("one")["synced_era"]
    rig.write(60, 61)
    proved = rig.resync()
    assert (proved["kind"], proved["bytes_stale"]) == ("incremental", 2 * MIB)
    assert proved["bytes_copied"] == (0 if stays else 2 * MIB)
    assert proved["secondaries"][0]["attached"] == stays and proved["stall_ms"] > 0
    assert fresh_raids(kernel_log) == 3 and raid_health() == "AA"
    now = rig.secondary("one")
    assert (now["state"], now["stale_blocks"]) == ("attached", 0) and now["synced_era"] > synced
    header, record = rig.secondary_header("one"), rig.record("one")
    assert header.sync.era == now["synced_era"] and not header.sync.consistent
    assert header.sync.token == record.token_confirmed and record.token_pending is None
    if stays:
        assert rig.resync()["kind"] == "none" and fresh_raids(kernel_log) == 3
    rig.write(70)
    ok("stop", NAME)
    rig.equal()


def _slowest_write(rig: Rig, blocks: range) -> float:
    """Seconds of the slowest of these writes, which lie apart: md lets touching ones wait for each other."""
    slowest = 0.0
    for block in blocks:
        data = rig.random(4 * KIB)
        start = time.monotonic()
        write(rig.top, block * MIB, data)
        slowest = max(slowest, time.monotonic() - start)
    return slowest


def _poison(rig: Rig) -> None:
    """Have every raid slot say that the first leg failed (struct dm_raid_superblock: events at 16, failed_devices at
    24), newer than anything that md has written."""
    payload = rig.primary_header()
    found = [read(rig.primary, slot(payload, index).offset, 4096) for index in range(SLOTS)]
    (model,) = [data for data in found if data[:4] == b"DmRd"][:1]
    for index in range(SLOTS):
        bad = bytearray(model)
        struct.pack_into("<I", bad, 12, index % 8)
        struct.pack_into("<QQ", bad, 16, 1 << 40, 1)
        write(rig.primary, slot(payload, index).offset, bytes(bad))


@pytest.mark.slow
def test_the_primary_goes_on_while_a_secondary_is_attached(rig: Rig) -> None:
    rig.create(*MODE, "--via", via(rig, "writecache"), one=rig.disks["s0"])
    patient = ("--max-stall", "2s")  # a slow machine takes a while for the legs, which is written to meanwhile
    with rig.writing(pause_ms=100) as writer:
        rig.resync(*patient)
        assert rig.states() == {"one": "attached"}
        again = rig.resync(*patient)
    assert again["kind"] == "incremental" and writer.longest < 60
    rig.superset("one")
    ok("stop", NAME)
    rig.equal()


@pytest.mark.slow
def test_a_cache_that_was_never_drained(rig: Rig) -> None:
    """An unclean end: what only the cache had is gone for good, and the stale set knows it."""
    rig.create(*MODE, "--via", via(rig, "writecache"), one=rig.disks["s0"])
    rig.resync()
    rig.write(*range(40, 60))
    crash()
    assert ours() == []
    assert rig.stale("one") == set(range(40, 60))
    rig.superset("one")
    ok("start", NAME)
    done = rig.resync()
    assert (done["kind"], done["bytes_copied"]) == ("incremental", 20 * MIB)
    ok("stop", NAME)
    rig.equal()


@pytest.mark.slow
def test_several_secondaries_of_both_modes(rig: Rig, kernel_log: KernelLog) -> None:
    rig.create(*MODE, "--via", "one=direct", "--via", "two=delay:100", one=rig.disks["s0"], two=rig.disks["s1"])
    rig.resync()
    assert rig.states() == {"one": "attached", "two": "attached"} and raid_health() == "AAA"
    assert "write_mostly 0" in table("m-lower") and "write_mostly 1" in table("m-lower")

    three = str(rig.disks["s2"])
    ok("add", NAME, f"three={three}", "--yes")
    rig.secondaries["three"] = three
    assert rig.states() == {"one": "attached", "two": "attached", "three": "stale"}
    rig.write(5)
    rig.resync("three")
    assert rig.states() == {"one": "attached", "two": "attached", "three": "current"}
    rig.equal("three")
    rig.write(6)

    # One alone: the other stays attached as well, and what it holds is not proved.
    done = rig.resync("one")
    assert [part["label"] for part in done["secondaries"]] == ["one"]
    assert rig.states() == {"one": "attached", "two": "attached", "three": "stale"}
    assert rig.stale("three") == {6} and rig.stale("two") == {5, 6} and rig.stale("one") == set()

    ok("remove", NAME, "one", "--yes")
    del rig.secondaries["one"]
    assert not any(name.startswith("m-one") for name in ours())
    no_discards(rig)
    rig.write(7)
    rig.superset("two")
    rig.resync()
    assert rig.states() == {"two": "attached", "three": "current"}
    ok("stop", NAME)
    rig.equal()
    assert fresh_raids(kernel_log) == 3


def test_a_cache_device_serves_one_secondary(rig: Rig) -> None:
    cache = f"writecache:{rig.disks['c0']}"
    words = ("create", NAME, "--primary", rig.disks["p0"], "--secondary", f"one={rig.disks['s0']}", "--secondary",
             f"two={rig.disks['s1']}", *MODE, "--yes")  # fmt: skip
    assert "One cache device" in refused(2, *words, "--via", cache)
    assert "same device" in refused(4, *words, "--via", f"one={cache}", "--via", f"two={cache}")
    assert "no secondary here" in refused(2, *words, "--via", f"three={cache}")
    for way in ("delay:fast", "delay:-1", "writecache", "pigeon", "direct:1"):
        assert "no way to a secondary" in refused(2, *words, "--via", way)
    assert ours() == [] and dmsoft("status", "--json").json["mirrors"] == []


LOST = r"lost on its way"


def test_a_write_behind_that_was_lost_is_found_and_mended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the disk had dropped it: md knows nothing. S stays where it was until the block was copied. What the proof
    had kept of its way until then is known to the copy after it."""
    monkeypatch.setattr(proof, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(proof, "_STRETCH_BYTES", 4 * MIB)
    size = 40 * MIB
    rig.create(*MODE, primary=rig.cut("p0", size), one=rig.cut("s0", size), two=rig.cut("s1", size))
    rig.resync()
    synced = rig.secondary("one")["synced_era"]
    rig.write(3, 9, 10)
    wait_until("it was written behind", lambda: not rig.differing("one"))
    rig.write_to_medium("one", 9 * MIB + 64 * KIB, b"\x99" * 4 * KIB)
    eras: list[int | None] = []
    real = attach.detach

    def watched(*words: Any) -> None:
        eras.append(rig.secondary_header("one").sync.era)
        real(*words)

    monkeypatch.setattr(attach, "detach", watched)
    ran = ok("resync", NAME, "--json")
    assert eras == [synced] and re.search(LOST, ran.err) and "block 9" in ran.err, ran
    parts = {part["label"]: part for part in ran.json["secondaries"]}
    # Block 3 was proved before the one that was lost was met.
    assert not parts["one"]["attached"] and parts["one"]["kind"] == "incremental"
    assert parts["one"]["bytes_copied"] == 2 * MIB
    assert rig.states() == {"one": "attached", "two": "attached"}
    ok("stop", NAME)
    rig.equal()


@pytest.mark.slow
def test_a_write_behind_that_fails_while_the_raid1_is_renewed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new raid1 would say ``AA`` of it. Where md tells that it failed, none is made; else the comparison finds it. On
    7.2 the kernel does not come to an end with the old one, which would be in the way of every test after this."""
    if os.uname().release.startswith("7."):
        pytest.skip("this kernel would be stuck with the old raid1 until it is booted again")
    size = 40 * MIB
    rig.create(*MODE, "--via", "delay:10000", primary=rig.cut("p0", size), one=(cut := rig.cut("s0", size)))
    rig.resync()
    synced = rig.secondary("one")["synced_era"]
    barrier, renew, seen = proof.barrier, attach.renew, list[int | None]()

    @contextlib.contextmanager
    def late(*words: Any, **options: Any) -> Iterator[Barrier]:
        """Before the barrier, and in the delay while the old raid1 is suspended; then they meet a disk that fails."""
        rig.write(4, 9)
        with barrier(*words, **options) as here:
            yield here
        rig.behave(cut, "s0", "error_writes")
        assert raid_health() == "AA", "it failed too early"

    def renewed(*words: Any) -> float:
        try:
            return renew(*words)
        finally:
            seen.append(rig.secondary_header("one").sync.era)
            rig.behave(cut, "s0")

    monkeypatch.setattr(proof, "barrier", late)
    monkeypatch.setattr(attach, "renew", renewed)
    monkeypatch.setattr(backlog, "settle", lambda *_: None)
    monkeypatch.setattr(backlog, "LONGEST_SECONDS", 60)
    rig.write(6)
    ran = ok("resync", NAME, "--json")
    assert seen == [synced]
    assert re.search(rf"{LOST}|failed a write just now", ran.err) and ran.json["bytes_copied"] == 3 * MIB, ran
    assert rig.states() == {"one": "attached"}
    ok("stop", NAME)
    rig.equal()


@pytest.mark.slow
def test_a_secondary_that_md_has_dropped_is_not_taken_for_whole(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new raid1 says ``A`` of every leg. Neither a proof of the other one makes one, nor is one made when a leg is
    dropped just before that."""
    size = 40 * MIB
    rig.create(*MODE, primary=rig.cut("p0", size), one=rig.cut("s0", size), two=(cut := rig.cut("s1", size)))
    rig.resync()

    def dropped(*_: object) -> None:
        rig.behave(cut, "s1", "error_writes")
        rig.write(3, 9)
        wait_until("md has dropped it", lambda: "D" in raid_health())
        rig.behave(cut, "s1")

    dropped()
    rig.write(20)
    done = rig.resync("one")
    assert {part["label"] for part in done["secondaries"]} == {"one", "two"} and raid_health() == "AAA"
    assert not rig.differing("two")
    with monkeypatch.context() as patch:
        settle = backlog.settle
        patch.setattr(backlog, "settle", lambda names, label: dropped() if label == "two" else settle(names, label))
        rig.write(21)
        ran = ok("resync", NAME, "one", "--json")
    assert "failed a write just now" in ran.err
    assert {part["label"] for part in ran.json["secondaries"]} >= {"one"}
    rig.superset("one")
    rig.superset("two")
    rig.resync()
    assert rig.states() == {"one": "attached", "two": "attached"} and not rig.differing("two")
    ok("stop", NAME)
    rig.equal()
