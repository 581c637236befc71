# SPDX-License-Identifier: GPL-2.0-or-later
"""Resyncs that die: killed at each of their steps and at any moment, a secondary with a journal is one of two points in
time, and any other one is known to be none and is made whole by the next run."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dmsoft.member import header, keys
from dmsoft.member import record as records
from dmsoft.member.payload import Secondary
from dmsoft.mirror.final import Final
from dmsoft.resync import copy, steps
from dmsoft.resync.staging import Staging
from dmsoft.units import KIB, MIB
from tests.vm.rig import NAME, Rig, dmsoft, ok, read, refused, sh, suspended, unchanged, wait_until
from tests.vm.write_log import LoggedDisk

pytest_plugins = ("tests.vm.rig",)

SIZE = 18 * MIB
BLOCK = 64 * KIB
BLOCKS = 9 * MIB // BLOCK
JOURNALED = [
    f"{side} {name}"
    for name in steps.STEPS
    if name not in ("checkpoint", "retire", "copy")
    for side in ("before", "after")
]
PASSING = ["after stage", "before checkpoint", "after checkpoint", "before commit-flush", "after data-write"]
DIRECT = ["before retire", "before copy", "after copy", "after data-flush", "before super-write"]

Watch = Callable[[str], None]


class Crash:
    """A small mirror of one secondary, resynced by processes that die."""

    def __init__(self, rig: Rig, *options: str) -> None:
        self.rig = rig
        rig.create("--block-size", "64K", *options, primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
        rig.resync()
        self.key = keys.load(rig.primary_header().mirror_uuid)
        self.killed = 0

    def change(self, count: int) -> None:
        self.rig.write(*self.rig.chance.sample(range(BLOCKS), count), block_bytes=BLOCK)

    def secondary(self) -> bytes:
        return self._data(self.rig.secondaries["one"])

    def primary(self) -> bytes:
        return self._data(self.rig.primary)

    def _data(self, path: str) -> bytes:
        region = header.require(path).payload.regions["data"]
        return read(path, region.offset, region.length)

    def header(self) -> Secondary:
        return self.rig.secondary_header("one")

    def is_committed(self) -> bool:
        record = records.record_of(self.rig.secondaries["one"], self.key)
        return record is not None and record.committed

    def die(self, watch: Watch | None, *words: str, seconds: float | None = None, note: Path | None = None) -> None:
        """Resync in a process that ``watch`` may kill, or that is killed after ``seconds``; inside the final barrier it
        writes a digest of the primary to ``note``."""
        child = os.fork()
        if not child:
            steps.watch = watch
            if note is not None:
                _noting(self, note)
            os._exit(dmsoft("resync", NAME, *words).code)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        self.killed += os.WIFSIGNALED(status)
        wait_until("the guard resumes", lambda: not suspended())


def _noting(crash: Crash, note: Path) -> None:
    stage = Final._stage_rest

    def noted(final: Final, memory: Staging) -> bool:
        done = stage(final, memory)
        with note.open("ab") as file:
            file.write(hashlib.sha256(crash.primary()).digest())
        return done

    Final._stage_rest = noted  # type: ignore[method-assign]


def killer(point: str, occurrence: int = 1) -> Watch:
    """Kills its process when that point is reached for the n-th time."""
    lock, seen = threading.Lock(), [0]

    def watch(name: str) -> None:
        with lock:
            seen[0] += name == point
            if name == point and seen[0] == occurrence:
                os.kill(os.getpid(), signal.SIGKILL)

    return watch


def kill_with_journal(crash: Crash, point: str, occurrence: int, *words: str) -> None:
    """Kill at that point; the next open finds or makes one of the two images, as the record said before."""
    old = crash.secondary()
    crash.change(crash.rig.chance.randrange(5, 20) if words else crash.rig.chance.randrange(1, 6))
    new, era = crash.primary(), crash.header().sync.era
    crash.die(killer(point, occurrence), *words)
    committed, moved = crash.is_committed(), crash.header().sync.era != era
    if not committed:
        assert crash.secondary() == (new if moved else old), f"{point} {occurrence}: a mix"
    ok("start", NAME)
    assert not crash.is_committed()
    assert crash.secondary() == (new if committed or moved else old), f"{point} {occurrence}: a mix"
    sync = crash.header().sync
    assert sync.consistent and sync.doubt is None
    if committed or moved:
        assert crash.rig.stale("one") == set()


def kill_direct(crash: Crash, point: str, occurrence: int) -> None:
    """Kill at that point; whatever is written is known, and the next run ends equal."""
    old = crash.secondary()
    crash.change(crash.rig.chance.randrange(1, 10))
    crash.die(killer(point, occurrence), "--direct")
    ok("start", NAME)
    crash.rig.superset("one")
    if crash.secondary() not in (old, crash.primary()):
        assert not crash.header().sync.consistent, point


def killed_at(rig: Rig, journaled: Sequence[str], passing: Sequence[str], direct: Sequence[str]) -> None:
    crash = Crash(rig)
    for point in journaled:
        kill_with_journal(crash, point, 1)
    for point in passing:
        # A stall of nothing makes passes before the final barrier, each with a checkpoint.
        kill_with_journal(crash, point, 1, "--max-stall", "0ms")
    assert rig.resync()["kind"] in ("incremental", "none")
    rig.equal()
    for point in direct:
        kill_direct(crash, point, 1)
    assert rig.resync()["kind"] in ("incremental", "none")
    rig.equal()
    assert crash.killed == len(journaled) + len(passing) + len(direct)


def test_killed_at_the_steps_that_matter_most(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "CHECKPOINT_SECONDS", 0.01)
    journaled = ["after stage", "before commit-flush", "before data-write", "after data-write", "after super-write"]
    killed_at(rig, journaled, ["after checkpoint", "before data-flush"], ["before copy", "before super-write"])


@pytest.mark.long
def test_killed_at_each_step(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "CHECKPOINT_SECONDS", 0.01)
    killed_at(rig, JOURNALED, PASSING, DIRECT)


@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_killed_anywhere(rig: Rig, tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a writer, at steps and at moments drawn at random."""
    monkeypatch.setattr(copy, "CHECKPOINT_SECONDS", 0.05)
    crash, note, chance = Crash(rig), tmp_path / "note", rig.chance
    crash.change(30)
    started = time.monotonic()
    crash.die(None)
    usual = time.monotonic() - started
    with rig.writing(span=chance.choice([MIB, 9 * MIB]), pause_ms=chance.choice([20, 50])):
        some_kills(crash, 7, usual, note)
    rig.resync()
    rig.equal()


def some_kills(crash: Crash, count: int, usual: float, note: Path) -> None:
    """So many that hit; ``usual`` is how many seconds a resync takes."""
    rig, chance = crash.rig, crash.rig.chance
    old = hashlib.sha256(crash.secondary()).digest()
    last = crash.killed + count
    while crash.killed < last:
        note.write_bytes(b"")
        words, names = chance.choice([
            ([], JOURNALED), ([], JOURNALED), (["--max-stall", "0ms"], [*JOURNALED, *PASSING]), (["--direct"], DIRECT),
        ])  # fmt: skip
        crash.change(chance.randrange(1, 60))
        if chance.random() < 0.6:
            crash.die(killer(chance.choice(names), chance.choice([1, 1, 1, 2])), *words, note=note)
        else:
            crash.die(None, *words, seconds=chance.uniform(0, usual), note=note)
        ok("start", NAME)
        sync = crash.header().sync
        now = hashlib.sha256(crash.secondary()).digest()
        seen = note.read_bytes()
        known = {old} | {seen[at : at + 32] for at in range(0, len(seen), 32)}
        assert now in known or not sync.consistent, f"a mix, {words}"
        rig.superset("one")
        if not sync.consistent or chance.random() < 0.1:
            rig.resync()
            rig.superset("one")
            now = hashlib.sha256(crash.secondary()).digest()
        old = now


def test_the_next_run_goes_on_where_one_was_cut_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a journal and without: what is durably done is not copied again, what was written since is."""
    # Each block for itself and a checkpoint every moment, so that some fall among them.
    monkeypatch.setattr(copy, "CHECKPOINT_SECONDS", 0.005)
    monkeypatch.setattr(copy, "REQUEST_BYTES", BLOCK)
    crash = Crash(rig)
    blocks = range(0, 100, 2)
    for words, point in (((), killer("after checkpoint", 5)), (("--direct",), killer("after super-write"))):
        rig.write(*blocks, block_bytes=BLOCK)
        crash.die(point, "--max-stall", "0ms", *words)
        rig.write(1, 2, block_bytes=BLOCK)
        # What lies in the journal is in no place yet, and no mismatch.
        assert ok("verify", NAME, "--json").json["secondaries"][0]["mismatches"] == []
        done = rig.resync(*words)
        assert done["kind"] == "incremental", done
        # One more if nothing had been kept.
        assert 2 * BLOCK <= done["bytes_stale"] <= len(blocks) * BLOCK, done
        assert done["secondaries"][0]["journal"] is not bool(words)
        rig.equal()


def test_a_delta_that_does_not_fit_goes_direct_and_says_so_before(rig: Rig) -> None:
    crash = Crash(rig, "--journal-size", "1M")
    journal = crash.header().regions["journal"]
    fits = (journal.length // BLOCK) // 2
    rig.write(*range(fits), block_bytes=BLOCK)
    said = ok("resync", NAME, "--dry-run").out
    assert "stays a whole point in time" in said and "as asked for" in ok("resync", NAME, "--dry-run", "--direct").out
    assert rig.resync()["secondaries"][0]["journal"] is True
    rig.equal()

    many = min(BLOCKS, journal.length // BLOCK + 2)
    rig.write(*range(many), block_bytes=BLOCK)
    assert "no whole point in time meanwhile" in ok("resync", NAME, "--dry-run").out
    planned = ok("resync", NAME, "--dry-run", "--json").json["secondaries"][0]
    assert planned["journal"] is False and "room for" in planned["direct_reason"]
    crash.die(killer("after retire"))
    assert not crash.header().sync.consistent and rig.secondary("one")["consistent_as_of"] is None
    rig.resync()
    rig.equal()


@pytest.mark.slow
def test_no_journal_at_all(rig: Rig) -> None:
    crash = Crash(rig, "--journal-size", "0")
    assert "journal" not in crash.header().regions
    crash.change(20)
    assert rig.resync()["secondaries"][0]["direct_reason"] == "it has no journal"
    rig.equal()


def test_status_and_examine_show_a_journal(rig: Rig) -> None:
    """Until it is applied: the point in time that it stands for, and what is stale where the data lie."""
    crash = Crash(rig)
    crash.change(10)
    before = rig.secondary("one")
    time.sleep(1.1)  # the point in time is told in whole seconds
    crash.die(killer("after commit-flush"))
    view = rig.secondary("one")
    assert view["journal"] == "committed" and view["consistent_as_of"] > before["consistent_as_of"]
    assert view["synced_era"] == before["synced_era"] and view["stale_blocks"] >= 10
    assert "applies it" in ok("status", NAME).out
    found = ok("examine", rig.secondaries["one"], "--json").json
    assert found["journal"]["committed"] and found["consistent_as_of"] == view["consistent_as_of"]
    assert "yet to be applied" in ok("examine", rig.secondaries["one"]).out
    image = crash.secondary()
    assert "nothing to copy" in ok("resync", NAME, "--dry-run").out
    assert crash.secondary() == image != crash.primary()

    done = rig.resync()
    assert done["kind"] == "none" and done["bytes_copied"] == 0
    rig.equal()
    assert rig.secondary("one")["journal"] is None
    assert ok("examine", rig.secondaries["one"], "--json").json["journal"] is None


@pytest.mark.slow
def test_a_secondary_that_is_all_there_is(rig: Rig) -> None:
    """The primary is lost between the commit of a journal and its end."""
    crash = Crash(rig)
    crash.change(10)
    path = rig.secondaries["one"]
    crash.die(killer("after commit-flush"))
    old, new = crash.secondary(), crash.primary()
    assert "not a secondary" in refused(5, "recover", rig.primary)
    ok("stop", NAME)
    sh("dmsetup", "remove", "--retry", "cut-p0-0")
    with unchanged(path):
        planned = ok("recover", path, "--dry-run", "--json").json
        refused(4, "start", NAME)  # the disk that the cut was made of has the header too
    done = ok("recover", path, "--json").json
    assert done == planned and done["bytes_applied"] >= 10 * BLOCK and done["consistent_as_of"]
    sh("dmsetup", "create", "recovered", "--readonly", "--table", done["table"])
    assert crash.secondary() == new == read("/dev/mapper/recovered", 0, len(new)) != old
    sh("dmsetup", "remove", "--retry", "recovered")
    with unchanged(path):
        assert ok("recover", path, "--json").json == done | {"bytes_applied": 0}

    rig.cut("p0", SIZE)
    ok("start", NAME)
    assert rig.stale("one") == set()
    crash.change(10)
    crash.die(killer("before data-flush"), "--direct")
    with unchanged(path):
        ran = dmsoft("recover", path)
        assert ran.code == 6 and "a whole copy" in ran.err and "dmsetup create" in ran.out, ran


@pytest.mark.slow
def test_a_committed_journal_beside_a_header_that_somebody_wrote_to(rig: Rig) -> None:
    """The reason to compare must not be written over by what is written when the journal was applied."""
    crash = Crash(rig)
    crash.change(10)
    path = rig.secondaries["one"]
    crash.die(killer("after commit-flush"))
    rig.overwrite_older_header(path)
    ok("stop", NAME)
    with unchanged(path):
        ok("start", NAME)
        refused(4, "attach", path)
        assert dmsoft("recover", path).code == 6
    assert rig.secondary("one", code=9)["state"] == "unknown"
    assert rig.resync()["kind"] == "compare"
    rig.equal()


@pytest.mark.slow
def test_a_block_that_the_primary_lost_comes_from_another_secondary(rig: Rig) -> None:
    """Where one has it; what nobody has is named by its block, and all the rest is copied."""
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE), two=rig.cut("s1", SIZE))
    rig.resync()
    rig.write(3, 4)
    rig.resync("two")
    data = rig.primary_header().regions["data"].offset
    rig.behave(rig.primary, "p0", bad=((data + 4 * MIB) // 512, 8))
    ran = dmsoft("resync", NAME, "one")
    assert ran.code == 0 and "taken from a secondary" in ran.err, ran
    rig.behave(rig.primary, "p0")
    rig.equal("one")
    # Nobody else has what is written to it now.
    rig.write(4, 5)
    rig.behave(rig.primary, "p0", bad=((data + 4 * MIB) // 512, 8))
    ran = dmsoft("resync", NAME)
    assert ran.code == 6 and "at block 4," in ran.err, ran
    assert not suspended() and {4} <= rig.stale("one")
    rig.behave(rig.primary, "p0")
    assert rig.differing("one") == rig.differing("two") == {4}
    rig.resync()
    rig.equal()


@pytest.mark.slow
def test_every_flush_of_a_resync_leaves_a_whole_secondary(rig: Rig, seed: int) -> None:
    """What a disk with a volatile cache has after a power cut at any flush, of the header, the journal or the data."""
    disk = LoggedDisk("volatile", rig.cut("s0", SIZE), str(rig.disks["s1"]), SIZE)
    rig.create("--block-size", "64K", primary=rig.cut("p0", SIZE), one=disk.path)
    rig.resync()
    crash = Crash.__new__(Crash)
    crash.rig, crash.key = rig, keys.load(rig.primary_header().mirror_uuid)
    old, first = crash.secondary(), disk.entries()
    rig.write(*range(0, 30, 2), block_bytes=BLOCK)
    rig.resync("--max-stall", "0ms")
    rig.equal()
    new, last = crash.secondary(), disk.entries()
    region = crash.header().regions["data"]
    ok("stop", NAME)
    disk.remove()  # only then the log is complete
    spare = rig.cut("s2", SIZE)
    found = []
    for image in disk.flushes(first, last):
        found.append(_recovered(spare, image, crash.key or b"", region.offset, region.length))
        assert found[-1] in (old, new), f"a mix after flush {len(found)}"
    assert len(found) > 8 and found[0] == old and found[-1] == new


def _recovered(spare: str, image: bytes, key: bytes, offset: int, length: int) -> bytes:
    from dmsoft.member.gate import open_exclusive
    from dmsoft.resync.recovery import recover
    from tests.vm.rig import write

    for at in range(0, len(image), MIB):
        write(spare, at, image[at : at + MIB])
    uuid = header.require(spare).payload.member_uuid
    with open_exclusive(spare, purpose="member", member_uuid=uuid) as disk:
        found = header.read(disk, key=key).header
        assert found is not None and found.verified
        after = recover(disk, found, key)
        assert isinstance(after.payload, Secondary) and after.payload.sync.consistent
    return read(spare, offset, length)
