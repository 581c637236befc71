# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying between disks: a bounded pool of threads, each with one aligned buffer, O_DIRECT on both sides.

Threads take requests in disk order; while one writes, others read. No thread holds the interpreter during I/O. Where a
target takes long for each request, more threads have more of them on their way at once. A target
that fails is dropped and the others go on; a block of the source that cannot be read is read from elsewhere if that is
possible, else remembered and skipped.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dmsoft.errors import DmsoftError
from dmsoft.resync.buffers import aligned_buffer
from dmsoft.resync.extents import Request, batches
from dmsoft.resync.steps import step
from dmsoft.threads import launch
from dmsoft.units import MIB

REQUEST_BYTES = MIB
BATCH_PIECES = 250
"""The most pieces that a target is given at once; a descriptor of the journal has room for so many."""
CHECKPOINT_SECONDS = 30.0
_WORKERS, _MOST_WORKERS = 4, 48
_SLOW_BYTES = 8 * MIB

Piece = tuple[int, memoryview]
"""Bytes and where in the data region they belong."""


class CancelledError(DmsoftError):
    """The copy was stopped before its end.

    What was promised before still holds. Run the command again to go on; it copies what is left and what was written
    since.
    """

    code = "cancelled"
    exit_code = 1


class Target(Protocol):
    """Where copies go: `Side`, straight to their places, or a journal."""

    def put(self, pieces: Sequence[Piece]) -> None:
        """Write all the pieces, which do not overlap; at most `BATCH_PIECES`. Called by several threads. Raises
        OSError."""


@dataclass(frozen=True, slots=True)
class Side:
    """A data region: a descriptor opened O_DIRECT, and where in it the region begins, in bytes."""

    fd: int
    offset: int

    def put(self, pieces: Sequence[Piece]) -> None:
        for offset, view in pieces:
            with step("copy"):
                write_all(self, view, offset)


@dataclass(slots=True)
class Tally:
    """What a copy did, in bytes of the data region; ``written`` by target. Shared by the threads. ``rescued``: what the
    source could not give and another disk could; ``unread``: what neither could. ``requests`` have been dealt with, and
    ``failures`` is how many could not be read or not be written to one of their targets. ``writing``: seconds that
    writes took, summed over the threads."""

    written: list[int]
    read: int = 0
    compared: int = 0
    differing: int = 0
    rescued: int = 0
    requests: int = 0
    failures: int = 0
    writing: float = field(default=0.0, compare=False)
    unread: list[Request] = field(default_factory=list)
    failed: dict[int, OSError] = field(default_factory=dict)

    @classmethod
    def of(cls, targets: int) -> "Tally":
        return cls([0] * targets)


class Copier:
    """Copies requests (ascending offsets, no overlap) from ``source`` to ``targets``.

    ``compare``: a bit for each target that is read first and written only where it differs; it must be a `Side`.
    ``large``: so much is copied that it is worth clearing huge pages; ``batch_pieces``: how many small requests are
    gathered before they are written, fewer to begin with (``rise`` of `batches`). ``piece_bytes``: in what units a
    request that cannot be read is tried again; ``rescue`` fills a buffer from elsewhere then and returns whether it
    could. ``read`` reads the source, when it may.
    ``on_progress`` is called from the threads with the source bytes each batch has dealt with, and ``on_checkpoint``
    from the caller's now and then with an offset below which everything is copied.
    """

    def __init__(
        self,
        source: Side,
        targets: Sequence[Target],
        *,
        compare: int = 0,
        large: bool = False,
        batch_pieces: int = 1,
        rise: int = 0,
        piece_bytes: int = REQUEST_BYTES,
        cancelled: threading.Event | None = None,
        read: Callable[[Side, memoryview, int], None] | None = None,
        rescue: Callable[[int, memoryview], bool] = lambda _offset, _view: False,
        on_progress: Callable[[int], None] = lambda _: None,
        on_checkpoint: Callable[[int], None] | None = None,
    ) -> None:
        self.source, self.targets = source, targets
        self.compare = compare
        self.large, self.batch_pieces, self.rise, self.piece_bytes = large, batch_pieces, rise, piece_bytes
        self.cancelled = cancelled or threading.Event()
        self.read = read or read_all
        self.rescue, self.on_progress, self.on_checkpoint = rescue, on_progress, on_checkpoint
        self.tally = Tally.of(len(self.targets))
        self._lock = threading.Lock()
        self._under_way: dict[int, int] = {}
        self._taken = 0
        self._threads: list[threading.Thread] = []
        self._free: list[memoryview] = []
        self._pending: Iterator[list[Request]] = iter(())
        self._crashes: list[BaseException] = []

    def run(self, requests: Iterable[Request]) -> None:
        """Copy them all; raises `CancelledError`; returns early when every target has failed."""
        self._pending = batches(requests, batch_bytes=REQUEST_BYTES, most=self.batch_pieces, rise=self.rise)
        # For what is read, and for what it is compared with; pages that are not touched cost nothing.
        memory = aligned_buffer(2 * _MOST_WORKERS * REQUEST_BYTES, huge=self.large)
        self._free = [memory[at : at + 2 * REQUEST_BYTES] for at in range(0, len(memory), 2 * REQUEST_BYTES)]
        try:
            for _ in range(_WORKERS):
                self._hire()
            self._wait()
        except BaseException:
            self.cancelled.set()
            for thread in self._threads:
                thread.join()
            raise
        finally:
            self._free = []  # locking all memory, as a barrier does, must not find it
        if self._crashes:
            raise self._crashes[0]
        if self.cancelled.is_set():
            raise CancelledError("The copy was cancelled.", hint="Run the command again to go on.")

    def floor(self) -> int:
        """An offset below which every request has been dealt with."""
        with self._lock:
            return min(self._under_way.values(), default=self._taken)

    def _wait(self) -> None:
        due = time.monotonic() + CHECKPOINT_SECONDS
        for thread in self._threads:  # which may become more
            while thread.is_alive():
                thread.join(max(0.0, due - time.monotonic()) if self.on_checkpoint else None)
                if self.on_checkpoint and time.monotonic() >= due and thread.is_alive():
                    self.on_checkpoint(self.floor())
                    due = time.monotonic() + CHECKPOINT_SECONDS

    def _next(self, worker: int) -> list[Request] | None:
        with self._lock:
            self._under_way.pop(worker, None)
            if self.cancelled.is_set() or len(self.tally.failed) == len(self.targets):
                return None
            batch = next(self._pending, None)
            if batch is not None:
                self._under_way[worker] = batch[0].offset
                self._taken = batch[-1].offset + batch[-1].length
            return batch

    def _hire(self) -> None:
        """One more thread, as long as there is a buffer for it."""
        with self._lock:
            if self._free and not self.cancelled.is_set():
                # A number of our own: that of a thread which ended with its batch not dealt with may be another's soon.
                worker = len(self._threads)
                thread = threading.Thread(
                    target=self._work, args=(worker, self._free.pop(0)), name=f"copy-{worker}", daemon=True
                )
                try:
                    launch(thread)
                except RuntimeError:  # no more threads are to be had
                    if not self._threads:
                        raise
                else:
                    self._threads.append(thread)

    def _work(self, worker: int, buffer: memoryview) -> None:
        ours, theirs = buffer[:REQUEST_BYTES], buffer[REQUEST_BYTES:]
        try:
            while (batch := self._next(worker)) is not None:
                if self._copy(batch, ours, theirs) < _SLOW_BYTES:
                    self._hire()
        except BaseException as err:
            self._crashes.append(err)
            self.cancelled.set()

    def _copy(self, batch: Sequence[Request], ours: memoryview, theirs: memoryview) -> float:
        """Returns how many bytes a second were written."""
        held: list[tuple[Request, memoryview]] = []
        used = 0
        for request in batch:
            held += self._read(request, ours[used : used + request.length])
            used += request.length
        start = time.monotonic()
        for index in range(len(self.targets)):
            mine = [(request.offset, data) for request, data in held if request.targets >> index & 1]
            for at in range(0, len(mine), BATCH_PIECES):
                if index not in self.tally.failed:
                    self._put(index, mine[at : at + BATCH_PIECES], theirs)
        seconds = time.monotonic() - start
        done = sum(len(data) for _, data in held)
        with self._lock:
            self.tally.read += done
            self.tally.writing += seconds
            self.tally.requests += len(batch)
        self.on_progress(done)
        return used / max(seconds, 1e-6)

    def _read(self, request: Request, data: memoryview) -> list[tuple[Request, memoryview]]:
        """The request and its bytes; if it cannot be read, those pieces of it that can be had."""
        try:
            self.read(self.source, data, request.offset)
            return [(request, data)]
        except OSError:
            pass
        held: list[tuple[Request, memoryview]] = []
        for piece, view in _pieces(request, data, self.piece_bytes):
            if not self._has(piece, view):
                with self._lock:
                    self.tally.unread.append(piece)
                    self.tally.failures += 1
            elif held and held[-1][0].offset + held[-1][0].length == piece.offset:
                start = held.pop()[0].offset
                joined = Request(start, piece.offset + piece.length - start, request.targets)
                held.append((joined, data[start - request.offset : start - request.offset + joined.length]))
            else:
                held.append((piece, view))
        return held

    def _has(self, piece: Request, view: memoryview) -> bool:
        try:
            read_all(self.source, view, piece.offset)
            return True
        except OSError:
            if not self.rescue(piece.offset, view):
                return False
        with self._lock:
            self.tally.rescued += piece.length
        return True

    def _put(self, index: int, pieces: Sequence[Piece], theirs: memoryview) -> None:
        target = self.targets[index]
        try:
            if self.compare >> index & 1 and isinstance(target, Side):
                pieces = [piece for piece in pieces if self._differs(target, piece, theirs)]
            if pieces:
                target.put(pieces)
        except OSError as err:
            with self._lock:
                self.tally.failed.setdefault(index, err)
                self.tally.failures += len(pieces)
            return
        with self._lock:
            self.tally.written[index] += sum(len(view) for _, view in pieces)

    def _differs(self, target: Side, piece: Piece, theirs: memoryview) -> bool:
        import numpy as np

        offset, data = piece
        view = theirs[: len(data)]
        read_all(target, view, offset)
        same = np.array_equal(np.frombuffer(data, np.uint64), np.frombuffer(view, np.uint64))
        with self._lock:
            self.tally.compared += len(data)
            self.tally.differing += 0 if same else len(data)
        return not same


def _pieces(request: Request, data: memoryview, piece_bytes: int) -> Iterator[tuple[Request, memoryview]]:
    """The request cut at multiples of ``piece_bytes``."""
    start, end = request.offset, request.offset + request.length
    while start < end:
        stop = min(end, (start // piece_bytes + 1) * piece_bytes)
        yield (
            Request(start, stop - start, request.targets),
            data[start - request.offset : stop - request.offset],
        )
        start = stop


def read_all(side: Side, view: memoryview, offset: int) -> None:
    """Fill ``view`` from ``offset`` of the region; raises OSError, also at an unexpected end of the device."""
    at, left = side.offset + offset, view
    while (count := os.preadv(side.fd, [left], at)) < len(left):
        if count == 0:
            raise OSError(5, "unexpected end of the device")
        at, left = at + count, left[count:]


def write_all(side: Side, view: memoryview, offset: int) -> None:
    """Write all of ``view`` at ``offset`` of the region; raises OSError."""
    at, left = side.offset + offset, view
    while (count := os.pwritev(side.fd, [left], at)) < len(left):
        if count == 0:
            raise OSError(5, "nothing was written")
        at, left = at + count, left[count:]


def write_views(fd: int, views: Sequence[memoryview], offset: int) -> None:
    """Write all of the views, one behind the other, at ``offset`` of the device; raises OSError."""
    left = list(views)
    while left:
        count = os.pwritev(fd, left, offset)
        if count == 0:
            raise OSError(5, "nothing was written")
        offset += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]
