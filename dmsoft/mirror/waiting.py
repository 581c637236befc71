# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting until a secondary is as a script wants it."""

import contextlib
import threading
import time
from collections.abc import Callable

import msgspec

from dmsoft.dm.events import EventPoll
from dmsoft.errors import DivergedError, DmsoftError, NotFoundError
from dmsoft.mirror import observe
from dmsoft.mirror.views import SecondaryView
from dmsoft.resync.copy import CancelledError
from dmsoft.units import format_duration

# Each look reads the headers of all disks. Whatever happens to a mirror's devices ends the pause.
PAUSE_SECONDS = 2.0
_SATISFIES = {"current": {"current", "attached"}, "attached": {"attached"}, "away": {"away"}}


class WaitTimeoutError(DmsoftError):
    """A secondary did not become what was waited for in time.

    Nothing was changed. `dmsoft status` says how it stands, and the message in what state it is. Wait longer, or find
    out what keeps it: whether the daemon runs, whether its disk is here.
    """

    code = "wait-timeout"


class Waited(msgspec.Struct, frozen=True):
    """``state`` is what it became, ``seconds`` how long that took."""

    name: str
    label: str
    state: str
    seconds: float


def wait_until(name: str, label: str, until: str, timeout: float | None, cancelled: threading.Event) -> Waited:
    """Look until the secondary's state is ``until`` (*attached* also counts as *current*).

    Raises `WaitTimeoutError` after ``timeout`` seconds, `NotFoundError`, `DivergedError`, `CancelledError`.
    """
    start = time.monotonic()
    deadline = None if timeout is None else start + timeout
    with contextlib.ExitStack() as stack:
        pause = pauses(stack, cancelled)
        while True:
            view = _look(name, label)
            if view.state in _SATISFIES[until]:
                return Waited(name, label, view.state, round(time.monotonic() - start, 3))
            if view.state == "diverged":
                raise DivergedError(
                    f"{label} of {name} will never be {until}: {view.reason}.",
                    hint="Nothing is copied until you choose: see A SECONDARY NEWER THAN THE PRIMARY in dmsoft(8).",
                )
            left = PAUSE_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeoutError(
                    f"{label} of {name} is {view.state} and not {until} after {format_duration(timeout or 0)}.",
                    hint="`dmsoft status` says what it lacks.",
                )
            if not pause(min(left, PAUSE_SECONDS)):
                raise CancelledError("The wait was stopped.", hint="`dmsoft status` says how it stands.")


def pauses(stack: contextlib.ExitStack, cancelled: threading.Event) -> Callable[[float], bool]:
    """Something to call between two looks: it returns after so many seconds or when a device-mapper device had an
    event, False when ``cancelled``. A change just after a look is not missed for longer than a pause."""
    events = stack.enter_context(EventPoll())

    def pause(seconds: float) -> bool:
        events.arm()
        end = time.monotonic() + seconds
        while not cancelled.is_set() and (left := end - time.monotonic()) > 0:
            if events.wait(min(left, 0.2)):
                break
        return not cancelled.is_set()

    return pause


def _look(name: str, label: str) -> SecondaryView:
    (mirror,) = observe.status(name).mirrors
    for view in mirror.secondaries:
        if view.label == label:
            return view
    raise NotFoundError(f"{name} has no secondary {label}.", hint="`dmsoft status` lists them.")
