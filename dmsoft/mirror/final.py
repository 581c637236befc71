# SPDX-License-Identifier: GPL-2.0-or-later
"""The final barrier of a resync: suspended and frozen, the small rest is read into memory; resumed; written.

With a journal the rest goes there as well, then the journal is committed and applied. Secondaries that are to be
coupled get the rest inside the barrier, straight to their places, since the raid1 needs them equal.
"""

import functools
from typing import TYPE_CHECKING

from dmsoft.mirror import attach, lower
from dmsoft.mirror.attach import Attachment
from dmsoft.mirror.barrier import Barrier, barrier
from dmsoft.mirror.execute import device
from dmsoft.mirror.guard import resume_watched
from dmsoft.mirror.job import Job
from dmsoft.mirror.times import now
from dmsoft.resync.copy import CancelledError, Tally
from dmsoft.resync.staging import Staging

if TYPE_CHECKING:
    from dmsoft.mirror.catchup import Run


class Final:
    """One final barrier of ``run`` for what was written since era ``since`` (None: for what each job owes)."""

    def __init__(self, run: "Run", since: int | None) -> None:
        self._run, self._since = run, since

    def run(self) -> bool:
        """False when more was written just before it than fits, or some of that could not be read, and nothing was
        done."""
        run = self._run
        if run.cancelled.is_set():
            raise CancelledError("The copy was cancelled.", hint="Run the command again to go on.")
        for job in run.alive:
            if job.attach:  # what one lacks, a cache device say, must not keep the others from being done
                run.attempt(job, functools.partial(attach.ensure_leg, run.running, job.label))
        for error in [job.error for job in run.jobs if job.error is not None and not run.alive]:
            raise error
        coupled = [job.label for job in run.alive if job.attach]
        if coupled:
            with attach.prepared(run.running, coupled) as attachment:
                for job in run.alive:
                    if job.attach:
                        run.attempt(job, job.spoil)
                return self._barrier(attachment)
        return self._barrier(None)

    def _barrier(self, attachment: Attachment | None) -> bool:
        run = self._run
        if attachment is not None:
            run.owe(self._since)  # anew: making the legs took a while, and it was written to meanwhile
        stage = Staging(run.staging_bytes())
        inside = Tally.of(len(run.jobs))
        coupled = {i for i, job in enumerate(run.jobs) if attachment is not None and job.label in attachment.labels}
        run.progress.phase("final", 0)
        run.running.await_room()
        with barrier(run.running.names, run.guard, freeze=True, await_udev=attachment is not None) as here:
            era = here.next_era(run.reader)
            as_of = now()
            fits = self._stage_rest(stage)
            if fits and attachment is not None:
                stage.drain([job.side for job in run.jobs], inside, coupled)
                here.check()
                # All or none: a leg that lacks anything must never be coupled, as md may read from it.
                if not inside.failed and all(run.jobs[i].error is None for i in coupled):
                    self._swap(here)
                    attachment.swapped = True
        run.stalls.append(here.stall_seconds)
        if not fits:
            return False
        run.passes += 1
        run.running.flush_primary()
        lower.require_primary(run.running.names)
        self._write_rest(stage, inside, coupled)
        self._promise(era, as_of, coupled=attachment is not None and attachment.swapped)
        return True

    def _stage_rest(self, stage: Staging) -> bool:
        """Inside the barrier: read what is owed into memory; False when it does not fit or cannot be read. Another pass
        deals with either."""
        self._run.owe(self._since)
        try:
            stage.fill(self._run.source, self._run.requests())
        except (MemoryError, OSError):
            return False
        return True

    def _write_rest(self, stage: Staging, inside: Tally, coupled: set[int]) -> None:
        run, after = self._run, Tally.of(len(self._run.jobs))
        run.place()
        targets = {i for i, job in enumerate(run.jobs) if job in run.alive} - coupled
        stage.drain([job.target for job in run.jobs], after, targets)
        for tally in (inside, after):
            run.count(tally)
            run.settle(tally)

    def _promise(self, era: int, as_of: str, *, coupled: bool) -> None:
        """S := ``era``. A ``coupled`` disk is written behind from now on, so it is no point in time."""
        run = self._run
        staged = sum(job.journal.end.length for job in run.alive if job.journal is not None)
        if staged:
            run.progress.phase("apply", staged)

        def promise(job: Job) -> None:
            whole = None if coupled and job.attach else as_of
            job.promise(era, run.tracker, as_of=whole, cancelled=run.cancelled, on_progress=run.progress.advance)

        run.each(promise)

    def _swap(self, here: Barrier) -> None:
        """Make the raid1 that waits in the lower's inactive slot live, under the suspended top."""
        lower = device(self._run.running.names.lower)
        here.lower_suspended = True
        lower.suspend(lockfs=False)
        here.check()  # if the guard resumed the top meanwhile, the lower comes back as it was
        here.owes(resume_watched(self._run.guard.helper, lower))
        here.lower_suspended = False
