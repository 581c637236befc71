# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading for a copy no faster than `dmsoft.resync.pace` allows.

While the rate is held down, a request is read in small pieces and by one thread at a time, so that none of the others'
ever waits for more than one piece. While nobody does, the only cost is a look at the kernel's counters now and then.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dmsoft.resync import ioprio
from dmsoft.resync.copy import CancelledError, Side, read_all
from dmsoft.resync.pace import LEAST_RATE, Adaptive, Bucket, Limit, Seen, shut
from dmsoft.units import KIB

_LOOK_SECONDS = 0.1
_PIECE_BYTES = 128 * KIB


@dataclass(frozen=True, slots=True)
class Counters:
    """Of a block device so far: requests that ended, the seconds they took, and how many are on their way."""

    requests: int
    waited: float
    in_flight: int

    @classmethod
    def of(cls, number: str) -> "Counters":
        """Of the device ``MAJOR:MINOR`` (Documentation/block/stat.rst); raises OSError when it is gone."""
        fields = [int(word) for word in Path(f"/sys/dev/block/{number}/stat").read_text().split()]
        return cls(fields[0] + fields[4], (fields[3] + fields[7]) / 1000, fields[8])


class Throttle:
    """One copy's reads. ``counters`` tells of the device that others use, and of them alone; ``floor`` is the rate in
    bytes a second below which the copy would not come to its end. ``reading`` is how many seconds reads themselves
    took, summed over the threads, and ``copied`` how many bytes they gave, since the copy began."""

    def __init__(
        self, limit: Limit, counters: Callable[[], Counters], cancelled: threading.Event,
        *, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.limit, self.floor = limit, float(LEAST_RATE)
        self.held_back = False
        self.reading, self.copied = 0.0, 0
        self._counters, self._cancelled, self._clock = counters, cancelled, clock
        self._state, self._bucket = Adaptive(), Bucket()
        self._began = clock()
        self._looked, self._last, self._unseen = self._began, self._look_now(), 0
        self._lock, self._turn, self._thread = threading.Lock(), threading.Lock(), threading.local()

    @property
    def rate(self) -> float | None:
        """Bytes a second that are allowed now; None: any."""
        return self.limit.value if self.limit.kind == "rate" else self._state.rate

    def begin(self) -> None:
        """A copy begins: what was done before it is no sign of others. A barrier, say, has udev look at the device."""
        with self._lock:
            self._looked, self._last, self._unseen = self._clock(), self._look_now(), 0
            self.reading, self.copied = 0.0, 0

    def read(self, side: Side, view: memoryview, offset: int) -> None:
        """`read_all`, when it may be. Raises OSError, and `CancelledError` while it waits."""
        if self.limit.kind == "max":
            read_all(side, view, offset)
            return
        if not hasattr(self._thread, "lowered"):
            ioprio.lower()
            self._thread.lowered = True
        self._look()
        if self.limit.kind == "adaptive" and self._state.rate is None:  # as nearly always: no more than has to be
            self._read(side, view, offset)
            return
        if self.limit.kind == "share":
            self._await(len(view))
            self._read(side, view, offset)
            return
        with self._turn:
            for at in range(0, len(view), _PIECE_BYTES):
                part = view[at : at + _PIECE_BYTES]
                self._await(len(part))
                self._read(side, part, offset + at)

    def _await(self, size_bytes: int) -> None:
        """Wait until so many bytes may be read; the state may change meanwhile."""
        while (pause := self._pause(size_bytes)) > 0:
            self.held_back = True
            if self._cancelled.wait(pause):
                raise CancelledError("The copy was cancelled.", hint="Run the command again to go on.")
            if self.limit.kind == "rate":
                return

    def _pause(self, size_bytes: int) -> float:
        now = self._clock()
        if self.limit.kind == "share":
            return shut(self.limit.value, self._began, now)
        if self.limit.kind == "rate":
            return self._bucket.wait(size_bytes, self.limit.value, now)
        self._look()
        rate = self._state.rate
        if rate is None:
            return 0.0
        if rate == 0:
            return _LOOK_SECONDS
        ahead = self._bucket.free_at - now
        if ahead > 0:
            return min(ahead, _LOOK_SECONDS)
        self._bucket.wait(size_bytes, rate, now)
        return 0.0

    def _read(self, side: Side, view: memoryview, offset: int) -> None:
        start = self._clock()
        read_all(side, view, offset)
        with self._lock:
            self.reading += self._clock() - start
            self.copied += len(view)
            self._unseen += len(view)

    def _look(self) -> None:
        if self.limit.kind != "adaptive" or self._clock() - self._looked < _LOOK_SECONDS:
            return
        with self._lock:
            now = self._clock()
            if now - self._looked < _LOOK_SECONDS:
                return
            before, self._last = self._last, self._look_now()
            seen = Seen(
                now - self._looked, max(0, self._last.requests - before.requests),
                max(0.0, self._last.waited - before.waited), self._last.in_flight, self._unseen,
            )  # fmt: skip
            self._looked, self._unseen = now, 0
            self._state = self._state.after(seen, self.floor)

    def _look_now(self) -> Counters:
        try:
            return self._counters()
        except OSError:  # nobody uses what is gone
            return Counters(0, 0.0, 0)
