# SPDX-License-Identifier: GPL-2.0-or-later
"""The redo journal of a secondary: what a resync copies is put here first, and into the data region when all is there.

    begin           the old record is gone, flushed
    stage           segments are appended, each one sequential write
    journal flush   everything staged is on the medium
    commit          the record is written and flushed: from here on the new point in time counts
    apply           segments are written to their places, from memory while they are still there, else read back and
                    checked; any number of times
    data flush      and then the header says what the record says

Cut off before the commit, nothing has changed; after it, `apply` begins again at the next chance. Data go from the
journal's own disk to the same disk, so a replay needs no primary. Data are guarded by a checksum against a failing
disk, the descriptors by a chain of SHA-256 whose end stands in the signed record: no forged journal can move a
secondary's S, and whoever can forge its data can forge the data region as well.
"""

import errno
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dmsoft.errors import DeviceError
from dmsoft.member import record as records
from dmsoft.member.disk import Disk
from dmsoft.member.header import Header
from dmsoft.member.payload import Region, Sync
from dmsoft.member.record import RECORD_BYTES, Record
from dmsoft.resync import segments
from dmsoft.resync.buffers import Keeper, aligned_buffer
from dmsoft.resync.copy import (
    BATCH_PIECES,
    REQUEST_BYTES,
    CancelledError,
    Piece,
    Side,
    read_all,
    write_all,
    write_views,
)
from dmsoft.resync.segments import DESCRIPTOR_BYTES, Descriptor
from dmsoft.resync.steps import step
from dmsoft.threads import launch
from dmsoft.units import KIB, MIB

if TYPE_CHECKING:
    from dmsoft.resync.extents import Rows

_WORKERS = 4
_SLACK_BYTES = 64 * KIB
_LARGE_BYTES = 128 * MIB


class OpenDisk(Disk, Protocol):
    """A disk with its descriptor, opened O_RDWR | O_DIRECT."""

    fd: int


@dataclass(frozen=True, slots=True)
class End:
    """How much of a journal there is: segments, bytes behind the record, and the chain of the descriptors."""

    segments: int = 0
    length: int = 0
    digest: bytes = bytes(32)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a segment lies, in bytes behind the record, and which one it is."""

    number: int
    epoch: int
    at: int
    size: int


class Journal:
    """The journal in ``region`` of a disk, in front of the data region ``data``. A `Target` for copies."""

    def __init__(self, disk: OpenDisk, region: Region, data: Region, key: bytes) -> None:
        self.disk, self.region, self.data, self._key = disk, region, data, key
        self.id = uuid.uuid4().hex
        self.end = End()
        self.epoch = 0
        self._begun_under = 0
        self._writing = 0
        self._broken = False
        self._changed = threading.Condition()
        self._places: list[Place] = []
        self._blocks: list[memoryview] = []
        self._keeper = Keeper()
        self._kept: dict[int, list[Piece]] = {}

    @classmethod
    def of(cls, record: Record, disk: OpenDisk, region: Region, data: Region, key: bytes) -> "Journal":
        """What an earlier run left, to be applied or gone on with."""
        found = cls(disk, region, data, key)
        found.id, found.epoch, found._begun_under = record.id, record.epoch, record.header_sequence
        found.end = End(record.segments, record.length, bytes.fromhex(record.digest))
        return found

    @property
    def _side(self) -> Side:
        return Side(self.disk.fd, self.region.offset + RECORD_BYTES)

    def begin(self) -> None:
        """Start an empty journal: whatever record was there is gone, flushed. Raises OSError."""
        with step("journal-begin"):
            self._write_record(bytes(RECORD_BYTES))

    def retire(self) -> None:
        """Somebody else is about to write the data region: the journal counts for nothing any more. Raises OSError."""
        with step("retire"):
            self._write_record(bytes(RECORD_BYTES))

    def room(self) -> int:
        """Bytes of segments that can still be appended."""
        return self.region.length - RECORD_BYTES - self.end.length

    def put(self, pieces: Sequence[Piece]) -> None:
        """Append a segment. Raises OSError."""
        checksum, shape = segments.data_hash(view for _, view in pieces), tuple((at, len(view)) for at, view in pieces)
        with self._changed:
            block = self._blocks.pop() if self._blocks else aligned_buffer(DESCRIPTOR_BYTES)
            descriptor = Descriptor(self.end.segments, self.epoch, checksum, shape)
            at, size = self.end.length, DESCRIPTOR_BYTES + descriptor.data_bytes
            if size > self.room():
                raise OSError(errno.ENOSPC, "the journal is full")
            segments.build(descriptor, bytes.fromhex(self.id), block)
            self._places.append(Place(descriptor.number, descriptor.epoch, at, size))
            self.end = End(self.end.segments + 1, at + size, segments.chain(self.end.digest, block))
            self._writing += 1
        try:
            if (kept := self._keeper.keep([view for _, view in pieces])) is not None:
                self._kept[descriptor.number] = [(at, view) for (at, _), view in zip(pieces, kept, strict=True)]
            with step("stage"):
                write_views(self.disk.fd, [block, *(view for _, view in pieces)], self._side.offset + at)
        except OSError:
            self._broken = True
            raise
        finally:
            with self._changed:
                self._blocks.append(block)
                self._writing -= 1
                self._changed.notify_all()

    def save(self, header: Header, sync: Sync, *, committed: bool) -> None:
        """Make everything staged durable, then the record that says so. Raises OSError, `DeviceError`.

        ``committed``: from here on ``sync`` is what the disk stands for; else it is where a run that was cut off may go
        on. Nobody else may call `put` meanwhile and be counted: segments under way are waited for.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._writing == 0)
            if self._broken:
                raise OSError(errno.EIO, "a write to the journal failed")
            with step("journal-flush" if committed else "checkpoint"):
                self.disk.flush()
            block = records.build(self._record(header, sync, committed=committed), self._key)
            with step("commit-write" if committed else "checkpoint"):
                self.disk.pwrite(block, self.region.offset)
            with step("commit-flush" if committed else "checkpoint"):
                self.disk.flush()
            if self.disk.pread(RECORD_BYTES, self.region.offset) != block:
                raise DeviceError(
                    "The record of a journal reads back other than it was written.",
                    hint="Do not trust this disk; look at the kernel log (journalctl -k) and at its SMART state.",
                )

    def apply(
        self, *, cancelled: threading.Event | None = None, on_progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Write everything staged to its place in the data region; flushing is the caller's.

        Raises `JournalDamagedError`, OSError, and `CancelledError`.
        """
        if len(self._places) < self.end.segments:  # not all of it was staged by this run
            self._places = list(self._walk())
        with step("data-write"):
            _Replay(self, self._places, cancelled or threading.Event(), on_progress).run()
        self._kept, self._keeper = {}, Keeper()

    def read(self, place: Place, view: memoryview) -> list[Piece]:
        """The pieces of a segment: as they were staged, or read into ``view`` and checked. Raises
        `JournalDamagedError`."""
        if (kept := self._kept.get(place.number)) is not None:
            return kept
        view = view[: place.size]
        self._read(view, place.at)
        found = segments.parse(view[:DESCRIPTOR_BYTES], bytes.fromhex(self.id), place.number, self.data.length)
        data = view[DESCRIPTOR_BYTES:]
        if found.data_bytes != len(data) or segments.data_hash([data]) != found.data_hash:
            raise segments.damaged(f"the data of segment {found.number} are not what was written")
        pieces, used = [], 0
        for offset, length in found.pieces:
            pieces.append((offset, data[used : used + length]))
            used += length
        return pieces

    def _walk(self) -> Iterator[Place]:
        """Follow the chain through all descriptors to the digest that was signed. Raises `JournalDamagedError`."""
        block, at, digest = aligned_buffer(DESCRIPTOR_BYTES), 0, bytes(32)
        for number in range(self.end.segments):
            if at + DESCRIPTOR_BYTES > min(self.end.length, self.region.length - RECORD_BYTES):
                raise segments.damaged(f"segment {number} lies outside of it")
            self._read(block, at)
            found = segments.parse(block, bytes.fromhex(self.id), number, self.data.length)
            size = DESCRIPTOR_BYTES + found.data_bytes
            if at + size > self.end.length:
                raise segments.damaged(f"segment {number} ends outside of it")
            yield Place(number, found.epoch, at, size)
            digest = segments.chain(digest, block)
            at += size
        if at != self.end.length or digest != self.end.digest:
            raise segments.damaged("its segments are not those that were committed")

    def _read(self, view: memoryview, at: int) -> None:
        try:
            read_all(self._side, view, at)
        except OSError as err:
            raise segments.unreadable(err) from err

    def _record(self, header: Header, sync: Sync, *, committed: bool) -> Record:
        # Of the two copies the one with the higher number, which need not be the one that could be read just now.
        sequence = max(header.sequence, self._begun_under)
        return Record(
            id=self.id, member_uuid=header.payload.member_uuid, header_sequence=sequence, committed=committed,
            sync=sync, epoch=self.epoch, segments=self.end.segments, length=self.end.length,
            digest=self.end.digest.hex(), old_era=getattr(header.payload, "sync", Sync()).era,
        )  # fmt: skip

    def _write_record(self, block: bytes) -> None:
        self.disk.pwrite(block, self.region.offset)
        self.disk.flush()


def needed(rows: "Rows", bit: int, *, block_bytes: int) -> int:
    """The most room in a journal that the blocks of target ``bit`` can take, of those that `runs` gave.

    A segment holds what was gathered at a time, and no two that follow each other would have gone into one; or it holds
    at least one request, if they are gathered with those of other targets. Some slack is for requests that have to be
    cut because a part of them cannot be read.
    """
    sizes = rows[:, 1] * block_bytes
    requests = -(-sizes // REQUEST_BYTES)
    mine = rows[:, 2] >> bit & 1 == 1
    gathered = 2 * -(-int(sizes.sum()) // REQUEST_BYTES) + int(requests.sum()) // BATCH_PIECES + 1
    count = min(int(requests[mine].sum()), gathered)
    return int(sizes[mine].sum()) + count * DESCRIPTOR_BYTES + (_SLACK_BYTES if count else 0)


class _Replay:
    """The threads of one `Journal.apply`. Segments of one epoch do not overlap and go in any order; an epoch begins
    when all of the one before it is written."""

    def __init__(
        self, journal: Journal, places: Sequence[Place], cancelled: threading.Event, on_progress: Callable[[int], None]
    ) -> None:
        self._journal, self._places, self._cancelled, self._on_progress = journal, places, cancelled, on_progress
        self._target = Side(journal.disk.fd, journal.data.offset)
        self._number, self._epoch, self._busy = 0, 0, 0
        self._changed = threading.Condition()
        self._errors: list[BaseException] = []

    def run(self) -> None:
        most = DESCRIPTOR_BYTES + REQUEST_BYTES
        memory = aligned_buffer(_WORKERS * most, huge=self._journal.end.length >= _LARGE_BYTES)
        threads = [
            threading.Thread(
                target=self._work, args=(memory[n * most : (n + 1) * most],), name=f"apply-{n}", daemon=True
            )
            for n in range(_WORKERS)
        ]
        running: list[threading.Thread] = []
        for thread in threads:
            try:
                launch(thread)
            except RuntimeError:  # no more threads are to be had
                if not running:
                    raise
                break
            running.append(thread)
        try:
            for thread in running:
                thread.join()
        except BaseException as err:  # an interrupt: nobody writes any more when it goes on its way
            with self._changed:
                self._errors.append(err)
                self._changed.notify_all()
            for thread in running:
                thread.join()
            raise
        if self._errors:
            raise self._errors[0]
        if self._number < len(self._places):
            raise CancelledError("The copy was cancelled.", hint="Run the command again to go on.")

    def _work(self, buffer: memoryview) -> None:
        try:
            while (place := self._take()) is not None:
                try:
                    for offset, view in self._journal.read(place, buffer):
                        write_all(self._target, view, offset)
                finally:
                    with self._changed:
                        self._busy -= 1
                        self._changed.notify_all()
                self._on_progress(place.size - DESCRIPTOR_BYTES)
        except BaseException as err:
            with self._changed:
                self._errors.append(err)

    def _take(self) -> Place | None:
        """The next segment; waits before the first one of an epoch."""
        with self._changed:
            while not (self._errors or self._cancelled.is_set() or self._number == len(self._places)):
                place = self._places[self._number]
                if place.epoch != self._epoch and self._busy:
                    self._changed.wait()
                    continue
                self._epoch = place.epoch
                self._number += 1
                self._busy += 1
                return place
            return None
