# SPDX-License-Identifier: GPL-2.0-or-later
"""Showing a long run: a bar with rate and time left on a terminal, a line now and then in a log, objects as JSON."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dmsoft.errors import DeviceError
from dmsoft.mirror.progress import Meter, Planned, Reporter, Silent
from dmsoft.report.output import clean, console, emit, say
from dmsoft.threads import require_room
from dmsoft.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.progress import TaskID

_LINE_SECONDS = 5.0
_OBJECT_SECONDS = 1.0
_WORDS = {
    "full": "full copy", "incremental": "incremental copy", "compare": "compare of every block", "none": "nothing",
}  # fmt: skip


@contextlib.contextmanager
def reporter(*, as_json: bool, dry_run: bool = False) -> Iterator[Reporter]:
    """The reporter that fits where the output goes; a dry run's result says all that its plan would."""
    if as_json:
        yield _Lines(_emit_progress, _OBJECT_SECONDS, plan=_emit_plan)
    elif dry_run:
        yield Silent()
    elif sys.stderr.isatty():
        with _Bar() as bar:
            yield bar
    else:
        yield _Lines(_print_progress, _LINE_SECONDS, plan=_print_plan)


def sentence(plan: Planned) -> str:
    """What will be done to one secondary, why, how long it may take, and what the disk is meanwhile."""
    if plan.kind == "none":
        return clean(f"{plan.label}: nothing to copy, because {plan.reason}.")
    if plan.attached or plan.kind == "verify":  # nothing is written
        what = f"comparison of {format_size(plan.bytes_stale)}{' while it stays attached' * plan.attached}"
        return clean(f"{plan.label}: {what}, because {plan.reason}.")
    what = f"{_WORDS.get(plan.kind, plan.kind)}, {format_size(plan.bytes_stale)}"
    if plan.seconds_estimate is not None:
        what += f", about {format_duration(plan.seconds_estimate)}"
    return clean(f"{plan.label}: {what}, because {plan.reason}. {way(plan.journal, plan.direct_reason)}")


def way(journal: bool, direct_reason: str | None) -> str:
    """Where a copy goes, and what that means for the disk."""
    if journal:
        return "It goes through the journal, so the disk stays a whole point in time."
    return f"It goes straight to the disk ({direct_reason}), which is no whole point in time meanwhile."


class _Lines:
    def __init__(self, show, every: float, *, plan) -> None:  # type: ignore[no-untyped-def]
        self._show, self._every, self._plan = show, every, plan
        self._meter, self._last, self._lock = Meter(), 0.0, threading.Lock()

    def planned(self, plans: list[Planned], bytes_total: int) -> None:
        self._plan(plans)

    def phase(self, name: str, bytes_total: int, bytes_later: int = 0) -> None:
        with self._lock:
            self._meter.begin(name, bytes_total, bytes_later)
            self._last = time.monotonic()

    def advance(self, count: int) -> None:
        with self._lock:
            self._meter.done += count
            if time.monotonic() - self._last >= self._every:
                self._last = time.monotonic()
                self._show(self._meter)

    def note(self, text: str) -> None:
        say(text, err=True, hang=2)


def _emit_plan(plans: list[Planned]) -> None:
    _emit_if_possible({"event": "plan", "secondaries": plans})


def _emit_progress(meter: Meter) -> None:
    _emit_if_possible({
        "event": "progress", "phase": meter.name, "bytes_done": meter.done, "bytes_total": meter.total,
        "bytes_per_second": round(meter.rate), "seconds_left": meter.seconds_left,
    })  # fmt: skip


def _emit_if_possible(value: object) -> None:
    """Whoever reads it may be gone, or have no more room: that is told at the end, and ends no copy."""
    with contextlib.suppress(OSError, DeviceError):
        emit(value)


def _print_plan(plans: list[Planned]) -> None:
    for plan in plans:
        say(sentence(plan), err=True, hang=2)


def _print_progress(meter: Meter) -> None:
    left = "" if meter.seconds_left is None else f", {format_duration(meter.seconds_left)} left"
    say(
        f"{meter.name}: {format_size(meter.done)} of {format_size(meter.total)} "
        f"at {format_size(round(meter.rate))}/s{left}",
        err=True,
    )


class _Bar:
    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        # At most 71 columns, so that the line never breaks.
        self._progress = Progress(
            TextColumn("{task.description:<7}"), BarColumn(bar_width=20),
            TextColumn("{task.fields[amount]}"), console=console(err=True), refresh_per_second=4,
        )  # fmt: skip
        self._meter, self._lock = Meter(), threading.Lock()
        self._task: TaskID | None = None

    def __enter__(self) -> "_Bar":
        require_room()  # for a thread of its own
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, plans: list[Planned], bytes_total: int) -> None:
        for plan in plans:
            self._progress.console.print(sentence(plan))

    def phase(self, name: str, bytes_total: int, bytes_later: int = 0) -> None:
        with self._lock:
            self._meter.begin(name, bytes_total, bytes_later)
            self._task = None
            if bytes_total:
                self._task = self._progress.add_task(name, total=bytes_total, amount=_amount(self._meter))

    def advance(self, count: int) -> None:
        with self._lock:
            self._meter.done += count
            if self._task is not None:
                self._progress.update(self._task, completed=self._meter.done, amount=_amount(self._meter))

    def note(self, text: str) -> None:
        self._progress.console.print(clean(text))


def _amount(meter: Meter) -> str:
    done, total = format_size(meter.done), format_size(meter.total)
    if meter.done >= meter.total:
        return f"{total} in {format_duration(meter.seconds)}"
    left = "" if meter.seconds_left is None else f", {format_duration(meter.seconds_left)} left"
    return f"{done} of {total}, {format_size(round(meter.rate))}/s{left}"
