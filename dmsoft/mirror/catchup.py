# SPDX-License-Identifier: GPL-2.0-or-later
"""Catching up: the passes of a resync, from the first barrier to the promise at its end.

    barrier      era E begins, everything before it has drained; the primary is flushed
    pre-copy     the stale sets are copied while writes go on; then what was written since E, while that shrinks
    promise      after each pass: flush the secondary, S := E, so that a run cut off later owes no more than W(E)
    final        suspended and frozen, the small rest is read into memory; resumed; written; flushed; S advances

S moves only in `Job.promise`, and only to an era that a barrier began after which the primary was flushed.
"""

import contextlib
import datetime
import functools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dmsoft.era.blocks import BlockSet
from dmsoft.era.reader import EraReader
from dmsoft.errors import BusyError, DeviceError, DmsoftError
from dmsoft.mirror import attach
from dmsoft.mirror.attach import Attachment
from dmsoft.mirror.barrier import Barrier, barrier
from dmsoft.mirror.execute import device
from dmsoft.mirror.guard import Guard, resume_watched
from dmsoft.mirror.job import Job
from dmsoft.mirror.progress import Progress
from dmsoft.mirror.running import Running
from dmsoft.resync.copy import REQUEST_BYTES, CancelledError, Copier, Side, Staging, Tally
from dmsoft.resync.extents import Request, requests, runs, size_bytes
from dmsoft.units import MIB, format_size

_MAX_PASSES = 12
_MAX_FINALS = 5
_MAX_STAGING_BYTES = 128 * MIB
_FIRST_RATE = 32 * MIB  # bytes a second, until one was measured
_LOOK_SECONDS = 5.0
_UNREADABLE_HINT = "The secondaries keep their stale blocks. Look at the primary's health now."


class UnreadableError(DeviceError):
    """Parts of the primary could not be read; all the rest was copied.

    The secondaries keep what they had of those parts and stay stale there. The primary is failing: look at the kernel
    log and its SMART state now, and save what you can.
    """

    code = "primary-unreadable"


@dataclass(slots=True)
class Run:
    """One run over the ``jobs``, which are open and decided. ``max_stall`` is how long the copying inside the final
    barrier may take, in seconds."""

    running: Running
    jobs: list[Job]
    guard: Guard
    era_reader: EraReader | None
    source: Side
    progress: Progress
    cancelled: threading.Event
    max_stall: float
    passes: int = 0
    stalls: list[float] = field(default_factory=list)
    rate: float = _FIRST_RATE
    converged: bool = True
    _look_at: float = 0.0

    def run(self) -> None:
        """Everything from the first barrier on; failures of single secondaries end up in their jobs."""
        since = self._pre_copy() if self._needs_pre_copy() else None
        for _ in range(_MAX_FINALS):
            if not self.alive or not self.converged or self._final(since):
                return
            since = self._pre_copy(since)
        raise DeviceError(
            "More is written just before each final barrier than fits it.", hint="Run it again when there is less load."
        )

    def compare_untracked(self) -> None:
        """One pass over everything, while nothing is tracked: what is written meanwhile may be missing afterwards, so
        nothing is promised and the secondaries are no whole point in time."""
        self.converged = False
        self._copy_pass()
        reason = self.running.payload.tracker.doubt or "nothing was tracked"
        for job in self.alive:
            self._try(job, functools.partial(job.copied_untracked, reason))
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

    def _size(self, blocks: BlockSet) -> int:
        return size_bytes(blocks, block_bytes=self.running.block_bytes, data_bytes=self.running.data.length)

    def _union(self) -> BlockSet:
        union = BlockSet.empty(self.jobs[0].owed.nr_blocks)
        for job in self.alive:
            union |= job.owed
        return union

    def _requests(self) -> Iterable[Request]:
        """What the jobs owe, as requests whose target bits are positions in `jobs`."""
        nothing = BlockSet.empty(self.jobs[0].owed.nr_blocks)
        rows = runs([nothing if job.error is not None else job.owed for job in self.jobs])
        return requests(
            rows,
            block_bytes=self.running.block_bytes,
            data_bytes=self.running.data.length,
            request_bytes=REQUEST_BYTES,
        )

    def _budget(self) -> int:
        """Bytes that may be left for the final barrier: what the measured rate moves in ``max_stall``."""
        least = 4 * self.running.block_bytes
        return max(least, min(_MAX_STAGING_BYTES, int(self.rate * self.max_stall)))

    def _needs_pre_copy(self) -> bool:
        return any(job.decision.since is None for job in self.jobs) or self._size(self._union()) > self._budget()

    def _roll(self) -> int:
        """A barrier without a freeze, and a flush of the primary; returns the era that began."""
        self.running.await_room()
        with barrier(self.running.names, self.guard, freeze=False) as here:
            era = self._next_era(here)
        self.stalls.append(here.stall_seconds)
        self.running.flush_primary()
        return era

    def _next_era(self, here: Barrier) -> int:
        """Read inside a barrier: the superblock on the disk is final now, and the resume begins the era after it."""
        superblock = self.reader.superblock()
        here.check()
        return superblock.current_era + 1

    def _owe_since(self, era: int) -> None:
        written = self.reader.written_since(era).blocks
        for job in self.alive:
            job.owed = written.copy()
            job.stale |= written

    def _pre_copy(self, since: int | None = None) -> int:
        """Passes until the rest fits the final barrier; returns the era since which the rest was written.

        ``since`` is what an earlier one returned, None the first time: each job begins with its own S then.
        """
        era = self._roll()
        for job in self.alive:
            start = job.decision.since if since is None else since
            if start is not None:
                job.owed = self.reader.written_since(start).blocks
                job.stale |= job.owed
        before = None
        while True:
            self._copy_pass()
            self._promise(era, as_of=None)
            if not self.alive:
                return era
            self._owe_since(era)
            left = self._size(self._union())
            if left <= self._budget():
                return era
            if self.passes >= _MAX_PASSES or (before is not None and left > 0.9 * before and left > _MAX_STAGING_BYTES):
                self._give_up(left)
                return era
            before, closed = left, era
            era = self._roll()
            # Read again: what was written up to that barrier is of the era it closed, and S will be the one it began.
            self._owe_since(closed)

    def _give_up(self, left: int) -> None:
        self.converged = False
        self.progress.note(
            f"{format_size(left)} were written while the last pass copied: writes outrun the copy. The secondary has "
            f"everything up to that pass, but is not a whole point in time. Run resync again when there is less load."
        )

    def _copy_pass(self) -> None:
        self.passes += 1
        total = self._size(self._union())
        self.progress.phase(f"pass {self.passes}", total)
        for job in self.alive:
            self._try(job, job.spoil)
        compare = sum(1 << i for i, job in enumerate(self.jobs) if job.decision.kind == "compare" and self.passes == 1)
        copier = Copier(
            self.source, [job.side for job in self.jobs], compare=compare,
            cancelled=self.cancelled, on_progress=self._advance,
        )  # fmt: skip
        start = time.monotonic()
        copier.run(self._requests())
        self._settle(copier.tally)
        if copier.tally.read > MIB:
            self.rate = copier.tally.read / max(time.monotonic() - start, 1e-3)

    def _advance(self, size_bytes: int) -> None:
        """Called from the threads of a copy, which may take hours: tracking that fails meanwhile ends it."""
        self.progress.advance(size_bytes)
        if self.era_reader is not None and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            with contextlib.suppress(BusyError):
                self.running.require_tracking()

    def _settle(self, tally: Tally) -> None:
        """Take over what a copy did; a job whose target failed is out, and all are when the source did."""
        for index, job in enumerate(self.jobs):
            job.written += tally.written[index]
        for index, err in tally.failed.items():
            self._fail(self.jobs[index], DeviceError(f"Writing to {self.jobs[index].label} failed: {err.strerror}."))
        if tally.unread:
            where = ", ".join(f"{r.offset}+{r.length}" for r in tally.unread[:5])
            raise UnreadableError(
                f"The primary could not be read at {len(tally.unread)} places (bytes {where}); the rest was copied.",
                hint=_UNREADABLE_HINT,
            )

    def _promise(self, era: int, *, as_of: str | None, coupled: bool = False) -> None:
        """S := ``era``. A ``coupled`` disk is written behind from now on, so it is no point in time."""
        tracker = self.running.payload.tracker.id
        for job in self.alive:
            whole = None if coupled and job.attach else as_of
            self._try(job, functools.partial(job.promise, era, tracker, as_of=whole))

    def _try(self, job: Job, action: Callable[[], object]) -> None:
        try:
            action()
        except (DmsoftError, OSError) as err:
            self._fail(job, err if isinstance(err, DmsoftError) else DeviceError(f"{job.label} failed: {err}."))

    def _fail(self, job: Job, err: DmsoftError) -> None:
        job.error = err
        self.progress.note(f"{job.label}: {err.message}")

    def _final(self, since: int | None) -> bool:
        """The final barrier; False when more was written just before it than fits, and nothing was done. Coupled
        secondaries get the rest inside it, since the raid1 needs them equal; the others after it, from memory."""
        if self.cancelled.is_set():
            raise CancelledError("The copy was cancelled.", hint="Run the command again to go on.")
        for job in self.alive:
            if job.attach:  # what one lacks, a cache device say, must not keep the others from being done
                self._try(job, functools.partial(attach.ensure_leg, self.running, job.label))
        for error in [job.error for job in self.jobs if job.error is not None and not self.alive]:
            raise error
        coupled = [job.label for job in self.alive if job.attach]
        if coupled:
            with attach.prepared(self.running, coupled) as attachment:
                return self._final_barrier(since, attachment)
        return self._final_barrier(since, None)

    def _final_barrier(self, since: int | None, attachment: Attachment | None) -> bool:
        if attachment is not None:
            for job in self.alive:
                self._try(job, job.spoil)
        stage = Staging(2 * self._budget())
        inside, after = Tally.of(len(self.jobs)), Tally.of(len(self.jobs))
        sides = [job.side for job in self.jobs]
        coupled = {i for i, job in enumerate(self.jobs) if attachment is not None and job.label in attachment.labels}
        self.progress.phase("final", 0)
        self.running.await_room()
        with barrier(self.running.names, self.guard, freeze=True) as here:
            era = self._next_era(here)
            as_of = now()
            fits = self._stage_rest(since, stage)
            if fits and attachment is not None:
                stage.drain(sides, inside, coupled)
                here.check()
                # All or none: a leg that lacks anything must never be coupled, as md may read from it.
                if not inside.failed and all(self.jobs[i].error is None for i in coupled):
                    self._swap(here)
                    attachment.swapped = True
        self.stalls.append(here.stall_seconds)
        if not fits:
            return False
        self.passes += 1
        self.running.flush_primary()
        for job in self.alive:
            if job.owed:
                self._try(job, job.spoil)
        stage.drain(sides, after, {i for i, job in enumerate(self.jobs) if job.error is None} - coupled)
        self._settle(inside)
        self._settle(after)
        self._promise(era, as_of=as_of, coupled=attachment is not None and attachment.swapped)
        return True

    def _stage_rest(self, since: int | None, stage: Staging) -> bool:
        """Inside the barrier: read what is owed into memory; False when it does not fit."""
        for job in self.alive:
            from_era = since if since is not None else job.decision.since
            if from_era is None:
                raise RuntimeError("a job without S cannot skip the pre-copy")
            job.owed = self.reader.written_since(from_era).blocks
            job.stale |= job.owed
        try:
            stage.fill(self.source, self._requests())
        except MemoryError:
            return False
        except OSError as err:
            raise UnreadableError(
                f"The primary could not be read in the final barrier: {err.strerror}.", hint=_UNREADABLE_HINT
            ) from err
        return True

    def _swap(self, here: Barrier) -> None:
        """Make the raid1 that waits in the lower's inactive slot live, under the suspended top."""
        lower = device(self.running.names.lower)
        here.lower_suspended = True
        lower.suspend(lockfs=False)
        here.owes(resume_watched(self.guard.helper, lower))
        here.lower_suspended = False


def now() -> str:
    """The time as headers and JSON have it: RFC 3339, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
