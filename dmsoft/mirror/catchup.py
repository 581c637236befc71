# SPDX-License-Identifier: GPL-2.0-or-later
"""Catching up: the passes of a resync, from the first barrier to the promise at its end.

    barrier      era E begins, everything before it has drained; the primary is flushed
    pre-copy     the stale sets are copied while writes go on; then what was written since E, while that shrinks
    checkpoint   after each pass, and now and then within one: flush the secondary and note how far it is, so that a run
                 cut off later owes no more than the rest and W(E)
    final        `dmsoft.mirror.final`

Copies go into the journal of a secondary, if it has one, is whole and what it misses fits; its data region stays as it
is until the journal was committed. Else they go straight to their places, and its header says first that it is no whole
point in time. S moves only in `Job.promise`, and only to an era that a barrier began after which the primary was
flushed.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dmsoft.era.blocks import BlockSet
from dmsoft.era.reader import EraReader
from dmsoft.errors import BusyError, DeviceError, DmsoftError
from dmsoft.mirror import lower, outage
from dmsoft.mirror.barrier import barrier
from dmsoft.mirror.final import Final
from dmsoft.mirror.guard import Guard
from dmsoft.mirror.job import Job
from dmsoft.mirror.progress import Progress, Queue
from dmsoft.mirror.running import Running
from dmsoft.mirror.spare import Spares
from dmsoft.resync.copy import BATCH_PIECES, REQUEST_BYTES, CancelledError, Copier, Side, Tally
from dmsoft.resync.extents import Request, count, requests, runs, size_bytes
from dmsoft.resync.journal import needed
from dmsoft.resync.throttle import Throttle
from dmsoft.threads import require_room
from dmsoft.units import MIB, format_size

if TYPE_CHECKING:
    from dmsoft.resync.extents import Rows

MAX_STAGING_BYTES = 128 * MIB
_STAGING_MORE = 8 * MIB
_MAX_PASSES = 12
_MAX_FINALS = 5
_FIRST_RATE = 32 * MIB  # bytes a second, until one was measured
_LOOK_SECONDS = 5.0
# So much faster than blocks are written anew, the rest shrinks by a third with each pass.
_FASTER = 1.5
# So many batches at least a pass is made of, for every thread of it to have some.
_BATCHES = 128
# The first ones are small: with those of a MiB a slow disk would have only half of the threads it needs for a second.
_RISE = 16
_LARGE_BYTES = 128 * MIB


@dataclass(slots=True)
class Run:
    """One run over the ``jobs``, which are open and decided. ``max_stall`` is how long the copying inside the final
    barrier may take, in seconds; ``direct``: no journal is used; ``throttle`` paces the passes, None: it does not;
    ``opened_in``: the era, or an earlier one, in which it was read what the jobs owe, None while nothing is tracked."""

    running: Running
    jobs: list[Job]
    guard: Guard
    era_reader: EraReader | None
    source: Side
    progress: Progress
    cancelled: threading.Event
    max_stall: float
    spares: Spares
    direct: bool = False
    throttle: Throttle | None = None
    opened_in: int | None = None
    passes: int = 0
    stalls: list[float] = field(default_factory=list)
    rate: float = _FIRST_RATE
    measured: bool = False
    converged: bool = True
    _look_at: float = 0.0

    def run(self) -> None:
        """Everything from the first barrier on; failures of single secondaries end up in their jobs."""
        since = self._pre_copy() if self._needs_pre_copy() else None
        for _ in range(_MAX_FINALS):
            if not self.alive or not self.converged or Final(self, since).run():
                return
            since = self._pre_copy(since)
        raise DeviceError(
            "More is written just before each final barrier than fits it.",
            hint="Run it again when there is less load, or with a longer --max-stall.",
        )

    def compare_untracked(self) -> None:
        """One pass over everything, while nothing is tracked: what is written meanwhile may be missing afterwards, so
        nothing is promised and the secondaries are no whole point in time."""
        self.converged = False
        self._copy_pass(None)
        reason = self.running.payload.tracker.doubt or "nothing was tracked"
        for job in self.alive:
            self.attempt(job, functools.partial(job.copied_untracked, reason))
        self.progress.note(
            "Nothing is tracked at the moment, so what was written while this ran may be missing, and nothing is "
            "promised. `dmsoft status` says why."
        )

    @property
    def reader(self) -> EraReader:
        """Only while the mirror tracks."""
        if self.era_reader is None:
            raise RuntimeError("nothing is tracked")
        return self.era_reader

    @property
    def alive(self) -> list[Job]:
        return [job for job in self.jobs if job.error is None]

    @property
    def tracker(self) -> str:
        return self.running.payload.tracker.id

    def size(self, blocks: BlockSet) -> int:
        return size_bytes(blocks, block_bytes=self.running.block_bytes, data_bytes=self.running.data.length)

    def _union(self) -> BlockSet:
        union = BlockSet.empty(self.jobs[0].owed.nr_blocks)
        for job in self.alive:
            union |= job.owed
        return union

    def _rows(self) -> "Rows":
        nothing = BlockSet.empty(self.jobs[0].owed.nr_blocks)
        alive = self.alive
        return runs([job.owed if job in alive else nothing for job in self.jobs])

    def requests(self) -> Iterable[Request]:
        """What the jobs owe, as requests whose target bits are positions in `jobs`."""
        return requests(self._rows(), **self._sizes)

    @property
    def _sizes(self) -> dict[str, int]:
        data, block = self.running.data.length, self.running.block_bytes
        return {"block_bytes": block, "data_bytes": data, "request_bytes": REQUEST_BYTES}

    def budget(self) -> int:
        """Bytes that may be left for the final barrier: what the measured rate moves in ``max_stall``."""
        least = 4 * self.running.block_bytes
        return max(least, min(MAX_STAGING_BYTES, int(self.rate * self.max_stall)))

    def staging_bytes(self) -> int:
        """Memory for the final barrier: for what was left at the last look, and as much again, and some, since it
        grows until then; more than the budget is another pass's."""
        return min(2 * self.budget(), 2 * self.size(self._union()) + _STAGING_MORE)

    def _needs_pre_copy(self) -> bool:
        return any(job.decision.since is None for job in self.jobs) or self.size(self._union()) > self.budget()

    def _roll(self) -> int:
        """A barrier without a freeze, and a flush of the primary; returns the era that began."""
        self.running.await_room()
        with barrier(self.running.names, self.guard, freeze=False) as here:
            era = here.next_era(self.reader)
        self.stalls.append(here.stall_seconds)
        self.running.flush_primary()
        lower.require_primary(self.running.names)  # what went through a raid1 may be on its secondaries alone
        return era

    def owe(self, since: int | None) -> None:
        """Read anew what each job owes: what was written since an era; None: also what it owed when it was opened.

        What was written since S is not read again for that, as it may take long, and everybody may be waiting: of an
        era that had ended by then nothing comes after.
        """
        era = self.opened_in if since is None else since
        if era is None:
            raise RuntimeError("nothing is tracked")
        written = self.reader.written_since(era).blocks
        for job in self.alive:
            job.owed = job.owed | written if since is None else written
            job.stale |= job.owed

    def _pre_copy(self, since: int | None = None) -> int:
        """Passes until the rest fits the final barrier; returns the era since which the rest was written.

        ``since`` is what an earlier one returned, None the first time: each job begins with what it owes then.
        """
        era = self._roll()
        self.owe(since)
        before = None
        while True:
            start = time.monotonic()
            self._copy_pass(era)
            self._checkpoint(era)
            if not self.alive:
                return era
            self.owe(era)
            left = self.size(self._union())
            self._keep_up(left, start)
            if left <= self.budget():
                return era
            if self.passes >= _MAX_PASSES or (before is not None and left > 0.9 * before and left > MAX_STAGING_BYTES):
                self._give_up(left)
                return era
            before, closed = left, era
            era = self._roll()
            # Read again: what was written up to that barrier is of the era it closed, and S will be the one it began.
            self.owe(closed)

    def _give_up(self, left: int) -> None:
        self.converged = False
        self.progress.note(
            f"{format_size(left)} were written while the last pass copied: writes outrun the copy. What was copied is "
            f"kept, and the secondary stays stale. Run resync again when there is less load, with --rate max, or "
            f"with a longer --max-stall."
        )

    def _copy_pass(self, until: int | None) -> None:
        """Copy what is owed, which is all that was written before era ``until``; None while nothing is tracked."""
        self.passes += 1
        self.place()
        total = self.size(self._union())
        staged = sum(job.journal.end.length for job in self.alive if job.journal is not None)
        compare = sum(1 << i for i, job in enumerate(self.jobs) if job.decision.kind == "compare" and self.passes == 1)
        rows = self._rows()
        pieces = BATCH_PIECES if self._stages() else min(BATCH_PIECES, len(rows) // _BATCHES + 1)
        copier = Copier(
            self.source, [job.target for job in self.jobs], compare=compare, cancelled=self.cancelled,
            large=total >= _LARGE_BYTES, batch_pieces=pieces, rise=0 if self._stages() else _RISE,
            piece_bytes=self.running.block_bytes,
            read=None if self.throttle is None else self.throttle.read, rescue=self.spares.read,
            on_progress=self._advance, on_checkpoint=lambda offset: self._look_within(copier, until, offset, start),
        )  # fmt: skip
        tally, owed = copier.tally, count(rows, **self._sizes)
        self.progress.phase(
            f"pass {self.passes}", total, staged + total if self._stages() else 0,
            queue=lambda: Queue(owed - tally.requests, tally.requests, tally.failures),
        )  # fmt: skip
        if self.throttle is not None:
            self.throttle.begin()
        start = time.monotonic()
        try:
            copier.run(requests(rows, **self._sizes))
        except CancelledError:
            self._checkpoint_within(copier, until, copier.floor())
            raise
        finally:
            self.count(copier.tally)
        if copier.tally.read > MIB:
            if self.throttle is None or not self.throttle.held_back:
                self.rate, self.measured = copier.tally.read / max(time.monotonic() - start, 1e-3), True
            else:  # the final barrier does not wait, uses one thread, and writes only to what is to be coupled
                writing = copier.tally.writing if any(job.attach for job in self.alive) else 0.0
                self.rate = self.throttle.copied / max(self.throttle.reading + writing, 1e-3)
        self.settle(copier.tally)

    def _advance(self, size_bytes: int) -> None:
        """Called from the threads of a copy, which may take hours: tracking that fails meanwhile ends it."""
        self.progress.advance(size_bytes)
        if self.era_reader is not None and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            with contextlib.suppress(BusyError):
                # Others coupled go on without it, and that has to be noted; the record may be gone with it.
                lower.require_primary(self.running.names)
                self.running.require_tracking()

    def _stages(self) -> bool:
        return any(job.journal is not None for job in self.alive)

    def place(self) -> None:
        """Before anything owed is written: into the journal if it fits, else to its place, and the header says so."""
        rows = self._rows()
        for index, job in enumerate(self.jobs):
            if job not in self.alive or not job.owed:
                continue
            room = needed(rows, index, block_bytes=self.running.block_bytes)
            if self.attempt(job, functools.partial(job.open_journal, room, direct=self.direct)):
                self.progress.note(
                    f"{job.label}: more is written than its journal holds. The copy goes straight to the disk, which "
                    f"is no whole point in time until it ends."
                )

    def _look_within(self, copier: Copier, until: int | None, offset: int, start: float) -> None:
        """Now and then within a pass that began at ``start``."""
        self._checkpoint_within(copier, until, offset)
        if until is not None and self.throttle is not None:
            with contextlib.suppress(DmsoftError):  # whoever relies on it reads it again
                self._keep_up(self.size(self.reader.written_since(until).blocks), start)

    def _keep_up(self, written: int, start: float) -> None:
        """So much was written since ``start`` that is to be copied again: copying has to be faster than that."""
        if self.throttle is not None:
            self.throttle.floor = _FASTER * written / max(time.monotonic() - start, 1e-3)

    def _checkpoint_within(self, copier: Copier, until: int | None, offset: int) -> None:
        if until is None or copier.tally.unread:
            return
        for index, job in enumerate(self.jobs):
            if job in self.alive and job.owed and index not in copier.tally.failed:
                below = offset // self.running.block_bytes
                self.attempt(job, functools.partial(job.checkpoint, until, below, self.tracker))

    def _checkpoint(self, era: int) -> None:
        """Everything written before ``era`` is copied."""
        for job in self.alive:
            self.attempt(job, functools.partial(job.promise, era, self.tracker, as_of=None))

    def count(self, tally: Tally) -> None:
        for index, job in enumerate(self.jobs):
            job.written += tally.written[index]

    def settle(self, tally: Tally) -> None:
        """Take over what a copy failed to do; a job whose target failed is out, or that owes what none could read."""
        for index, err in tally.failed.items():
            self.fail(self.jobs[index], outage.of_target(self.jobs[index], err))
        if tally.rescued:
            self.progress.note(
                f"{format_size(tally.rescued)} of the primary could not be read and were taken from a secondary that "
                f"has them. Look at the primary's health now."
            )
        for index, job in enumerate(self.jobs):
            unread = [each for each in tally.unread if each.targets >> index & 1]
            if unread and job in self.alive:
                # Everything else goes to its place, out of the journal as well.
                self.attempt(job, job.go_direct)
                self.fail(job, outage.of_source(unread, self.running.block_bytes))

    def attempt(self, job: Job, action: Callable[[], object]) -> object:
        """Do something to one secondary; if that fails the job is out, and the others go on."""
        try:
            return action()
        except CancelledError:
            raise
        except (DmsoftError, OSError) as err:
            self.fail(job, err if isinstance(err, DmsoftError) else DeviceError(f"{job.label} failed: {err.strerror}."))
            return None

    def each(self, action: Callable[[Job], object]) -> None:
        """Do something that takes long to every secondary, side by side."""
        alive = self.alive
        require_room()
        with ThreadPoolExecutor(max(1, len(alive))) as pool:
            for done in [pool.submit(self.attempt, job, functools.partial(action, job)) for job in alive]:
                done.result()

    def fail(self, job: Job, err: DmsoftError) -> None:
        job.error = job.error or err
        self.progress.note(f"{job.label}: {err.message}")
