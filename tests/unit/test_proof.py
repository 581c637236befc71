# SPDX-License-Identifier: GPL-2.0-or-later
"""Proofs over files, with a model of an attached secondary whose writes behind may get lost: S never passes a block
that does not hold what it should, whatever is lost, written or killed meanwhile."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dmsoft.errors import DeviceError
from dmsoft.member import header
from dmsoft.mirror import proof, witness
from dmsoft.mirror.lower import PrimaryDroppedError
from dmsoft.mirror.proof import Proof
from dmsoft.resync import steps
from dmsoft.resync.copy import CancelledError, Side
from dmsoft.resync.pace import Limit
from dmsoft.resync.throttle import Counters, Throttle
from tests.journal_model import BLOCK, BLOCKS, DATA, JOURNAL, data_of
from tests.unit.test_catchup import KilledError, Machine, kill_after


class Attached(Machine):
    """Writes go to the secondary as well, some later, some never; ``renew`` waits for those on their way."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed, journal=JOURNAL)
        self.way: list[tuple[int, bytes]] = []
        self.lose = 0.0
        self.lost: set[int] = set()

    def write(self, *blocks: int) -> None:
        super().write(*blocks)
        for block in blocks:
            if self.chance.random() < self.lose:
                self.lost.add(block)
                continue
            with self.lock:
                self.way.append((block, self.primary.pread(BLOCK, block * BLOCK)))
                late = self.chance.random() < 0.5
            if not late:
                self.land()

    def land(self, *_: object) -> float:
        with self.lock:
            way, self.way = self.way, []
            for block, data in way:
                self.secondary.pwrite(data, header.HEADER_BYTES + JOURNAL + block * BLOCK)
        return 0.002

    def wait_for_room(self) -> None:
        """What is written between opening and barrier."""
        self.await_room()
        self.load()

    def prove(self) -> dict[str, list[int]]:
        """A proof; raises what kills it, and the job's error."""
        self.cancelled.clear()
        job = self.open()
        assert job.decision.kind == "incremental"
        self.record = self.record.replace(token_pending=job.token, token_confirmed=job.payload.sync.token)
        running = SimpleNamespace(
            names=None, payload=self.top, block_bytes=BLOCK, data=SimpleNamespace(length=DATA),
            await_room=self.wait_for_room, flush_primary=self.flush_primary,
            require_tracking=lambda: None,
        )  # fmt: skip
        progress = SimpleNamespace(phase=lambda *_: None, advance=self.load)
        throttle = Throttle(Limit("max"), lambda: Counters(0, 0.0, 0), threading.Event())
        run = Proof(
            cast(Any, running), [job], cast(Any, None), cast(Any, self), Side(self.primary.fd, 0), cast(Any, progress),
            self.cancelled, throttle,
        )  # fmt: skip
        lost = run.run()
        if job.error is not None:
            raise job.error
        if job.payload.sync.token == job.token:
            self.record = self.record.replace(token_pending=None, token_confirmed=job.token)
        return lost


@pytest.fixture
def attached(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attached]:
    made = Attached(tmp_path, seed)
    made.way.clear()
    monkeypatch.setattr(proof, "barrier", made.barrier)
    monkeypatch.setattr(proof.attach, "renew", made.land)
    monkeypatch.setattr(proof.attach, "drain_caches", lambda *_: None)
    monkeypatch.setattr(proof.lower, "require_primary", lambda *_: None)
    monkeypatch.setattr(witness, "REQUEST_BYTES", BLOCK)
    monkeypatch.setattr(proof, "_STRETCH_BYTES", 4 * BLOCK)
    monkeypatch.setattr(steps, "watch", None)
    coupled = made.open()
    made.record = made.record.replace(token_pending=coupled.token)
    made.secondary.pwrite(made.primary.pread(DATA, 0), header.HEADER_BYTES + JOURNAL)
    coupled.spoil()
    coupled.promise(made.era, made.top.tracker.id, as_of=None)
    made.record = made.record.replace(token_pending=None, token_confirmed=coupled.token)
    yield made
    made.close()


def synced(machine: Attached) -> int | None:
    return machine.open().payload.sync.era


def test_what_arrived_is_proved(attached: Attached) -> None:
    attached.write(*range(0, BLOCKS, 2))
    attached.land()
    data = data_of(attached.secondary.image())
    assert attached.prove() == {}
    assert synced(attached) == attached.era
    attached.check()
    assert not attached.open().owed
    assert data == data_of(attached.secondary.image()), "it wrote to the data"


@pytest.mark.parametrize("block", [0, 9, BLOCKS - 1])
def test_what_was_lost_is_found_and_s_stays(attached: Attached, block: int) -> None:
    era = synced(attached)
    attached.write(3, 4, 5)
    attached.lose = 1.0
    attached.write(block)
    attached.lose = 0.0
    assert attached.prove() == {"one": [block]}
    assert synced(attached) == era
    attached.check()


def test_what_was_lost_between_opening_and_barrier_is_found(
    attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached.write(3)

    def late() -> None:
        attached.await_room()
        attached.lose = 1.0
        attached.write(7)
        attached.lose = 0.0

    monkeypatch.setattr(attached, "wait_for_room", late)
    assert attached.prove() == {"one": [7]}
    attached.check()


def test_what_is_written_meanwhile_is_for_the_next_one(attached: Attached) -> None:
    attached.write(*range(20))
    attached.busy = 0.7
    attached.lose = 0.3
    for block in range(20):
        attached.lost.discard(block)
    found = attached.prove()
    attached.busy = attached.lose = 0
    assert all(block in attached.lost for block in found.get("one", []))
    attached.check()


def test_whatever_is_lost_or_killed_s_speaks_the_truth(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "CHECKPOINT_SECONDS", 0.0)
    chance, moved, found_lost, went_on = attached.chance, 0, 0, 0
    for _ in range(120):
        attached.lose = chance.choice([0, 0, 0, 0.2])
        attached.write(*chance.sample(range(BLOCKS), chance.randrange(1, BLOCKS // 2)))
        attached.busy = chance.choice([0, 0.5])
        if chance.random() < 0.4:
            kill_after(chance.randrange(1, 12))
        era = synced(attached)
        lost: dict[str, list[int]] = {}
        with contextlib.suppress(KilledError):
            lost = attached.prove()
        attached.busy, attached.lose, steps.watch = 0, 0, None
        attached.land()
        job = attached.check()
        went_on += job.decision.partial is not None
        moved += synced(attached) != era
        if lost:
            found_lost += 1
            attached.secondary.pwrite(attached.primary.pread(DATA, 0), header.HEADER_BYTES + JOURNAL)  # caught up
    assert moved >= 10 and found_lost >= 5 and went_on >= 3


def test_a_disk_that_cannot_be_read_proves_nothing(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    attached.write(5)
    era, read_all = synced(attached), witness.Copier._differs

    def broken(*_: object) -> bool:
        raise OSError(5, "bad sector")

    monkeypatch.setattr(witness.Copier, "_differs", broken)
    with pytest.raises(DeviceError, match="could not be read"):
        attached.prove()
    monkeypatch.setattr(witness.Copier, "_differs", read_all)
    assert synced(attached) == era


def test_a_cancelled_proof_moves_nothing(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    attached.write(*range(30))
    era = synced(attached)
    monkeypatch.setattr(attached, "load", lambda _=0: attached.cancelled.set())
    with pytest.raises(CancelledError):
        attached.prove()
    assert synced(attached) == era
    attached.check()


def test_a_primary_that_is_left_out_ends_it(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    attached.write(*range(30))
    era = synced(attached)

    def dropped(_: object) -> None:
        raise PrimaryDroppedError("It was left out.")

    monkeypatch.setattr(proof.lower, "require_primary", dropped)
    with pytest.raises(PrimaryDroppedError):
        attached.prove()
    assert synced(attached) == era
