# SPDX-License-Identifier: GPL-2.0-or-later
"""How a long run tells of itself: to whoever started it, and to `status` through a file in /run.

The file is a courtesy. A reader believes it only while the process that wrote it holds the operation lock.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from dmsoft.member.files import read_json
from dmsoft.mirror.lock import RUN_DIR, holder

_PUBLISH_SECONDS = 1.0


class Planned(msgspec.Struct, frozen=True):
    """What a run will do to one secondary, and why; bytes of the stale blocks.

    ``journal``: whether the copy goes through the secondary's journal, which keeps it a whole point in time throughout;
    if not, ``direct_reason`` says why. ``seconds_estimate`` is by the rate of the last copy, None when there was none.
    ``attached``: it stays attached, and these blocks are compared.
    """

    label: str
    kind: str
    reason: str
    bytes_stale: int
    journal: bool = False
    direct_reason: str | None = None
    seconds_estimate: float | None = None
    attached: bool = False


class Reporter(Protocol):
    """Who watches a run. ``advance`` comes from several threads; ``bytes_later`` is what is known to come after the
    phase."""

    def planned(self, plans: list[Planned], bytes_total: int) -> None: ...
    def phase(self, name: str, bytes_total: int, bytes_later: int = 0) -> None: ...
    def advance(self, count: int) -> None: ...
    def note(self, text: str) -> None: ...


class Silent:
    """A reporter for runs that nobody watches."""

    def planned(self, plans: list[Planned], bytes_total: int) -> None: ...
    def phase(self, name: str, bytes_total: int, bytes_later: int = 0) -> None: ...
    def advance(self, count: int) -> None: ...
    def note(self, text: str) -> None: ...


class Meter:
    """Rate of one phase, the mean since its beginning, which a long copy keeps to; time left to the end of the run, as
    far as it is known what comes ``later``."""

    def __init__(self, name: str = "") -> None:
        self.begin(name, 0)

    def begin(self, name: str, total: int, later: int = 0) -> None:
        self.name, self.total, self.later, self.done, self.start = name, total, later, 0, time.monotonic()

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.start, 1e-3)

    @property
    def rate(self) -> float:
        return self.done / self.seconds

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done + self.later) / self.rate if self.done else None


class Queue(msgspec.Struct, frozen=True):
    """The requests of one pass: those not dealt with yet, those that are, and of these the ones that failed."""

    pending: int
    done: int
    failed: int


class Published(msgspec.Struct, frozen=True):
    """What `status` can read of a run under way. ``bytes_queued``: of the phase, what is not dealt with yet; ``queue``
    is None where nothing is counted by request."""

    pid: int
    started: float
    labels: tuple[str, ...]
    phase: str
    bytes_done: int
    bytes_total: int
    bytes_per_second: int
    seconds_left: float | None
    queue: Queue | None

    @property
    def bytes_queued(self) -> int:
        return max(0, self.bytes_total - self.bytes_done)


class Progress:
    """Counts for a run, handed on to its reporter and published about once a second."""

    def __init__(self, mirror_uuid: str, reporter: Reporter) -> None:
        self._path = _path(mirror_uuid)
        self._reporter = reporter
        self._labels: tuple[str, ...] = ()
        self._meter = Meter("starting")
        self._queue: Callable[[], Queue] | None = None
        self._started, self._last = time.time(), 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def planned(self, plans: list[Planned], bytes_total: int) -> None:
        self._labels = tuple(plan.label for plan in plans)
        self._reporter.planned(plans, bytes_total)
        self._publish(force=True)

    def phase(
        self, name: str, bytes_total: int, bytes_later: int = 0, *, queue: Callable[[], Queue] | None = None
    ) -> None:
        """A new phase begins; ``queue`` tells at any time of it where its requests stand."""
        self._queue = queue
        self._meter.begin(name, bytes_total, bytes_later)
        self._reporter.phase(name, bytes_total, bytes_later)
        self._publish(force=True)

    def advance(self, count: int) -> None:
        with self._lock:
            self._meter.done += count
        self._reporter.advance(count)
        self._publish()

    def note(self, text: str) -> None:
        self._reporter.note(text)

    def _publish(self, *, force: bool = False) -> None:
        with self._lock:
            now = time.monotonic()
            if not force and now - self._last < _PUBLISH_SECONDS:
                return
            self._last = now
        meter, left = self._meter, self._meter.seconds_left
        said = Published(
            os.getpid(), self._started, self._labels, meter.name, meter.done, meter.total, round(meter.rate),
            None if left is None else round(left, 1), None if self._queue is None else self._queue(),
        )  # fmt: skip
        beside = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full /run must not end a resync
            beside.write_bytes(msgspec.json.encode(said))
            beside.replace(self._path)


def published(mirror_uuid: str) -> Published | None:
    """What the holder of the mirror's operation lock has published, None when it has not or there is none."""
    held, said = holder(mirror_uuid), read_json(_path(mirror_uuid), Published)
    if held is None or said is None:
        return None
    # Of one that was killed its file stays, and another process may have its number by now.
    return said if said.pid == held.pid and said.started >= held.since else None


def moved_at(mirror_uuid: str) -> int | None:
    """When a run last told of itself, in nanoseconds of the clock, None if it has not: another value as long as it goes
    on."""
    try:
        return _path(mirror_uuid).stat().st_mtime_ns
    except OSError:
        return None


def _path(mirror_uuid: str) -> Path:
    return RUN_DIR / f"{mirror_uuid}.progress"
