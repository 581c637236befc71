# SPDX-License-Identifier: GPL-2.0-or-later
"""A process for each thing that may take long or hang: the daemon itself makes no call that waits for a device.

Forked without an exec, as everything is loaded already and the daemon has one thread. A worker ends what it does in
good order on SIGTERM, which it also gets when the daemon dies; its answer comes through a pipe.
"""

import contextlib
import ctypes
import logging
import os
import select
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Never, TypeVar

import msgspec

from dmsoft.dm.helper import close_files
from dmsoft.errors import DmsoftError
from dmsoft.monitor.facts import Failure

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_libc = ctypes.CDLL(None, use_errno=True)

Work = Callable[[threading.Event], msgspec.Struct]
R = TypeVar("R", bound=msgspec.Struct)


class _Answer(msgspec.Struct, frozen=True):
    value: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None


@dataclass(slots=True)
class Worker:
    """``pidfd`` becomes readable when it has ended, ``pipe`` when it has said something; then call `read`. A thread of
    it that a disk keeps can keep it from ending after it has said all."""

    pid: int
    pidfd: int
    pipe: int
    started: float
    said_all: bool = False
    _said: bytearray = field(default_factory=bytearray)

    def read(self) -> None:
        """Take what is there; a worker with a long answer could not end otherwise. ``said_all``: nothing more comes."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.pipe, 65536):
                self._said += data
            self.said_all = True

    def ended(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, number)

    def result(self, kind: type[R]) -> R | Failure:
        """Its answer, or a `Failure`. Call it when it has said all or has ended."""
        with contextlib.suppress(msgspec.DecodeError):
            answer = msgspec.json.decode(bytes(self._said), type=_Answer)
            if answer.failure is not None:
                return answer.failure
            return msgspec.json.decode(answer.value, type=kind)
        return Failure("worker", f"The process at work ended without an answer{self._how()}.")

    def hang_up(self) -> None:
        """It has said what it will; its end may be a long way off."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def reap(self) -> None:
        """Let the kernel forget it. Call it once, when it has ended."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.hang_up()

    def _how(self) -> str:
        """What is known of the end of one that has ended, without reaping it."""
        found = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return f" (signal {found.si_status})" if found is not None and found.si_code != os.CLD_EXITED else ""


def spawn(work: Work, now: float) -> Worker:
    """Start a worker. Call it from the only thread."""
    theirs, ours = _pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # no handler of the daemon's runs in the worker
    try:
        pid = os.fork()
        if pid == 0:
            _serve(work, ours)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.close(ours)
    return Worker(pid, os.pidfd_open(pid), theirs, now)


def _pipe() -> tuple[int, int]:
    theirs, ours = os.pipe()
    os.set_blocking(theirs, False)
    return theirs, ours


def _serve(work: Work, pipe: int) -> Never:
    """The worker itself: never returns into the daemon's code, whatever happens."""
    try:
        parent = os.getppid()
        signal.set_wakeup_fd(-1)
        os.setsid()
        close_files(pipe)
        cancelled = threading.Event()
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # One that came meanwhile is pending; ignored for a moment, it would be gone.
        signal.signal(signal.SIGTERM, lambda *_: cancelled.set())
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            cancelled.set()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        with os.fdopen(pipe, "wb") as out:
            out.write(msgspec.json.encode(_answer(work, cancelled)))
    finally:
        os._exit(0)


def _answer(work: Work, cancelled: threading.Event) -> _Answer:
    try:
        return _Answer(msgspec.Raw(msgspec.json.encode(work(cancelled))))
    except DmsoftError as err:
        return _Answer(failure=Failure(err.code, err.message, err.exit_code))
    except Exception as err:
        return _Answer(failure=Failure("unexpected", f"Something unexpected happened: {type(err).__name__}: {err}."))
