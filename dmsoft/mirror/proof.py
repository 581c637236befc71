# SPDX-License-Identifier: GPL-2.0-or-later
"""Proving what attached secondaries hold: the only thing that moves their S while they are written behind.

md's word counts for nothing: a write behind that fails while a raid1 is suspended leaves no trace in its status. So

    barrier      era E begins, and all that was written before it has gone through the raid1; the primary is flushed
    renewal      a new raid1 in place of the old one: every write behind of an era before E has ended, well or not
    drain        each writecache writes everything to its disk
    compare      W(S) less W(E), of the primary and of the secondary's own medium, paced as any copy
    promise      the disk is flushed, then its header says S = E

A block that differs is looked up in W(E) afterwards: one that is being written is marked there before that, and is owed
by the next proof. Nobody wrote to any other since the barrier, so one that differs was lost on its way. Nothing is
written to the disk under an attached leg, where a write behind could come between: the secondary is uncoupled then,
caught up and coupled again, as if it had been away.
"""

import contextlib
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from dmsoft.era.blocks import BlockSet
from dmsoft.era.reader import EraReader
from dmsoft.errors import DeviceError, DmsoftError
from dmsoft.member.payload import MemberRecord
from dmsoft.mirror import attach, backlog, job, lower, notes, untracked
from dmsoft.mirror.barrier import barrier
from dmsoft.mirror.guard import Guard
from dmsoft.mirror.job import Job
from dmsoft.mirror.progress import Planned, Progress
from dmsoft.mirror.running import NoRoomError, Running
from dmsoft.mirror.witness import suspected
from dmsoft.resync.copy import CHECKPOINT_SECONDS, CancelledError, Side
from dmsoft.resync.extents import size_bytes
from dmsoft.resync.pace import Limit
from dmsoft.resync.throttle import Throttle
from dmsoft.units import MIB

# How much is compared between two looks at what is written meanwhile.
_STRETCH_BYTES = 64 * MIB


def is_attached(running: Running, record: MemberRecord) -> bool:
    """Whether the secondary is written behind at this moment, on the disk that is here, and md has not dropped it; and
    not with so long a delay that nobody could wait for what is under way."""
    names, placed = running.names, running.assembly.secondaries.get(record.label)
    if record.via.type == "delay" and record.via.delay_ms > 1000 * backlog.LONGEST_SECONDS:
        return False
    if placed is None or record.label not in lower.attached_labels(names, [record.label]):
        return False
    leg, under = names.leg(record.label), names.leg_data(record.label)
    here = lower.leads_to(leg, placed.number) or lower.leads_to(under, placed.number)
    return here and lower.leg_health(names, leg) == "A"


@dataclass(frozen=True, slots=True)
class Proved:
    """What came of it; ``lost`` as `Proof.run` returns it."""

    jobs: Sequence[Job]
    plans: Sequence[Planned]
    lost: dict[str, list[int]]
    stalls: Sequence[float]

    @classmethod
    def nothing(cls) -> "Proved":
        return cls((), (), {}, ())

    def without(self, labels: Collection[str]) -> "Proved":
        """The same less these secondaries."""
        kept = [(each, plan) for each, plan in zip(self.jobs, self.plans, strict=True) if each.label not in labels]
        return Proved([each for each, _ in kept], [plan for _, plan in kept], {}, self.stalls)


def prove(
    running: Running, records: Sequence[MemberRecord], guard: Guard, progress: Progress, cancelled: threading.Event,
    limit: Limit,
) -> Proved:  # fmt: skip
    """Prove what these secondaries hold; if they are not all attached and fit for it, nothing is done."""
    if not can_be(running, records) or untracked.trouble(running) is not None:
        return Proved.nothing()
    with contextlib.ExitStack() as stack:
        era, jobs = running.current_era(), []
        for record in records:
            try:
                jobs.append(stack.enter_context(job.opened(running, record, era)))
            except DmsoftError:
                return Proved.nothing()  # it is tried again uncoupled, and told then
        if any(each.decision.since is None for each in jobs):
            return Proved.nothing()
        plans = [plan(each) for each in jobs]
        progress.planned(plans, sum(each.bytes_stale for each in jobs))
        due = [each for each in jobs if each.owed]
        if not due:
            return Proved(jobs, plans, {}, ())
        stack.enter_context(running.writing())
        notes.pending(running, due)
        source, reader = stack.enter_context(running.primary_side()), stack.enter_context(running.era_reader())
        run = Proof(running, due, guard, reader, source, progress, cancelled, running.throttle(limit, cancelled))
        lost = run.run()
        notes.confirmed(running, due, None)
        return Proved(jobs, plans, lost, run.stalls)


def can_be(running: Running, records: Sequence[MemberRecord]) -> bool:
    """Whether all these secondaries are attached as they should be, and md writes every other that is coupled: the
    raid1 is renewed as a whole, and one that md has dropped would count as in sync from then on."""
    names = running.names
    written = all(
        lower.leg_health(names, names.leg(label)) == "A"
        for label in lower.attached_labels(names, lower.leg_labels(names))
    )
    return bool(records) and written and all(is_attached(running, record) for record in records)


def plan(each: Job) -> Planned:
    """What a proof is going to do to one secondary."""
    if not each.owed:
        return Planned(each.label, "none", "it has everything", 0, attached=True)
    return Planned(each.label, each.decision.kind, each.decision.reason, each.bytes_stale, attached=True)


@dataclass(slots=True)
class Proof:
    """One run over the ``jobs``, which are attached and owe what was written since an era each."""

    running: Running
    jobs: Sequence[Job]
    guard: Guard
    reader: EraReader
    source: Side
    progress: Progress
    cancelled: threading.Event
    throttle: Throttle
    stalls: list[float] = field(default_factory=list)

    def run(self) -> dict[str, list[int]]:
        """By label the blocks that a secondary should hold and does not, as far as they were looked for. S of the
        others has moved, but for those whose job has an error. Raises `DmsoftError` if nothing came of it at all."""
        era = self._renewed()
        lost: dict[str, list[int]] = {}
        for each in self.jobs:
            try:
                attach.drain_caches(self.running, [each.label])
                lost[each.label] = self._compare(each, era)
                if not lost[each.label]:
                    each.vouch(era, self.running.payload.tracker.id)
            except (CancelledError, NoRoomError, lower.PrimaryDroppedError):
                raise
            except DmsoftError as err:
                each.error = err
            except OSError as err:
                each.error = DeviceError(f"{each.label} failed: {err.strerror}.")
        return {label: blocks for label, blocks in lost.items() if blocks}

    def _renewed(self) -> int:
        """The barrier and the renewal; returns the era that began."""
        self.running.await_room()
        with barrier(self.running.names, self.guard, freeze=False) as here:
            era = here.next_era(self.reader)
        self.stalls.append(here.stall_seconds)
        self.running.flush_primary()
        self.stalls.append(attach.renew(self.running, self.guard))
        return era

    def _written_since(self, era: int) -> BlockSet:
        return self.reader.written_since(era).blocks

    def _compare(self, each: Job, era: int) -> list[int]:
        """The blocks that differ although nobody wrote to them since the barrier; ends with the first stretch that has
        any. How far it came is kept now and then, as it would be of a copy."""
        each.stale = each.decision.owed(self._written_since, each.stale.nr_blocks)
        todo = each.stale - self._written_since(era)
        self.progress.phase("compare", self._size(todo))
        total, step = todo.nr_blocks, max(1, _STRETCH_BYTES // self.running.block_bytes)
        due = time.monotonic() + CHECKPOINT_SECONDS
        for first in range(0, total, step):
            end = min(first + step, total)
            part = todo & BlockSet.from_extents(total, [(first, end - first)])
            if not part:
                continue
            suspects, _ = suspected(self.running, self.source, each, part, self.cancelled, self.throttle, self.progress)
            lower.require_primary(self.running.names)  # as in a verify
            self.running.require_tracking()
            written = self._written_since(era) if suspects else part
            found = [block for block in suspects if block not in written]
            if found:
                return found
            if time.monotonic() >= due:
                each.checkpoint(era, end, self.running.payload.tracker.id)
                due = time.monotonic() + CHECKPOINT_SECONDS
        return []

    def _size(self, blocks: BlockSet) -> int:
        return size_bytes(blocks, block_bytes=self.running.block_bytes, data_bytes=self.running.data.length)
