# SPDX-License-Identifier: GPL-2.0-or-later
"""One secondary in one run: its disk behind the gate, what it needs and why, and every write of its header."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from dmsoft.era.blocks import BlockSet
from dmsoft.errors import DeviceError, DivergedError, DmsoftError, NotFoundError
from dmsoft.member import header, regions
from dmsoft.member.gate import GatedDevice, open_exclusive
from dmsoft.member.payload import MemberRecord, Secondary, Sync
from dmsoft.mirror import sample
from dmsoft.mirror.decision import Decision, decide
from dmsoft.mirror.generation import Direction, direction
from dmsoft.mirror.locate import doubted
from dmsoft.mirror.names import new_uuid
from dmsoft.mirror.running import Running, flush, node_path
from dmsoft.resync.copy import Side
from dmsoft.resync.extents import size_bytes


@dataclass(slots=True)
class Job:
    """``payload`` is the secondary's header as last written; ``owed`` what is still to be copied; ``error`` set means
    that this secondary is out of the run."""

    label: str
    payload: Secondary
    disk: GatedDevice
    key: bytes
    decision: Decision
    owed: BlockSet
    stale: BlockSet
    token: str
    attach: bool
    written: int = 0
    spoiled: bool = False
    error: DmsoftError | None = None

    @property
    def side(self) -> Side:
        return Side(self.disk.fd, self.payload.regions["data"].offset)

    @property
    def bytes_stale(self) -> int:
        return size_bytes(
            self.stale, block_bytes=self.payload.block_bytes, data_bytes=self.payload.regions["data"].length
        )

    def spoil(self) -> None:
        """Before the first byte goes into the data region: the disk is no whole point in time any more.

        Written even if the header says so already: that may stand in one copy alone, or only in the disk's cache.
        """
        if not self.spoiled:
            sync = self.payload.sync.replace(consistent=False, consistent_as_of=None)
            self._withdraw(self.payload.replace(sync=sync))
            self.spoiled = True

    def doubt(self, reason: str) -> None:
        """Withdraw everything the disk promised; the next resync compares every block."""
        self._withdraw(self.payload.replace(sync=self.payload.sync.replace(doubt=reason[:200])))

    def copied_untracked(self, reason: str) -> None:
        """Flush the disk, then let its header say that all was copied while nothing was tracked, for which nothing can
        be promised but that a compare is enough from now on."""
        flush(self.disk, f"The secondary {self.label}")
        sync = self.payload.sync.replace(era=self.payload.sync.era or 0, doubt=reason[:200])
        self._withdraw(self.payload.replace(sync=sync))

    def promise(self, era: int, tracker: str, *, as_of: str | None) -> None:
        """Flush the disk, then let its header say that it holds every write of an era < ``era``.

        ``as_of`` is the point in time that the disk is as a whole, None while it is none. Raises `DeviceError`, and
        then nothing new is promised.
        """
        flush(self.disk, f"The secondary {self.label}")
        sync = Sync(era=era, tracker=tracker, token=self.token, consistent=as_of is not None, consistent_as_of=as_of)
        payload = self.payload.replace(sync=sync)
        header.write_granted(self.disk, payload, self.key)
        self.payload = payload  # not before: the primary repeats it to answer for this disk when it is away

    def _withdraw(self, payload: Secondary) -> None:
        header.write_withdrawn(self.disk, payload, self.key)
        self.payload = payload


@contextlib.contextmanager
def opened(running: Running, record: MemberRecord, current_era: int | None, *, dry_run: bool = False) -> Iterator[Job]:
    """Open the secondary of ``record`` through the gate and decide what it needs; ``dry_run``: write nothing at all.

    Raises `NotFoundError` when it is not here, `DivergedError`, and whatever gate and header have to say.
    """
    with gate(running, record) as (disk, payload):
        decision = decide(running.payload, record, payload, current_era)
        since = decision.since
        owed = BlockSet.full(regions.nr_blocks(running.data.length, running.block_bytes))
        if since is not None:
            with running.era_reader() as reader:
                owed = reader.written_since(since).blocks
        job = Job(
            record.label, payload, disk, running.assembly.key, decision, owed, owed.copy(), new_uuid(),
            attach=record.mode == "write-behind",
        )  # fmt: skip
        if since is not None:
            _sample(running, job, since, dry_run=dry_run)
        yield job


@contextlib.contextmanager
def gate(running: Running, record: MemberRecord) -> Iterator[tuple[GatedDevice, Secondary]]:
    """The secondary's disk, open for writing, and its header, which fits the primary's in every respect."""
    label, names = record.label, running.names
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
        scan = header.read(disk, key=running.assembly.key)
        payload = None if scan.header is None else scan.header.payload
        if not isinstance(payload, Secondary) or scan.header is None or not scan.header.verified:
            raise DeviceError(f"{disk.path} is not the secondary {label}.", hint="Look at it with `dmsoft examine`.")
        regions.check(payload, disk.size_bytes)
        if payload.regions["data"].length != running.data.length or payload.block_bytes != running.block_bytes:
            raise DeviceError(
                f"The secondary {label} was laid out for another primary.", hint="Remove and add it again."
            )
        if direction(running.payload.generation, payload.generation) is not Direction.TO_SECONDARY:
            raise DivergedError(
                f"The secondary {label} was written on its own since it left {names.name}.",
                hint="Nothing is copied until you choose: remove it and add it again to drop what it has.",
            )
        yield disk, doubted(payload, scan.doubt)


def _sample(running: Running, job: Job, since: int, *, dry_run: bool) -> None:
    """Compare a few clean blocks before S is believed; a difference turns the job into a compare."""

    def now_stale() -> BlockSet:
        with running.era_reader() as reader:
            return reader.written_since(since).blocks

    with running.primary_side() as primary:
        try:
            offset = sample.differing(
                primary, job.side, job.owed,
                block_bytes=running.block_bytes, data_bytes=running.data.length, now_stale=now_stale,
            )  # fmt: skip
        except OSError as err:
            raise DeviceError(
                f"The secondary {job.label} could not be compared with the primary: {err.strerror}.",
                hint="Look at the kernel log for which of the two disks it is, and at its health.",
            ) from err
    if offset is None:
        return
    reason = f"a block that should be equal differs from the primary (at byte {offset})"
    if not dry_run:
        job.doubt(reason)
    job.decision = Decision("compare", reason)
    job.owed = BlockSet.full(job.owed.nr_blocks)
    job.stale = job.owed.copy()
