# SPDX-License-Identifier: GPL-2.0-or-later
"""One secondary in one run: its disk behind the gate, what it needs and why, and every write of its header."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dmsoft.era.blocks import BlockSet
from dmsoft.errors import DeviceError, DmsoftError, NotFoundError
from dmsoft.member import header, regions
from dmsoft.member.gate import GatedDevice, open_exclusive
from dmsoft.member.header import Header
from dmsoft.member.payload import MemberRecord, Partial, Secondary, Sync
from dmsoft.member.record import Record
from dmsoft.mirror import sample
from dmsoft.mirror.decision import Decision, decide, go_on
from dmsoft.mirror.generation import require_older
from dmsoft.mirror.locate import doubted
from dmsoft.mirror.names import new_uuid
from dmsoft.mirror.running import Running, flush, node_path
from dmsoft.resync import recovery
from dmsoft.resync.copy import Side, Target
from dmsoft.resync.extents import size_bytes
from dmsoft.resync.journal import Journal
from dmsoft.resync.segments import JournalDamagedError
from dmsoft.resync.steps import step
from dmsoft.units import format_size


@dataclass(slots=True)
class Job:
    """``header`` is the secondary's as last written; ``owed`` what is still to be copied; ``error`` set means that this
    secondary is out of the run. ``differs``: a block of it that should be equal to the primary's is not.

    ``journal`` is where copies go while it is set, else straight to their places. ``held`` is what disk and journal
    hold together: S and what lies beyond it, as in `Sync`.
    """

    label: str
    header: Header
    disk: GatedDevice
    key: bytes
    decision: Decision
    owed: BlockSet
    stale: BlockSet
    token: str
    attach: bool = False
    journal: Journal | None = None
    held: tuple[int | None, Partial | None] = (None, None)
    written: int = 0
    spoiled: bool = False
    differs: bool = False
    error: DmsoftError | None = None

    @property
    def payload(self) -> Secondary:
        payload = self.header.payload
        if not isinstance(payload, Secondary):
            raise TypeError("a job is for a secondary")
        return payload

    @property
    def side(self) -> Side:
        return Side(self.disk.fd, self.payload.regions["data"].offset)

    @property
    def target(self) -> Target:
        return self.side if self.journal is None else self.journal

    @property
    def bytes_stale(self) -> int:
        return size_bytes(
            self.stale, block_bytes=self.payload.block_bytes, data_bytes=self.payload.regions["data"].length
        )

    def why_direct(self, needed: int) -> str | None:
        """Why copies cannot go through the journal, None if they can; ``needed`` is the room that they take there."""
        if "journal" not in self.payload.regions:
            return "it has no journal"
        if self.attach:
            return "it is written behind from then on"
        if not self.payload.sync.consistent:
            return "it holds no whole copy yet"
        if self.decision.kind == "compare":
            return "how much will differ is not known"
        journal = self.journal or self.new_journal()
        if needed > journal.room():
            return f"its journal has room for {format_size(journal.room())}"
        return None

    def new_journal(self) -> Journal:
        return Journal(self.disk, self.payload.regions["journal"], self.payload.regions["data"], self.key)

    def open_journal(self, needed: int, *, direct: bool) -> bool:
        """Have copies go into the journal if there is room for ``needed`` bytes more; else straight to the data region,
        of which nothing is promised from then on. Returns whether the journal had to be given up."""
        if self.journal is None and not self.spoiled and not direct and self.why_direct(needed) is None:
            # The former journal is retired: both copies say so, so that neither can revive it.
            self._withdraw(self.payload)
            with contextlib.suppress(OSError):  # a journal that cannot be written must not be the end of the matter
                journal = self.new_journal()
                journal.begin()
                self.journal = journal
        if self.journal is not None and needed <= self.journal.room():
            self.journal.epoch += 1
            return False
        given_up = self.journal is not None
        self.go_direct()
        return given_up

    def go_direct(self) -> None:
        """From now on copies go straight to the data region, and so does what the journal holds."""
        journal, self.journal = self.journal, None
        self.spoil()
        if journal is not None and journal.end.segments:
            self._apply(journal)

    def spoil(self) -> None:
        """Before the first byte goes into the data region: the disk is no whole point in time any more.

        Written even if the header says so already: that may stand in one copy alone, or only in the disk's cache.
        """
        if not self.spoiled:
            self._withdraw(self.payload.replace(sync=self._spoiled()))
            if "journal" in self.payload.regions:
                with contextlib.suppress(OSError):  # it does not count under the new header anyway
                    self.new_journal().retire()
            self.spoiled = True

    def _spoiled(self) -> Sync:
        """What the header says while the data region is written: the token of this run, because a primary put back from
        an image of before it lacks the marks of what this run is about to copy. With a token that the primary knows
        comes nothing that was not believed: neither an S in doubt nor what an earlier run is said to have done."""
        sync, decision = self.payload.sync, self.decision
        if decision.kind == "compare" and sync.doubt is None:
            sync = sync.doubted(decision.reason)
        elif decision.kind != "incremental":
            sync = sync.replace(partial=decision.partial)
        return sync.replace(token=self.token, consistent=False, consistent_as_of=None)

    def doubt(self, reason: str) -> None:
        """Withdraw everything the disk promised; the next resync compares every block."""
        self._withdraw(self.payload.replace(sync=self.payload.sync.doubted(reason)))

    def copied_untracked(self, reason: str) -> None:
        """Flush the disk, then let its header say that all was copied while nothing was tracked, for which nothing can
        be promised but that a compare is enough from now on."""
        flush(self.disk, f"The secondary {self.label}")
        sync = self.payload.sync.replace(era=self.payload.sync.era or 0).doubted(reason)
        self._withdraw(self.payload.replace(sync=sync))

    def checkpoint(self, until: int, below: int, tracker: str) -> None:
        """Of what is owed in this pass everything before block ``below`` is copied, as it was before era ``until`` or
        later: make that durable, so that a run cut off goes on there."""
        era, partial = self.held
        if below <= (partial.below if partial else 0):
            return
        self.held = (era, Partial(until, below))
        self._keep(tracker)

    def promise(
        self, era: int, tracker: str, *, as_of: str | None, cancelled: threading.Event | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """Everything owed was copied and era ``era`` began after it: make that durable, then let the header say it.

        ``as_of`` is the point in time that the disk is as a whole, None while it is none: what is in the journal stays
        there then. Raises `DeviceError`, and then nothing new is promised, and `CancelledError`.
        """
        self.held = (era, None)
        if as_of is None:
            if self.journal is not None or self.spoiled:  # else nothing was written, and the old promise stands
                self._keep(tracker)
            return
        sync = Sync(era=era, tracker=tracker, token=self.token, consistent=True, consistent_as_of=as_of)
        if self.journal is None:
            self._grant(sync)
            return
        journal = self.journal
        journal.save(self.header, sync, committed=True)
        self.journal = None
        self._apply(journal, cancelled, on_progress)  # and flushed
        self._write_super(sync)

    def vouch(self, era: int, tracker: str) -> None:
        """What was owed was found to be there, and era ``era`` began after it: make that durable, then let the header
        say it. The disk is written behind, so it is no point in time. Raises `DeviceError`."""
        self.held = (era, None)
        self._keep(tracker)

    def _keep(self, tracker: str) -> None:
        """Make durable what is held, in the header or in the record of the journal."""
        era, partial = self.held
        doubt = self.payload.sync.doubt if era is None else None  # of a compare it stays until all is compared
        sync = Sync(era=era, tracker=tracker, token=self.token, doubt=doubt, partial=partial)
        if self.journal is not None:
            self.journal.save(self.header, sync, committed=False)
        else:
            self._grant(sync)

    def _apply(
        self, journal: Journal, cancelled: threading.Event | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:  # fmt: skip
        try:
            recovery.apply(journal, cancelled=cancelled, on_progress=on_progress)
        except JournalDamagedError as err:
            self.header = recovery.withdraw_damaged(self.disk, self.payload, self.key, err, self.token)
            raise

    def _grant(self, sync: Sync) -> None:
        with step("data-flush"):
            flush(self.disk, f"The secondary {self.label}")
        self._write_super(sync)

    def _write_super(self, sync: Sync) -> None:
        with step("super-write"):
            # The primary repeats what is in `header` to answer for this disk when it is away: not before it is written.
            self.header = header.write_granted(self.disk, self.payload.replace(sync=sync), self.key)

    def _withdraw(self, payload: Secondary) -> None:
        self.header = header.write_withdrawn(self.disk, payload, self.key)


@contextlib.contextmanager
def opened(
    running: Running, record: MemberRecord, current_era: int | None, *,
    attach: bool = False, dry_run: bool = False, direct: bool = False, unattended: bool = False,
) -> Iterator[Job]:  # fmt: skip
    """Open the secondary of ``record`` through the gate and decide what it needs; ``dry_run``: write nothing at all;
    ``direct``: a journal is not gone on with; ``attach``: it is to be coupled at the end; ``unattended``: a disk that
    is not what it says is not written, not even that it is not.

    Raises `NotFoundError` when it is not here, `DivergedError`, and whatever gate and header have to say.
    """
    with gate(running, record, dry_run=dry_run) as (disk, found, doubt):
        job = _job(running, record, current_era, disk, found, doubt)
        job.attach = attach
        staged = None
        with contextlib.suppress(JournalDamagedError):  # the gate has dealt with that
            staged = recovery.found(disk, found, job.key)
        goes_on = job.decision.since is not None or job.decision.partial is not None
        if goes_on and (staged is None or not staged.committed):
            _sample(running, job, note=not (dry_run or unattended))
        if staged is not None and job.decision.kind == "incremental":
            _go_on(running, record, job, staged, current_era, direct=direct or job.attach)
        yield job


def _job(
    running: Running, record: MemberRecord, current_era: int | None, disk: GatedDevice, found: Header, doubt: str | None
) -> Job:
    payload = found.payload
    if not isinstance(payload, Secondary):
        raise TypeError("the gate lets only secondaries through")
    payload = doubted(payload, doubt)
    decision = decide(running.payload, record, payload, current_era)
    owed = _owed(running, decision)
    return Job(
        record.label, Header(found.sequence, payload, found.verified), disk, running.assembly.key, decision, owed,
        owed.copy(), new_uuid(), held=(decision.since, decision.partial),
    )  # fmt: skip


def _owed(running: Running, decision: Decision) -> BlockSet:
    nr_blocks = regions.nr_blocks(running.data.length, running.block_bytes)
    if decision.since is None and decision.partial is None:
        return BlockSet.full(nr_blocks)  # which asks nothing of the record: its disk may be gone
    with running.era_reader() as reader:
        return decision.owed(lambda era: reader.written_since(era).blocks, nr_blocks)


@contextlib.contextmanager
def gate(
    running: Running, record: MemberRecord, *, dry_run: bool = False
) -> Iterator[tuple[GatedDevice, Header, str | None]]:
    """The secondary's disk, open for writing, its header, which fits the primary's in every respect, and why what it
    says of its data is not to be believed.

    A journal that was committed is applied first, unless ``dry_run`` or somebody else wrote to the header.
    """
    label, names, key = record.label, running.names, running.assembly.key
    problem = running.assembly.problems.get(label)
    if problem is not None:
        raise problem
    placed = running.assembly.secondaries.get(label)
    if placed is None:
        raise NotFoundError(f"The secondary {label} of {names.name} is not here.", hint="Plug it in and try again.")
    with open_exclusive(
        node_path(placed.number),
        purpose="member",
        expect=record.identity,
        member_uuid=record.member_uuid,
        own_uuid_prefix=names.prefix,
    ) as disk:
        scan = header.read(disk, key=key)
        found = scan.header
        if found is None or not isinstance(found.payload, Secondary) or not found.verified:
            raise DeviceError(f"{disk.path} is not the secondary {label}.", hint="Look at it with `dmsoft examine`.")
        regions.check(found.payload, disk.size_bytes)
        if not dry_run and scan.doubt is None:  # else the disk is compared, and this would write over the reason
            found = recovery.recover(disk, found, key)
        _fits(running, label, found)
        yield disk, found, scan.doubt


def _fits(running: Running, label: str, found: Header) -> None:
    payload = found.payload
    if not isinstance(payload, Secondary) or (
        payload.regions["data"].length != running.data.length or payload.block_bytes != running.block_bytes
    ):
        raise DeviceError(f"The secondary {label} was laid out for another primary.", hint="Remove and add it again.")
    require_older(running.payload, payload)


def _go_on(
    running: Running, record: MemberRecord, job: Job, staged: Record, current_era: int | None, *, direct: bool
) -> None:
    """Where a journal can be gone on with, or in a dry run is yet to be applied, it counts."""
    decision = go_on(running.payload, record, job.payload, staged.sync, current_era)
    if decision is None or (direct and not staged.committed):
        return
    job.decision = decision
    job.held = (decision.since, decision.partial)
    job.owed = _owed(running, decision)
    job.stale = job.owed.copy()
    if not staged.committed:
        places = job.payload.regions
        job.journal = Journal.of(staged, job.disk, places["journal"], places["data"], job.key)


def _sample(running: Running, job: Job, *, note: bool) -> None:
    """Compare a few clean blocks before S is believed; a difference turns the job into a compare, and with ``note``
    both headers say so."""
    decision = job.decision
    with running.primary_side() as primary:
        try:
            offset = sample.differing(
                primary, job.side, job.owed,
                block_bytes=running.block_bytes, data_bytes=running.data.length,
                now_stale=lambda: _owed(running, decision),
            )  # fmt: skip
        except OSError as err:
            raise DeviceError(
                f"The secondary {job.label} could not be compared with the primary: {err.strerror}.",
                hint="Look at the kernel log for which of the two disks it is, and at its health.",
            ) from err
    if offset is None:
        return
    reason = f"a block that should be equal differs from the primary (at byte {offset})"
    job.differs = True
    if note:
        sync = job.payload.sync.doubted(reason)
        try:
            job.doubt(reason)
        finally:  # its own header may take no writes
            _remember(running, job.label, sync)
    job.decision = Decision("compare", reason)
    job.held = (None, None)
    job.owed = BlockSet.full(job.owed.nr_blocks)
    job.stale = job.owed.copy()


def _remember(running: Running, label: str, sync: Sync) -> None:
    """What is known of a secondary now. Its token, which was believed, is no pending one any more: of a run that is, a
    doubt counts as older than it."""
    record = running.payload.member(label)
    if record is not None:
        record = record.replace(sync=sync, token_pending=None, token_confirmed=sync.token)
        with running.writing():
            running.withdraw(running.payload.with_member(record))
