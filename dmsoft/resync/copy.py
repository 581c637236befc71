# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying between disks: a bounded pool of threads, each with one aligned buffer, O_DIRECT on both sides.

Threads take requests in disk order; while one writes, others read. No thread holds the interpreter during I/O. A target
that fails is dropped and the others go on; a range of the source that cannot be read is remembered and skipped.
"""

import mmap
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dmsoft.errors import DmsoftError
from dmsoft.resync.extents import Request
from dmsoft.units import MIB

REQUEST_BYTES = MIB
_WORKERS = 4


class CancelledError(DmsoftError):
    """The copy was stopped before its end.

    What was promised before still holds. Run the command again to go on; it copies what is left and what was written
    since.
    """

    code = "cancelled"
    exit_code = 1


@dataclass(frozen=True, slots=True)
class Side:
    """A data region: a descriptor opened O_DIRECT, and where in it the region begins, in bytes."""

    fd: int
    offset: int


@dataclass(slots=True)
class Tally:
    """What a copy did, in bytes of the data region; ``written`` by target. Shared by the threads."""

    written: list[int]
    read: int = 0
    compared: int = 0
    differing: int = 0
    unread: list[Request] = field(default_factory=list)
    failed: dict[int, OSError] = field(default_factory=dict)

    @classmethod
    def of(cls, targets: int) -> "Tally":
        return cls([0] * targets)


class Copier:
    """Copies requests from ``source`` to ``targets``; ``compare`` reads a target first and writes only what differs.

    ``on_progress`` is called from the threads with the source bytes each request has dealt with.
    """

    def __init__(
        self,
        source: Side,
        targets: Sequence[Side],
        *,
        compare: int = 0,
        cancelled: threading.Event | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.source, self.targets = source, targets
        self.compare = compare
        self.cancelled = cancelled or threading.Event()
        self.on_progress = on_progress
        self.tally = Tally.of(len(self.targets))
        self._lock = threading.Lock()

    def run(self, requests: Iterable[Request]) -> None:
        """Copy them all; raises `CancelledError`; returns early when every target has failed."""
        pending = iter(requests)
        crashes: list[BaseException] = []
        threads = [
            threading.Thread(target=self._work, args=(pending, crashes), name=f"copy-{n}", daemon=True)
            for n in range(_WORKERS)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self.cancelled.set()
            for thread in threads:
                thread.join()
            raise
        if crashes:
            raise crashes[0]
        if self.cancelled.is_set():
            raise CancelledError("The copy was cancelled.", hint="Run the command again to go on.")

    def _next(self, pending: Iterator[Request]) -> Request | None:
        with self._lock:
            if self.cancelled.is_set() or len(self.tally.failed) == len(self.targets):
                return None
            return next(pending, None)

    def _work(self, pending: Iterator[Request], crashes: list[BaseException]) -> None:
        try:
            ours, theirs = aligned_buffer(REQUEST_BYTES), aligned_buffer(REQUEST_BYTES)
            while (request := self._next(pending)) is not None:
                self._copy(request, ours, theirs)
        except BaseException as err:
            crashes.append(err)
            self.cancelled.set()

    def _copy(self, request: Request, ours: memoryview, theirs: memoryview) -> None:
        data = ours[: request.length]
        try:
            read_all(self.source, data, request.offset)
        except OSError:
            with self._lock:
                self.tally.unread.append(request)
            return
        for index, target in enumerate(self.targets):
            if request.targets >> index & 1 and index not in self.tally.failed:
                self._put(index, target, data, request.offset, theirs[: request.length])
        with self._lock:
            self.tally.read += request.length
        self.on_progress(request.length)

    def _put(self, index: int, target: Side, data: memoryview, offset: int, theirs: memoryview) -> None:
        try:
            if self.compare >> index & 1:
                read_all(target, theirs, offset)
                same = np.array_equal(np.frombuffer(data, np.uint64), np.frombuffer(theirs, np.uint64))
                with self._lock:
                    self.tally.compared += len(data)
                    self.tally.differing += 0 if same else len(data)
                if same:
                    return
            write_all(target, data, offset)
        except OSError as err:
            with self._lock:
                self.tally.failed.setdefault(index, err)
            return
        with self._lock:
            self.tally.written[index] += len(data)


class Staging:
    """Memory for the final copy: filled inside the barrier, written after it. Allocated and touched beforehand."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._map = mmap.mmap(-1, max(capacity_bytes, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._map)
        for page in range(0, len(self._map), mmap.PAGESIZE):
            self._map[page] = 0
        self._held: list[tuple[Request, memoryview]] = []

    def fill(self, source: Side, requests: Iterable[Request]) -> None:
        """Read every request; raises OSError when the source cannot be read, MemoryError when they do not fit, and
        holds nothing then."""
        self._held = []
        used, held = 0, []
        for request in requests:
            if used + request.length > self.capacity_bytes:
                raise MemoryError
            view = self._view[used : used + request.length]
            read_all(source, view, request.offset)
            held.append((request, view))
            used += request.length
        self._held = held

    def drain(self, targets: Sequence[Side], tally: Tally, only: Collection[int] | None = None) -> None:
        """Write what is held to its targets (``only`` those, if given); ``tally`` notes those that fail."""
        for request, view in self._held:
            for index, target in enumerate(targets):
                if not request.targets >> index & 1 or index in tally.failed:
                    continue
                if only is not None and index not in only:
                    continue
                try:
                    write_all(target, view, request.offset)
                    tally.written[index] += request.length
                except OSError as err:
                    tally.failed[index] = err
            tally.read += request.length


def aligned_buffer(size_bytes: int) -> memoryview:
    """Page-aligned memory, as O_DIRECT wants it; freed with its last view."""
    return memoryview(mmap.mmap(-1, size_bytes))


def read_all(side: Side, view: memoryview, offset: int) -> None:
    """Fill ``view`` from ``offset`` of the region; raises OSError, also at an unexpected end of the device."""
    done = 0
    while done < len(view):
        count = os.preadv(side.fd, [view[done:]], side.offset + offset + done)
        if count == 0:
            raise OSError(5, "unexpected end of the device")
        done += count


def write_all(side: Side, view: memoryview, offset: int) -> None:
    """Write all of ``view`` at ``offset`` of the region; raises OSError."""
    done = 0
    while done < len(view):
        done += os.pwritev(side.fd, [view[done:]], side.offset + offset + done)
