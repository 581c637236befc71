# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole runs over files, with a model in place of dm-era and its barrier: killed at any step, under a writer, with and
without a journal. What differs is always owed, and a disk that says it is whole is one of the points in time."""

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dmsoft.era.blocks import BlockSet
from dmsoft.member import header
from dmsoft.member.gate import GatedDevice
from dmsoft.member.payload import MemberRecord, Region, Sync
from dmsoft.mirror import catchup, final, lower, tracker
from dmsoft.mirror.barrier import Barrier
from dmsoft.mirror.catchup import Run
from dmsoft.mirror.decision import decide, go_on
from dmsoft.mirror.job import Job
from dmsoft.mirror.names import new_uuid
from dmsoft.mirror.outage import UnreadableError
from dmsoft.mirror.progress import Progress, Silent
from dmsoft.resync import copy, recovery, staging, steps
from dmsoft.resync.copy import CancelledError, Side
from dmsoft.resync.journal import Journal
from tests import mirror_model
from tests.journal_model import BLOCK, BLOCKS, DATA, JOURNAL, KEY, RecordedDisk, blank, data_of, differing, pieces


class KilledError(BaseException):
    """Nobody catches it, as nobody survives a SIGKILL."""


class Machine:
    """A primary in a file with the era of each block's last write, and one secondary."""

    def __init__(self, folder: Path, seed: int, *, journal: int = JOURNAL) -> None:
        self.chance = random.Random(seed)
        data = self.chance.randbytes(DATA)
        self.primary = RecordedDisk(folder / "primary", data)
        self.secondary = RecordedDisk(folder / "secondary", blank(bytes(DATA), Sync(), journal, folder))
        self.era, self.last = 7, [0] * BLOCKS
        self.record: MemberRecord = mirror_model.record("one")
        self.points = [bytes(DATA)]
        self.busy: float = 0
        self.durable, self.room = self.era, False
        self.cancelled = threading.Event()
        self.lock = threading.Lock()

    def close(self) -> None:
        self.primary.close()
        self.secondary.close()

    def write(self, *blocks: int) -> None:
        with self.lock, self.primary.path.open("r+b") as file:
            for block in blocks:
                self.last[block] = self.era
                file.seek(block * BLOCK)
                file.write(self.chance.randbytes(BLOCK))

    def load(self, _: int = 0) -> None:
        """What somebody writes while a copy is under way."""
        if self.chance.random() < self.busy:
            self.write(self.chance.randrange(BLOCKS))

    def written_since(self, era: int) -> SimpleNamespace:
        rows = [(block, 1) for block, last in enumerate(self.last) if last >= era]
        return SimpleNamespace(blocks=BlockSet.from_extents(BLOCKS, rows))

    def flush_primary(self) -> None:
        """What was written before the era that is current lies on its medium."""
        self.durable = self.era

    def await_room(self) -> None:
        self.room = True

    @contextlib.contextmanager
    def barrier(self, _names: object, _guard: object, *, freeze: bool, await_udev: bool = True) -> Iterator[Barrier]:
        assert self.room, "nobody looked whether the metadata have room for another era"
        self.room = False
        here = cast(Barrier, SimpleNamespace(check=lambda: None, next_era=lambda _: self.era + 1, stall_seconds=0.001))
        yield here
        if freeze:
            self.points.append(self.primary.path.read_bytes())
        self.era += 1
        self.load()

    def open(self, *, direct: bool = False) -> Job:
        """As `dmsoft.mirror.job.opened` does it, without the gate and the sample."""
        found = header.read(self.secondary, key=KEY).header
        assert found is not None
        found = recovery.recover(self.secondary, found, KEY)
        job = self._job(found)
        staged = recovery.found(self.secondary, found, KEY)
        decision = (
            None if staged is None or direct else go_on(self.top, self.record, job.payload, staged.sync, self.era)
        )
        if staged is not None and decision is not None and job.decision.kind == "incremental":
            job.decision, job.held = decision, (decision.since, decision.partial)
            job.owed = decision.owed(lambda era: self.written_since(era).blocks, BLOCKS)
            regions = found.payload.regions
            job.journal = Journal.of(staged, self.secondary, regions["journal"], regions["data"], KEY)
        return job

    def _job(self, found: header.Header) -> Job:
        assert hasattr(found.payload, "sync")
        decision = decide(self.top, self.record, found.payload, self.era)  # type: ignore[arg-type]
        owed = decision.owed(lambda era: self.written_since(era).blocks, BLOCKS)
        return Job(
            "one", found, cast(GatedDevice, self.secondary), KEY, decision, owed, owed.copy(), new_uuid(),
            attach=False, held=(decision.since, decision.partial),
        )  # fmt: skip

    @property
    def top(self) -> Any:
        return mirror_model.primary(self.record)

    def run(self, *, direct: bool = False, stall: float = 0.0) -> Run:
        """A whole resync; raises what kills it."""
        self.cancelled.clear()
        era = self.era
        job = self.open(direct=direct)
        self.load()
        believed = job.decision.kind == "incremental"
        confirmed = job.payload.sync.token if believed else self.record.token_confirmed
        self.record = self.record.replace(token_pending=job.token, token_confirmed=confirmed)
        running = SimpleNamespace(
            names=None, payload=self.top, block_bytes=BLOCK, data=Region(0, DATA), await_room=self.await_room,
            flush_primary=self.flush_primary, require_tracking=lambda: None,
        )  # fmt: skip
        progress = cast(Progress, _Loud(self))
        spares = SimpleNamespace(read=lambda _offset, _view: False)
        run = Run(
            cast(Any, running), [job], cast(Any, None), cast(Any, self), Side(self.primary.fd, 0), progress,
            self.cancelled, stall, cast(Any, spares), direct, None, era,
        )  # fmt: skip
        run.run()
        if job.error is not None:
            raise job.error
        self.record = self.record.replace(token_pending=None, token_confirmed=job.token)
        return run

    def check(self) -> Job:
        """Open the disk after whatever happened: a whole point in time or known as none, and nothing forgotten."""
        job = self.open()
        sync = job.payload.sync
        assert max(sync.era or 0, sync.partial.until if sync.partial else 0) <= self.durable, "the primary may lose it"
        found = data_of(self.secondary.image())
        if job.payload.sync.consistent:
            assert found in self.points, "a mix"
            self.points = [found]
        differ = set(differing(found, self.primary.path.read_bytes()))
        # Of what is staged only the primary's newer writes are owed again, so ask what the disk by itself misses.
        missed = differ - {b for b in range(BLOCKS) if b in self._job(job.header).owed}
        assert not missed
        return job


class _Loud(Silent):
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.notes: list[str] = []

    def phase(self, name: str, bytes_total: int, bytes_later: int = 0, *, queue: object = None) -> None: ...

    def advance(self, count: int) -> None:
        self._machine.load(count)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def _never_coupled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "require_primary", lambda _names: None)


@pytest.fixture
def machine(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path, seed)
    for module in (catchup, final):
        monkeypatch.setattr(module, "barrier", made.barrier)
    yield made
    made.close()


def kill_after(count: int) -> None:
    """The run ends at the ``count``-th step from now on."""
    lock, left = threading.Lock(), [count]

    def watch(_: str) -> None:
        with lock:
            left[0] -= 1
            if left[0] <= 0:
                raise KilledError

    steps.watch = watch


@pytest.mark.parametrize("journal", [JOURNAL, 0])
def test_runs_that_are_killed_at_any_step(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, journal: int
) -> None:
    machine = Machine(tmp_path, seed, journal=journal)
    for module in (catchup, final):
        monkeypatch.setattr(module, "barrier", machine.barrier)
    monkeypatch.setattr(copy, "CHECKPOINT_SECONDS", 0.0005)
    monkeypatch.setattr(steps, "watch", None)
    chance, killed = machine.chance, 0
    with contextlib.closing(machine):
        while killed < 20:
            machine.write(*chance.sample(range(BLOCKS), chance.randrange(BLOCKS // 2)))
            machine.busy = chance.choice([0, 0, 0.3])
            kill_after(chance.choice([1, 4, 10, 20, 50]) + chance.randrange(10))
            try:
                machine.run(direct=chance.random() < 0.2, stall=chance.choice([0.0, 1.0]))
            except KilledError:
                killed += 1
            machine.busy, steps.watch = 0, None
            machine.check()
            if chance.random() < 0.2:
                machine.run()
                assert data_of(machine.secondary.image()) == machine.primary.path.read_bytes()


def test_a_first_copy_goes_on_where_it_was_cut_off(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "REQUEST_BYTES", BLOCK)
    monkeypatch.setattr(catchup, "REQUEST_BYTES", BLOCK)
    job = machine.open()
    assert job.decision.kind == "full"
    machine.record = machine.record.replace(token_pending=job.token)
    job.open_journal(DATA, direct=False)
    job.side.put(pieces({block: machine.primary.pread(BLOCK, block * BLOCK) for block in range(20)}))
    job.checkpoint(machine.era, 20, mirror_model.TRACKER)
    machine.write(3, 25)
    again = machine.check()
    assert again.decision.kind == "full" and again.decision.partial is not None
    assert {block for block in range(BLOCKS) if block in again.owed} == {3, *range(20, BLOCKS)}
    run = machine.run()
    assert run.jobs[0].written == (1 + BLOCKS - 20) * BLOCK
    assert data_of(machine.secondary.image()) == machine.primary.path.read_bytes()


def test_a_cancelled_run_keeps_what_it_did(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "REQUEST_BYTES", BLOCK)
    monkeypatch.setattr(copy, "BATCH_PIECES", 1)
    monkeypatch.setattr(catchup, "BATCH_PIECES", 1)
    machine.run()
    for direct in (True, False):
        machine.write(*range(0, BLOCKS, 3))
        count = iter(range(1000))
        monkeypatch.setattr(
            machine, "load", lambda _=0, count=count: machine.cancelled.set() if next(count) == 4 else None
        )  # fmt: skip
        with pytest.raises(CancelledError):
            machine.run(direct=direct)
        left = machine.check()
        assert left.decision.partial is not None and 0 < left.owed.count() < BLOCKS // 3
        assert left.payload.sync.consistent is not direct
        machine.run(direct=direct)
        assert data_of(machine.secondary.image()) == machine.primary.path.read_bytes()


def test_a_compare_goes_on_where_it_was_cut_off(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one that another doubt asked for, and not in another life of the tracking."""
    monkeypatch.setattr(catchup, "REQUEST_BYTES", BLOCK)
    machine.run()
    machine.record = machine.record.replace(token_confirmed="9" * 32)
    for block in (2, 30):
        machine.secondary.pwrite(bytes(BLOCK), header.HEADER_BYTES + JOURNAL + block * BLOCK)
    count = iter(range(1000))
    with monkeypatch.context() as patched:
        patched.setattr(machine, "load", lambda _=0: machine.cancelled.set() if next(count) == 9 else None)
        with pytest.raises(CancelledError):
            machine.run()
    machine.write(1)
    job = machine.check()
    partial = job.decision.partial
    assert job.decision.kind == "compare" and partial is not None and 0 < partial.below < BLOCKS
    assert {block for block in range(BLOCKS) if block in job.owed} == {1, *range(partial.below, BLOCKS)}
    assert job.payload.sync.doubt is not None and job.payload.sync.era is None

    assert decide(machine.top, machine.record, job.payload, None).partial is None
    revoked = tracker.revoked(machine.top, "trouble", tracked=True)
    assert decide(revoked, machine.record, job.payload, machine.era).partial is None
    doubted = job.payload.replace(sync=job.payload.sync.doubted("something else"))
    assert decide(machine.top, machine.record, doubted, machine.era).partial is None

    before = machine.secondary.image()
    run = machine.run()
    assert run.jobs[0].written <= 3 * BLOCK and differing(data_of(before), data_of(machine.secondary.image()))
    assert data_of(machine.secondary.image()) == machine.primary.path.read_bytes()
    assert machine.open().decision.kind == "incremental"


def test_compares_that_are_killed_at_any_step(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with differences that nothing but the compare can find."""
    machine = Machine(tmp_path, seed)
    for module in (catchup, final):
        monkeypatch.setattr(module, "barrier", machine.barrier)
    monkeypatch.setattr(catchup, "REQUEST_BYTES", BLOCK)
    monkeypatch.setattr(copy, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(steps, "watch", None)
    chance, went_on = machine.chance, 0
    with contextlib.closing(machine):
        machine.run()
        for _ in range(12):
            machine.open().doubt(f"doubt {chance.random()}")
            for block in chance.sample(range(BLOCKS), 8):
                machine.secondary.pwrite(chance.randbytes(BLOCK), header.HEADER_BYTES + JOURNAL + block * BLOCK)
            machine.busy = chance.choice([0, 0.3])
            for _ in range(3):
                kill_after(chance.randrange(2, 40))
                with contextlib.suppress(KilledError):
                    machine.run()
                machine.busy, steps.watch = 0, None
                went_on += machine.check().decision.partial is not None
            machine.run()
            assert data_of(machine.secondary.image()) == machine.primary.path.read_bytes()
    assert went_on >= 3


def test_what_outgrows_the_journal_goes_direct_and_ends_whole(machine: Machine) -> None:
    machine.run()
    machine.write(*range(12))
    job = machine.open()
    assert job.why_direct(0) is None
    machine.busy = 0.95
    run = machine.run()
    machine.busy = 0
    machine.check()
    assert run.passes > 1
    machine.run()
    assert data_of(machine.secondary.image()) == machine.primary.path.read_bytes()


def test_what_nobody_can_read_is_named_and_the_rest_is_copied(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.run()
    machine.write(4, 5, 6)
    old = data_of(machine.secondary.image())
    read_all = copy.read_all

    def read(side: Side, view: memoryview, offset: int) -> None:
        if side.fd == machine.primary.fd and offset < 6 * BLOCK and offset + len(view) > 5 * BLOCK:
            raise OSError(5, "bad sector")
        read_all(side, view, offset)

    for module in (copy, staging):
        monkeypatch.setattr(module, "read_all", read)
    with pytest.raises(UnreadableError, match="at block 5, and no"):
        machine.run()
    for module in (copy, staging):
        monkeypatch.setattr(module, "read_all", read_all)
    found, now = data_of(machine.secondary.image()), machine.primary.path.read_bytes()
    assert differing(found, now) == [5] and differing(found, old) == [4, 6]
    assert not machine.check().payload.sync.consistent
    machine.run()
    assert data_of(machine.secondary.image()) == now


@pytest.mark.parametrize("killed_at", ["after copy", "before data-flush", "after super-write"])
@pytest.mark.parametrize("direct", [True, False])
def test_a_primary_put_back_from_before_a_run_knows_nothing_of_what_that_run_copied(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, direct: bool, killed_at: str
) -> None:
    """Of the writes made since that image the primary has neither data nor marks, and the secondary has the data."""
    machine.run()
    image, last, era, record = machine.primary.path.read_bytes(), list(machine.last), machine.era, machine.record
    machine.write(5)

    def watch(step: str) -> None:
        if step == killed_at:
            raise KilledError

    monkeypatch.setattr(steps, "watch", watch)
    with contextlib.suppress(KilledError):
        machine.run(direct=direct)
    monkeypatch.setattr(steps, "watch", None)
    machine.primary.path.write_bytes(image)
    machine.last, machine.era, machine.record = last, era + 1, tracker.bounded(record, era)
    job = machine.check()
    assert job.owed.count() in (0, BLOCKS)


def test_what_a_run_doubted_is_not_believed_after_it_was_killed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header has the token of that run by then, which the primary knows."""
    machine.run()
    machine.secondary.pwrite(bytes(BLOCK), header.HEADER_BYTES + JOURNAL + 9 * BLOCK)
    machine.record = machine.record.replace(token_confirmed="9" * 32)

    def watch(step: str) -> None:
        if step == "after copy":
            raise KilledError

    machine.write(3)
    monkeypatch.setattr(steps, "watch", watch)
    with contextlib.suppress(KilledError):
        machine.run()
    monkeypatch.setattr(steps, "watch", None)
    assert machine.open().decision.kind == "compare"
    machine.run()
    assert data_of(machine.secondary.image()) == machine.primary.path.read_bytes()


def test_a_header_copy_that_could_not_be_read_while_a_journal_was_gone_on_with(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal was begun under a header that counts again as soon as the disk can read it."""
    machine.run()
    machine.write(*range(10))
    job = machine.open()
    machine.record = machine.record.replace(token_pending=job.token)
    job.open_journal(10 * (BLOCK + 4096), direct=False)
    now = machine.primary.path.read_bytes()
    job.target.put(pieces({n: now[n * BLOCK : (n + 1) * BLOCK] for n in range(10)}))
    job.promise(machine.era, mirror_model.TRACKER, as_of=None)
    scan = header.read(machine.secondary, key=KEY)
    assert scan.header is not None
    newest = next(each.slot for each in scan.copies if each.sequence == scan.header.sequence)
    pread = RecordedDisk.pread

    def broken(self: RecordedDisk, length: int, offset: int) -> bytes:
        if offset == newest * header.SLOT_BYTES:
            raise OSError(5, "bad sector")
        return pread(self, length, offset)

    with monkeypatch.context() as failing:
        failing.setattr(RecordedDisk, "pread", broken)
        job = machine.open()
    assert job.journal is not None and job.header.sequence == scan.header.sequence - 1
    machine.era += 1
    machine.flush_primary()
    machine.points.append(now)
    apply = Journal.apply

    def cut(_: Journal, **__: Any) -> None:
        machine.secondary.pwrite(now[:BLOCK], header.HEADER_BYTES + JOURNAL)
        raise KilledError

    monkeypatch.setattr(Journal, "apply", cut)
    with pytest.raises(KilledError):
        job.promise(machine.era, mirror_model.TRACKER, as_of="2026-02-02T00:00:00Z")
    monkeypatch.setattr(Journal, "apply", apply)
    machine.check()
    assert data_of(machine.secondary.image()) == now
