# SPDX-License-Identifier: GPL-2.0-or-later
"""How a long run tells of itself: to whoever started it, and to `status` through a file in /run.

The file is a courtesy. A reader believes it only while the process that wrote it lives and holds the operation lock.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Protocol

import msgspec

from dmsoft.mirror.lock import RUN_DIR

_PUBLISH_SECONDS = 1.0


class Planned(msgspec.Struct, frozen=True):
    """What a run will do to one secondary, and why; bytes of the stale blocks.

    ``journal``: whether the copy goes through the secondary's journal, which keeps it a whole point in time throughout;
    if not, ``direct_reason`` says why. ``seconds_estimate`` is by the rate of the last copy, None when there was none.
    """

    label: str
    kind: str
    reason: str
    bytes_stale: int
    journal: bool = False
    direct_reason: str | None = None
    seconds_estimate: float | None = None


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


class Published(msgspec.Struct, frozen=True):
    """What `status` can read of a run under way."""

    pid: int
    labels: tuple[str, ...]
    phase: str
    bytes_done: int
    bytes_total: int
    started: float


class Progress:
    """Counts for a run, handed on to its reporter and published about once a second."""

    def __init__(self, mirror_uuid: str, reporter: Reporter) -> None:
        self._path = _path(mirror_uuid)
        self._reporter = reporter
        self._labels: tuple[str, ...] = ()
        self._phase, self._done, self._total = "starting", 0, 0
        self._started, self._last = time.time(), 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def planned(self, plans: list[Planned], bytes_total: int) -> None:
        self._labels = tuple(plan.label for plan in plans)
        self._reporter.planned(plans, bytes_total)
        self._publish(force=True)

    def phase(self, name: str, bytes_total: int, bytes_later: int = 0) -> None:
        self._phase, self._done, self._total = name, 0, bytes_total
        self._reporter.phase(name, bytes_total, bytes_later)
        self._publish(force=True)

    def advance(self, count: int) -> None:
        self._done += count
        self._reporter.advance(count)
        self._publish()

    def note(self, text: str) -> None:
        self._reporter.note(text)

    def _publish(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._last < _PUBLISH_SECONDS:
            return
        self._last = now
        said = Published(os.getpid(), self._labels, self._phase, self._done, self._total, self._started)
        beside = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full /run must not end a resync
            beside.write_bytes(msgspec.json.encode(said))
            beside.replace(self._path)


def published(mirror_uuid: str) -> Published | None:
    """The run under way on that mirror, None when there is none."""
    try:
        said = msgspec.json.decode(_path(mirror_uuid).read_bytes(), type=Published)
        os.kill(said.pid, 0)
    except (OSError, msgspec.DecodeError):
        return None
    return said


def _path(mirror_uuid: str) -> Path:
    return RUN_DIR / f"{mirror_uuid}.progress"
