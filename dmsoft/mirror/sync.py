# SPDX-License-Identifier: GPL-2.0-or-later
"""One resync from beginning to end: which secondaries, what each needs and why, the run, and what came of it."""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from dmsoft.errors import DmsoftError, MetadataError
from dmsoft.member.payload import MemberRecord
from dmsoft.mirror import alone, attach, job, locate, lower, notes, proof, selection, tracker, trust, untracked
from dmsoft.mirror.catchup import Run
from dmsoft.mirror.decision import KINDS
from dmsoft.mirror.execute import dismantle
from dmsoft.mirror.guard import Guard
from dmsoft.mirror.job import Job
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names, Node
from dmsoft.mirror.plan import leg_nodes
from dmsoft.mirror.progress import Planned, Progress, Reporter
from dmsoft.mirror.proof import Proved
from dmsoft.mirror.running import Running, guard_of
from dmsoft.mirror.spare import Spares
from dmsoft.mirror.start import uuid_of
from dmsoft.resync.copy import CancelledError
from dmsoft.resync.extents import runs
from dmsoft.resync.journal import needed
from dmsoft.resync.pace import ADAPTIVE, Limit

DEFAULT_MAX_STALL = 0.2


class SecondaryOutcome(msgspec.Struct, frozen=True):
    """What came of one secondary; ``error`` None when it is done. The last four as in `Planned`, for what was known
    before."""

    label: str
    kind: str
    reason: str
    bytes_stale: int
    bytes_copied: int
    synced_era: int | None
    consistent_as_of: str | None
    error: str | None = None
    journal: bool = False
    direct_reason: str | None = None
    seconds_estimate: float | None = None
    attached: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """What a resync did, figures summed over the secondaries. ``stall_ms`` is the longest barrier."""

    kind: str
    reason: str
    bytes_stale: int
    bytes_copied: int
    passes: int
    stall_ms: float
    seconds: float
    secondaries: tuple[SecondaryOutcome, ...]
    converged: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller wants: ``labels`` empty means every secondary that is here. ``max_stall`` in seconds; ``direct``:
    no journal is used; ``leaving``: those named are to be unplugged, so they are not coupled afterwards; ``rate``: how
    fast the primary is read while others use it; ``unattended``: no person asked for it, so a disk that is not as it
    was left is left alone."""

    name: str
    labels: tuple[str, ...] = ()
    max_stall: float = DEFAULT_MAX_STALL
    dry_run: bool = False
    direct: bool = False
    leaving: bool = False
    rate: Limit = ADAPTIVE
    unattended: bool = False

    def couples(self, record: MemberRecord) -> bool:
        """Whether the secondary is to be written behind by the kernel at the end."""
        return record.mode == "write-behind" and not (self.leaving and record.label in self.labels)


def resync(wanted: Request, reporter: Reporter, cancelled: threading.Event) -> tuple[Outcome, DmsoftError | None]:
    """Catch up the secondaries; returns what was done, and the first secondary's error if there was one.

    Raises when the run as a whole could not be done. The mirror must be running.
    """
    uuid = uuid_of(wanted.name)
    with locked(uuid, "operation", name=wanted.name, verb="resync"):
        alone.require_primary(Names(wanted.name, uuid), dry_run=wanted.dry_run)
        running = Running.of(locate.assemble(wanted.name))
        running.require_active()
        return resynced(running, wanted, reporter, cancelled)


def resynced(
    running: Running, wanted: Request, reporter: Reporter, cancelled: threading.Event
) -> tuple[Outcome, DmsoftError | None]:
    """`resync` for a caller that holds the operation lock, on a mirror that is running."""
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone.marking(running.names, dry_run=wanted.dry_run))
        lower.require_primary(running.names)
        records, guard = selection.chosen(running, wanted.labels), None
        if wanted.unattended:
            records = selection.without_ejected(running, records)
        progress = stack.enter_context(Progress(running.names.mirror_uuid, reporter))
        proven, errors = Proved.nothing(), dict[str, DmsoftError]()
        if not wanted.dry_run:
            guard = stack.enter_context(guard_of(running, coupled=any(r.mode == "write-behind" for r in records)))
            stack.enter_context(untracked.given_up_on_failure(running, guard))
            before = selection.with_coupled(running, records)
            proven, errors = _prove(running, records, guard, progress, cancelled, wanted)
            done = {each.label for each in proven.jobs} | set(errors)
            if done:
                records = selection.with_coupled(running, [record for record in records if record.label not in done])
            else:  # who was coupled until now, whatever came of it
                records = before
            # What the proof has noted: their headers may have its tokens by now.
            records = [running.payload.member(record.label) or record for record in records]
            proven = proven.without([record.label for record in records])
            coupled = [record.label for record in records if record.mode == "write-behind"]
            if coupled and not selection.all_parted(running, coupled):  # else both sides would go apart for nothing
                attach.check_kernel(running, coupled)
                attach.detach(running, coupled, guard)
            if untracked.mend(running, guard) is not None:
                records = [running.payload.member(record.label) or record for record in records]
        era = running.current_era()
        jobs, unopened = _open(running, records, era, wanted, stack)
        attached = _to_be_proved(running, records, jobs, wanted)
        plans = [proof.plan(j) if j.label in attached else _planned(running, j, direct=wanted.direct) for j in jobs]
        if plans or not proven.jobs:
            progress.planned(plans, sum(j.bytes_stale for j in jobs))
        run = None
        if jobs and guard is not None:
            run = _run(running, jobs, era, guard, progress, cancelled, wanted, stack)
        return _outcome(proven, jobs, plans, errors | unopened, run, time.monotonic() - start)


def _prove(
    running: Running, records: Sequence[MemberRecord], guard: Guard, progress: Progress, cancelled: threading.Event,
    wanted: Request,
) -> tuple[Proved, dict[str, DmsoftError]]:  # fmt: skip
    """Prove what those of the secondaries hold that are attached and are to stay so; what could not be proved is left
    to be copied. The second value: those that nothing can be done about now."""
    attached = [record for record in records if record.mode == "write-behind"]
    if not all(wanted.couples(record) for record in attached):
        return Proved.nothing(), {}
    try:
        proven = proof.prove(running, attached, guard, progress, cancelled, wanted.rate)
    except (CancelledError, MetadataError, lower.PrimaryDroppedError):
        raise
    except lower.SecondaryDroppedError as err:
        progress.note(f"{err.message} They are caught up and coupled again; look at the health of their disks.")
        return Proved.nothing(), {}
    except DmsoftError as err:
        if len(records) == len(attached):
            raise
        return Proved.nothing(), {record.label: err for record in attached}
    for label, blocks in proven.lost.items():
        progress.note(
            f"{label} lacks what was written behind to block {blocks[0]}: the write was lost on its way. It is "
            f"uncoupled, caught up and coupled again; look at the health of its disk."
        )
    return proven.without(proven.lost), {}


def _to_be_proved(running: Running, records: Sequence[MemberRecord], jobs: Sequence[Job], wanted: Request) -> set[str]:
    """Of a dry run the secondaries that would stay attached."""
    attached = [record for record in records if record.mode == "write-behind"]
    known = {each.label for each in jobs if each.decision.since is not None}
    if not wanted.dry_run or not all(record.label in known and wanted.couples(record) for record in attached):
        return set()
    return {record.label for record in attached} if proof.can_be(running, attached) else set()


def _open(
    running: Running, records: list[MemberRecord], era: int | None, wanted: Request, stack: contextlib.ExitStack
) -> tuple[list[Job], dict[str, DmsoftError]]:
    """Open every job; a secondary that cannot take part is left out, or raised if it was asked for alone."""
    jobs: list[Job] = []
    errors: dict[str, DmsoftError] = {}
    for record in records:
        made: list[Node] = []
        try:
            if not wanted.dry_run:
                made = attach.claim(running, record.label)
            opening = job.opened(
                running, record, era, attach=wanted.couples(record), dry_run=wanted.dry_run, direct=wanted.direct,
                unattended=wanted.unattended,
            )  # fmt: skip
            opened = stack.enter_context(opening)
            if wanted.unattended:
                _require_trust(running, record, opened, era, dry_run=wanted.dry_run)
            jobs.append(opened)
        except MetadataError:
            raise
        except DmsoftError as err:
            with contextlib.suppress(DmsoftError):  # a disk that is refused is left as it was
                dismantle(made)
            if wanted.labels and len(records) == 1:
                raise
            errors[record.label] = err
    return jobs, errors


def _require_trust(running: Running, record: MemberRecord, opened: Job, era: int | None, *, dry_run: bool) -> None:
    """Raise what speaks against copying onto this disk while no person asks for it, and let go of it. A disk that is
    not what its header says is not written; the primary remembers it."""
    why = trust.objection(running.payload, record, opened.header, opened.disk.scan, era, differs=opened.differs)
    if why is None:
        return
    if not dry_run:
        dismantle(leg_nodes(running.names, record.label))
    if opened.differs and not dry_run:
        suspect = tracker.doubted(record, opened.decision.reason).replace(suspect=opened.decision.reason[:200])
        with running.writing():
            running.withdraw(running.payload.with_member(suspect))
    raise why


def _planned(running: Running, each: Job, *, direct: bool) -> Planned:
    """What will be done to one secondary, as far as it is known now."""
    stale = each.bytes_stale
    if each.decision.kind == "incremental" and not stale:
        return Planned(each.label, "none", "it has everything", 0)
    room = needed(runs([each.owed]), 0, block_bytes=running.block_bytes)
    why = "as asked for" if direct else each.why_direct(room)
    record = running.payload.member(each.label)
    rate = record.rate if record is not None else None
    seconds = None if not rate else round(stale * (2 if why is None else 1) / rate, 1)
    return Planned(each.label, each.decision.kind, each.decision.reason, stale, why is None, why, seconds)


def _run(
    running: Running, jobs: list[Job], era: int | None, guard: Guard, progress: Progress, cancelled: threading.Event,
    wanted: Request, stack: contextlib.ExitStack,
) -> Run:  # fmt: skip
    stack.enter_context(running.writing())
    source = stack.enter_context(running.primary_side())
    throttle = running.throttle(wanted.rate, cancelled)
    if running.payload.tracker.doubt is not None:
        nobody = Spares(running, None)  # not opened: without tracking no block is clean
        run = Run(running, jobs, guard, None, source, progress, cancelled, wanted.max_stall, nobody, True, throttle)
        notes.pending(running, jobs)  # cut off, it is to be known as ours all the same
        run.compare_untracked()
        notes.untracked(running, jobs)
        return run
    if era is None:
        running.require_tracking()  # which says that it has failed meanwhile
    rates = [record.rate for each in jobs if (record := running.payload.member(each.label)) and record.rate]
    notes.pending(running, jobs)
    reader = stack.enter_context(running.era_reader())
    spares = stack.enter_context(Spares(running, era))
    run = Run(
        running, jobs, guard, reader, source, progress, cancelled, wanted.max_stall, spares, wanted.direct, throttle,
        era,
    )  # fmt: skip
    if rates:
        run.rate = float(min(rates))
    run.run()
    notes.confirmed(running, jobs, round(run.rate) if run.measured else None)
    return run


def _outcome(
    proven: Proved, jobs: Sequence[Job], plans: Sequence[Planned], errors: dict[str, DmsoftError], run: Run | None,
    seconds: float,
) -> tuple[Outcome, DmsoftError | None]:  # fmt: skip
    jobs, plans = [*proven.jobs, *jobs], [*proven.plans, *plans]
    parts = [_part(each, plan, dry=run is None) for each, plan in zip(jobs, plans, strict=True)]
    parts += [SecondaryOutcome(label, "none", "", 0, 0, None, None, err.message) for label, err in errors.items()]
    kind = max((part.kind for part in parts), key=KINDS.index, default="none")
    heaviest = next((part for part in parts if part.kind == kind), None)
    outcome = Outcome(
        kind=kind,
        reason=heaviest.reason if heaviest else "no secondary is here",
        bytes_stale=sum(part.bytes_stale for part in parts),
        bytes_copied=sum(part.bytes_copied for part in parts),
        passes=(run.passes if run else 0) + bool(proven.stalls),
        stall_ms=round(1000 * max([*proven.stalls, *(run.stalls if run else [])], default=0.0), 1),
        seconds=round(seconds, 3),
        secondaries=tuple(parts),
        converged=run.converged if run else True,
    )
    failed = [each.error for each in jobs if each.error is not None] + list(errors.values())
    return outcome, failed[0] if failed else None


def _part(each: Job, plan: Planned, *, dry: bool) -> SecondaryOutcome:
    stale = each.bytes_stale
    kind = "none" if each.decision.kind == "incremental" and not stale else each.decision.kind
    sync = each.payload.sync
    return SecondaryOutcome(
        each.label, kind, "it has everything" if kind == "none" else each.decision.reason, stale,
        0 if dry else each.written, sync.era, sync.consistent_as_of,
        None if each.error is None else each.error.message, plan.journal, plan.direct_reason, plan.seconds_estimate,
        plan.attached,
    )  # fmt: skip
