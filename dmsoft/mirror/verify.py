# SPDX-License-Identifier: GPL-2.0-or-later
"""Comparing what should be equal, byte for byte and while both are in use: a secondary's clean blocks.

A round goes over all blocks in disk order and remembers how far it came; stale blocks are left out, since that they
differ is no news. A block that differs is looked at again inside a barrier: one that was being written is in the stale
set by then. What is left is a fault of the tracking or of a disk, and makes the secondary unknown.
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from dmsoft.era.blocks import BlockSet
from dmsoft.era.reader import EraReader
from dmsoft.errors import DeviceError, DmsoftError, NotFoundError
from dmsoft.member.payload import MemberRecord
from dmsoft.mirror import alone, job, locate, lower, selection, sync, untracked
from dmsoft.mirror.barrier import barrier
from dmsoft.mirror.guard import Guard
from dmsoft.mirror.job import Job
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names
from dmsoft.mirror.progress import Planned, Progress, Reporter
from dmsoft.mirror.running import Running, guard_of
from dmsoft.mirror.start import uuid_of
from dmsoft.mirror.times import now
from dmsoft.mirror.witness import suspected
from dmsoft.resync.buffers import aligned_buffer
from dmsoft.resync.copy import REQUEST_BYTES, Side, read_all
from dmsoft.resync.extents import size_bytes
from dmsoft.resync.pace import ADAPTIVE, Limit
from dmsoft.resync.throttle import Throttle
from dmsoft.units import MIB

# How much is compared between two looks at the stale set, and the clock.
_STRETCH_BYTES = 64 * MIB
_MOST_CONFIRMED = 256
_NAMED = 5


class MismatchError(DeviceError):
    """Blocks that should be equal differ between the primary and a secondary.

    Nothing was written to them through the mirror since they were last copied, so either a disk returns other data than
    it was given, somebody wrote to a disk past the mirror, or the tracking is at fault. The secondary is unknown now:
    the next resync compares every block and copies the primary's side. Find out first which of the two disks is right,
    and look at their SMART state.
    """

    code = "mismatch"


class Checked(msgspec.Struct, frozen=True):
    """What was compared on one secondary. ``mismatches``: [first block, count] each; ``next_block``: where the next run
    goes on, 0 when a round is complete; ``skipped`` says why nothing could be compared."""

    label: str
    blocks: int = 0
    bytes: int = 0
    next_block: int = 0
    complete: bool = False
    mismatches: tuple[tuple[int, int], ...] = ()
    skipped: str | None = None
    repaired_bytes: int | None = None


class Verified(msgspec.Struct, frozen=True):
    name: str
    block_bytes: int
    seconds: float
    secondaries: tuple[Checked, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to verify: ``labels`` empty means every secondary that is here. ``rate``: how fast, beside others;
    ``limit``: seconds after which it stops and goes on next time; ``restart``: from the first block; ``repair``: copy
    the primary's side afterwards."""

    name: str
    labels: tuple[str, ...] = ()
    rate: Limit = ADAPTIVE
    limit: float | None = None
    restart: bool = False
    repair: bool = False


def verify(wanted: Wanted, reporter: Reporter, cancelled: threading.Event) -> tuple[Verified, DmsoftError | None]:
    """Compare; returns what was found, and the error for the first secondary with one. The mirror must be running."""
    start = time.monotonic()
    uuid = uuid_of(wanted.name)
    names = Names(wanted.name, uuid)
    with locked(uuid, "operation", name=wanted.name, verb="verify"), alone.marking(names):
        lower.require_primary(names)
        running = Running.of(locate.assemble(wanted.name))
        running.require_active()
        running.require_undoubted()
        records = selection.chosen(running, wanted.labels)
        found: list[Checked] = []
        errors: list[DmsoftError] = []
        with Progress(running.names.mirror_uuid, reporter) as progress:
            for record in records:
                checked, error = _verify_one(running, record, wanted, progress, cancelled, start)
                if error is not None and wanted.repair:
                    checked, error = _repair(running, checked, reporter, cancelled)
                found.append(checked)
                errors += [error] if error is not None else []
        verified = Verified(wanted.name, running.block_bytes, round(time.monotonic() - start, 3), tuple(found))
        return verified, errors[0] if errors else None


def _verify_one(
    running: Running, record: MemberRecord, wanted: Wanted, progress: Progress, cancelled: threading.Event, start: float
) -> tuple[Checked, DmsoftError | None]:
    # What a journal holds that was not committed is in no place yet, so it counts for nothing here.
    with job.opened(running, record, running.current_era(), direct=True) as each:
        if each.decision.since is None:
            skipped = f"there is nothing to hold it to: {each.decision.reason}"
            error = _mismatch(record.label, each.decision.reason) if each.differs else None
            return Checked(record.label, skipped=skipped), error
        with (
            guard_of(running, coupled=False) as guard, running.primary_side() as source, running.era_reader() as reader
        ):  # fmt: skip
            first = 0 if wanted.restart else record.verify_next
            throttle = running.throttle(wanted.rate, cancelled)
            found = Round(running, each, source, reader, guard, progress, cancelled, throttle, first)
            deadline = None if wanted.limit is None else start + wanted.limit
            try:
                with untracked.given_up_on_failure(running, guard, "during a verify"):
                    found.run(deadline)
            except BaseException:
                with contextlib.suppress(DmsoftError):  # why it could not go on to the end is what matters
                    _noted(running, each, found)
                raise
            return found.result(), _noted(running, each, found)


@dataclass(slots=True)
class Round:
    """One stretch after the other of one secondary, from ``next_block`` on."""

    running: Running
    job: Job
    source: Side
    reader: EraReader
    guard: Guard
    progress: Progress
    cancelled: threading.Event
    throttle: Throttle
    next_block: int
    blocks: int = 0
    bytes: int = 0
    complete: bool = False
    mismatches: list[int] = field(default_factory=list)
    _buffers: tuple[memoryview, memoryview] = field(
        default_factory=lambda: (aligned_buffer(REQUEST_BYTES), aligned_buffer(REQUEST_BYTES))
    )

    def run(self, deadline: float | None) -> None:
        """To the end of the device, or past ``deadline``. Raises `CancelledError`, `DeviceError`."""
        total = self.job.owed.nr_blocks
        self.next_block = self.next_block if self.next_block < total else 0
        label = self.job.label
        todo = self._size(_range(total, self.next_block, total) - self._owed())
        self.progress.planned([Planned(label, "verify", "its clean blocks should equal the primary's", todo)], todo)
        self.progress.phase("verify", todo)
        step = max(1, _STRETCH_BYTES // self.running.block_bytes)
        while self.next_block < total and (deadline is None or time.monotonic() < deadline):
            end = min(self.next_block + step, total)
            self._stretch(_range(total, self.next_block, end) - self._owed())
            self.next_block = end
        if self.next_block >= total:
            self.next_block, self.complete = 0, True

    def result(self) -> Checked:
        runs = BlockSet.from_extents(self.job.owed.nr_blocks, [(block, 1) for block in self.mismatches]).runs()
        return Checked(
            self.job.label, self.blocks, self.bytes, self.next_block, self.complete,
            tuple(runs),
        )  # fmt: skip

    def _stretch(self, clean: BlockSet) -> None:
        suspects, compared = suspected(
            self.running, self.source, self.job, clean, self.cancelled, self.throttle, self.progress
        )
        lower.require_primary(self.running.names)  # secondaries that go on without it are noted by who has the lock
        self.running.require_tracking()  # else writes fail, for as long as this has the lock
        self.blocks += clean.count()
        self.bytes += compared
        self.mismatches += self._confirmed(suspects)

    def _confirmed(self, suspects: Sequence[int]) -> list[int]:
        """Those that differ although nobody wrote to them. Inside a barrier the stale set is final, and what is read
        there is what it speaks of; a few at a time, since the mirror stands still meanwhile."""
        found: list[int] = []
        suspects = [block for block in suspects if block not in self._owed()]
        for at in range(0, min(len(suspects), _MOST_CONFIRMED), 4):
            self.running.await_room()
            with barrier(self.running.names, self.guard, freeze=False) as here:
                here.next_era(self.reader)  # which would be lost to whoever comes next
                owed = self._owed()
                differing = [block for block in suspects[at : at + 4] if block not in owed and self._differs(block)]
                here.check()
            found += differing
        return found + list(suspects[_MOST_CONFIRMED:])

    def _differs(self, block: int) -> bool:
        start = block * self.running.block_bytes
        end = min(start + self.running.block_bytes, self.running.data.length)
        ours, theirs = self._buffers
        for offset in range(start, end, REQUEST_BYTES):
            size = min(REQUEST_BYTES, end - offset)
            try:
                read_all(self.source, ours[:size], offset)
                read_all(self.job.side, theirs[:size], offset)
            except OSError as err:
                raise DeviceError(
                    f"The primary or {self.job.label} failed: {err.strerror}.", hint="Look at the health of the disks."
                ) from err
            if ours[:size] != theirs[:size]:
                return True
        return False

    def _owed(self) -> BlockSet:
        """Read through what is open already: also called inside a barrier."""
        return self.job.decision.owed(lambda era: self.reader.written_since(era).blocks, self.job.owed.nr_blocks)

    def _size(self, blocks: BlockSet) -> int:
        return size_bytes(blocks, block_bytes=self.running.block_bytes, data_bytes=self.running.data.length)


def _range(total: int, first: int, end: int) -> BlockSet:
    return BlockSet.from_extents(total, [(first, end - first)] if end > first else [])


def _differing(blocks: Sequence[int]) -> str:
    named = ", ".join(map(str, blocks[:_NAMED])) + (", ..." if len(blocks) > _NAMED else "")
    return f"block {named} differs" if len(blocks) == 1 else f"{len(blocks)} blocks differ ({named})"


def _mismatch(label: str, what: str) -> MismatchError:
    return MismatchError(
        f"{label} and the primary should be equal, but {what}.",
        hint="Look at both disks' health, then let `dmsoft resync` compare everything and copy the primary's side.",
    )


def _noted(running: Running, each: Job, found: Round) -> DmsoftError | None:
    """What was found is noted on both sides; the error for it, if there is one."""
    if not found.mismatches:
        _remember(running, each, found, each.payload.sync.doubt)
        return None
    what = _differing(found.mismatches)
    doubt = f"verify: {what}"
    try:
        each.doubt(doubt)
    finally:  # its own header may take no writes
        _remember(running, each, found, doubt)
    return _mismatch(each.label, what)


def _remember(running: Running, each: Job, found: Round, doubt: str | None) -> None:
    """Where the next run goes on; and a doubt, for the time when the disk is away. What was found counts also where the
    header has the token of a run that was cut off."""
    record = running.payload.member(each.label)
    if record is None:
        raise NotFoundError(f"{running.names.name} has no secondary {each.label}.")
    record = record.replace(
        verify_next=found.next_block, verified_at=now() if found.complete and doubt is None else record.verified_at,
        sync=record.sync if doubt is None else record.sync.doubted(doubt),
        token_pending=None if found.mismatches else record.token_pending,
    )  # fmt: skip
    change = running.withdraw if found.mismatches else running.grant
    with running.writing():
        change(running.payload.with_member(record))


def _repair(
    running: Running, checked: Checked, reporter: Reporter, cancelled: threading.Event
) -> tuple[Checked, DmsoftError | None]:
    reporter.note(f"{checked.label}: every block is compared now, and the primary's side copied where they differ.")
    outcome, error = sync.resynced(running, sync.Request(running.names.name, (checked.label,)), reporter, cancelled)
    repaired = msgspec.structs.replace(checked, repaired_bytes=outcome.bytes_copied)
    return repaired, error
