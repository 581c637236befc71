# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard: a process that resumes what dmsoft suspended, if dmsoft dies or hangs in between.

It is forked before the first suspend and holds its memory locked: while the root file system is frozen nothing can be
read from it. The kernel does not end it when memory runs out, as it may end its caller. It has a session and, where
systemd runs, a scope of its own, so that ending the caller's control group does not end it. The caller speaks one line
at a time into a pipe:

    arm              from now on the end of the caller means: resume
    deadline SECONDS the suspend has returned; resume when so many seconds have passed, or half a minute if this line
                     does not come
    disarm           everything is resumed

It answers ``ready`` once and ``tripped`` whenever it had to act. It resumes bottom-up, and gives a suspended lower the
plain linear table first: whatever was about to be coupled to the primary is not trusted. Only a raid1 that has left the
primary out stays, as the primary alone is the older copy. A top that the kernel does not resume, because its era
metadata failed meanwhile, gets out by `dmsoft.mirror.wayout`, at any cost once that has been tried for a while.
"""

import contextlib
import errno
import logging
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Never

from dmsoft.dm import memory
from dmsoft.dm.cookie import Cookie
from dmsoft.dm.device import Device
from dmsoft.dm.failures import CookieTimeoutError, DmIoctlError
from dmsoft.dm.helper import Helper, Operation, isolate
from dmsoft.dm.targets import Table
from dmsoft.errors import DeviceError, DmsoftError
from dmsoft.member import header
from dmsoft.mirror.health import goes_without_primary, hold_out_primary
from dmsoft.mirror.lock import opened, tried
from dmsoft.mirror.wayout import TrackingLostError, WayOut
from dmsoft.run import CommandError, run

log = logging.getLogger(__name__)

_READY_SECONDS = 60
_WATCH_SECONDS = 2.0
# Without a deadline: how often it is looked whether anything is suspended, and how long that may last.
_SILENCE_POLL_SECONDS = 1.0
_SILENT_SECONDS = 30.0
_POLL_SECONDS = 0.05
_RESCUE_SECONDS = 600.0
_PATIENCE_SECONDS = 5.0
_LONGEST_PAUSE = 1.0
_RESUME_SECONDS = 30.0
_RESUME_POLL_SECONDS = 0.005


@dataclass(slots=True)
class Guard:
    """The caller's end. A context manager: the guard process lives as long as the block, and resumes what is suspended
    and still armed at its end. ``fallback`` is the plain linear table of the lower; ``coupled`` says whether the lower
    may be swapped, which takes helpers of its own; ``way_out`` is for a top that cannot be resumed; ``legs`` are those
    whose tables may be swapped; ``owed`` are the waits for udev that are left. Enter it while nothing is suspended."""

    mirror_uuid: str
    top: Device
    lower: Device
    fallback: Table
    coupled: bool
    way_out: WayOut | None = None
    legs: tuple[Device, ...] = ()
    owed: list[Callable[[], None]] = field(default_factory=list)
    _pid: int = -1
    _in: int = -1
    _out: int = -1
    _helper: Helper | None = None

    @property
    def helper(self) -> Helper:
        """For resumes of the lower that may not return."""
        if self._helper is None:
            raise RuntimeError("this guard was not started for swaps of the lower")
        return self._helper

    def __enter__(self) -> "Guard":
        theirs_in, self._in = os.pipe()
        self._out, theirs_out = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(self, theirs_in, theirs_out)
        os.close(theirs_in)
        os.close(theirs_out)
        _give_scope(self._pid)
        if not self._wait_for(b"ready", _READY_SECONDS):
            self.__exit__()
            raise DeviceError("The guard process that resumes a suspended mirror did not start.")
        if self.coupled:
            self._helper = Helper([self.lower])
        return self

    def __exit__(self, _: object = None, error: BaseException | None = None, *__: object) -> None:
        for fd in (self._in, self._out):
            with contextlib.suppress(OSError):
                os.close(fd)
        if self._helper is not None:
            self._helper.close()
        self._reap()
        with contextlib.suppress(CookieTimeoutError) if error is not None else contextlib.nullcontext():
            self.settle()

    def owes(self, cookie: Cookie | None) -> None:
        """What udev does about it is waited for by `settle`."""
        if cookie is not None:
            self.owed.append(cookie.wait)

    def settle(self) -> None:
        """Wait for udev, as far as nobody has waited for it yet. Raises `CookieTimeoutError`."""
        while self.owed:
            self.owed.pop()()

    def _reap(self) -> None:
        """Wait for the guard to end, but not for one that is stuck in the kernel: init will have it."""
        deadline = time.monotonic() + 2 * _WATCH_SECONDS
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self._pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS / 10)

    def arm(self) -> None:
        """Raises `DeviceError` when the guard is gone: nothing may be suspended without one.

        Call it while nothing is suspended: a helper that is still stuck in its last resume is replaced by a new one.
        """
        if self._helper is not None and self._helper.busy and not self._helper.wait(0):
            self._helper.close()
            self._helper = Helper([self.lower])
        self._say(b"arm\n")

    def deadline(self, seconds: float) -> None:
        """What was armed is suspended, for so long at most. Raises `DeviceError` when the guard is gone: nobody else
        ends it in time."""
        self._say(b"deadline %f\n" % seconds)

    def hurry(self, seconds: float) -> None:
        """As `deadline`, for a caller that resumes right away, which a guard that is gone must not keep it from."""
        with contextlib.suppress(DeviceError):
            self.deadline(seconds)

    def disarm(self) -> None:
        with contextlib.suppress(DeviceError):
            self._say(b"disarm\n")

    def tripped(self) -> bool:
        """Whether the guard has acted since it was started."""
        return self._wait_for(b"tripped", 0)

    def _say(self, line: bytes) -> None:
        try:
            os.write(self._in, line)
        except OSError as err:
            raise DeviceError("The guard process that resumes a suspended mirror is gone.") from err

    def _wait_for(self, word: bytes, seconds: float) -> bool:
        ready, _, _ = select.select([self._out], [], [], seconds)
        return bool(ready) and word in os.read(self._out, 4096)


def resume_watched(helper: Helper, target: Device) -> Cookie:
    """Resume through the helper; returns when the device serves I/O, however long the ioctl itself takes.

    The resume that replaces a raid1 may sit in the old table's destruction for as long as one of its legs hangs,
    although the new table is live. The cookie is owed a wait. Raises `DeviceError` when nothing comes of it in time.
    """
    if helper.busy:
        with contextlib.suppress(DmsoftError):  # an earlier one, whose device went live before its ioctl returned
            helper.wait(0)
    cookie = helper.start(Operation.RESUME, target)
    deadline = time.monotonic() + _RESUME_SECONDS
    while time.monotonic() < deadline:
        done = helper.wait(_RESUME_POLL_SECONDS)
        info = target.info()
        if info is not None and not info.suspended and not info.inactive_table:
            return cookie
        if done:
            break
    raise DeviceError(f"{target.name} did not resume.", hint="The kernel log (dmesg) says why; the primary goes on.")


def resume_left(
    top: Device, lower: Device, fallback: Table, legs: tuple[Device, ...],
    way_out: Callable[[], contextlib.AbstractContextManager[WayOut]],
) -> None:  # fmt: skip
    """Resume what a command and its guard left suspended when both of them died.

    ``way_out`` is asked for only if a plain resume is not enough, since what it takes may have to be read from the
    mirror itself. Call it under the kernel lock: nobody who holds the mirror still on purpose is alive then. Raises
    `DeviceError`.
    """
    helper = Helper([lower])
    try:
        rescue = Rescue(top, lower, fallback, helper, legs=legs)
        rescue.now(0)
        if rescue.needed():
            with way_out() as way:
                replace(rescue, way_out=way).now(_RESUME_SECONDS)
    finally:
        helper.close()
    if rescue.needed():
        raise DeviceError(f"{top.name} stands still and cannot be resumed.", hint="The kernel log (dmesg) says why.")


def resume_top(top: Device, way_out: WayOut | None, *, at_any_cost: bool = False) -> Cookie | None:
    """Resume the top; if the kernel refuses, by the way out. The cookie is owed a wait. Raises `DeviceError`, and
    `TrackingLostError` when it is resumed and tracks nothing any more."""
    try:
        return top.resume(wait=False)
    except DmIoctlError as err:
        if way_out is None or err.errno == errno.EINTR or not _is_suspended(top):
            raise
        way_out.take(at_any_cost=at_any_cost)
        raise TrackingLostError(
            f"A new era could not begin on {top.name} ({os.strerror(err.errno)}), so it goes on without tracking.",
            hint="Run `dmsoft resync`: it begins tracking anew and compares every block.",
        ) from err


def _give_scope(pid: int) -> None:
    """Have systemd move the guard out of the caller's control group; without systemd its session has to do."""
    if not Path("/run/systemd/system").is_dir():
        return
    manager = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
    call = ["busctl", "--system", "call", *manager, "StartTransientUnit", "ssa(sv)a(sa(sv))"]
    try:
        run([*call, f"dmsoft-guard-{pid}.scope", "fail", "1", "PIDs", "au", "1", str(pid), "0"], timeout=10)
    except CommandError as err:
        log.warning("the guard stays in the caller's control group: %s", err.message)


def _serve(guard: Guard, commands: int, answers: int) -> Never:
    """The guard process itself: never returns into the caller's code, whatever happens."""
    try:
        os.setsid()
        way_out = guard.way_out
        isolate(commands, answers, *(() if way_out is None else (way_out.disk.fd,)))
        os.dup2(commands, 0)
        os.dup2(answers, 1)
        for fd in {commands, answers} - {0, 1}:
            os.close(fd)
        memory.spare()
        helper = Helper([guard.lower]) if guard.coupled else None
        lock = opened(guard.mirror_uuid, "kernel")
        with memory.locked():
            # Every page that the way out needs is touched once, here.
            guard.top.info(), guard.lower.info(), time.monotonic(), str(guard.fallback[0])
            with contextlib.suppress(DmsoftError, ValueError):
                goes_without_primary(guard.lower)
            str([leg.info() for leg in guard.legs])
            if way_out is not None:
                str(way_out.plain[0]), header.require(way_out.disk, key=way_out.key)
            os.write(1, b"ready\n")
            _keep(Rescue(guard.top, guard.lower, guard.fallback, helper, lock, way_out, guard.legs))
    finally:
        os._exit(0)


def _keep(rescue: "Rescue") -> None:
    armed, deadline, pending = False, None, b""
    while True:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([0], [], [], _SILENCE_POLL_SECONDS if armed and wait is None else wait)
        if not ready and deadline is None:
            # A caller that was killed in the suspend says nothing, and one of its threads that a disk keeps in the
            # kernel keeps our pipe open.
            deadline = time.monotonic() + _SILENT_SECONDS if rescue.needed() else None
            continue
        data = os.read(0, 4096) if ready else b""
        if (ready and not data) or not ready:
            if armed and (rescue.of_the_dead() if ready else rescue.now()):
                with contextlib.suppress(OSError):
                    os.write(1, b"tripped\n")
            if ready:
                return
            deadline = None  # still armed: the caller may be about to suspend the lower
            continue
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            word, _, value = line.partition(b" ")
            armed = word != b"disarm"
            deadline = time.monotonic() + float(value) if word == b"deadline" else None


@dataclass(frozen=True, slots=True)
class Rescue:
    """Resumes what is suspended, bottom up, and tries again if that fails: nobody else will.

    ``lock`` is an open file of the kernel lock, which the caller of `now` does not hold; ``way_out`` for a top that the
    kernel does not resume.
    """

    top: Device
    lower: Device
    fallback: Table
    helper: Helper | None
    lock: int | None = None
    way_out: WayOut | None = None
    legs: tuple[Device, ...] = ()

    def now(self, seconds: float = _RESCUE_SECONDS) -> bool:
        """At once, and for so long if need be; returns whether anything had to be resumed."""
        start, pause, acted = time.monotonic(), _POLL_SECONDS, False
        while self.needed():
            acted = True
            with contextlib.suppress(MemoryError):  # whoever ate it may be gone the next time
                self._try(at_any_cost=time.monotonic() - start >= _PATIENCE_SECONDS)
            if time.monotonic() - start >= seconds:
                break
            time.sleep(pause if self.needed() else 0)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return acted

    def of_the_dead(self) -> bool:
        """What a dead caller left, and for a while what its last suspend, still on its way through the kernel, may
        leave. What another command holds still meanwhile, under the lock, has a guard of its own."""
        start, acted = time.monotonic(), False
        while True:
            with self._free() as free:
                acted |= free and self.now()
            if time.monotonic() - start >= _WATCH_SECONDS:
                return acted
            time.sleep(_POLL_SECONDS)

    def needed(self) -> bool:
        return any(map(_is_suspended, (*self.legs, self.lower, self.top)))

    def _free(self) -> contextlib.AbstractContextManager[bool]:
        return contextlib.nullcontext(True) if self.lock is None else tried(self.lock)

    def _try(self, *, at_any_cost: bool) -> None:
        for leg in self.legs:  # with whichever table it has, the old or the new one
            if _is_suspended(leg):
                with contextlib.suppress(DmsoftError):
                    leg.resume(wait=False)
        if _is_suspended(self.lower):
            with contextlib.suppress(DmsoftError, ValueError):
                without = self._goes_without_primary()
                if without is not False or not self._falls_back(at_any_cost=at_any_cost):
                    self.lower.clear()
                if without:
                    with contextlib.suppress(DmsoftError):
                        hold_out_primary(self.lower)
                if self.helper is None:
                    self.lower.resume(wait=False)
                else:
                    resume_watched(self.helper, self.lower)
        if _is_suspended(self.top):
            with contextlib.suppress(DmsoftError):
                resume_top(self.top, self.way_out, at_any_cost=at_any_cost)

    def _falls_back(self, *, at_any_cost: bool) -> bool:
        """Whether the linear table is loaded. That it cannot be is an error, unless ``at_any_cost``: the primary's disk
        is gone, and md goes on, and fails."""
        try:
            self.lower.load(self.fallback)
        except DmsoftError:
            if not at_any_cost:
                raise
            return False
        return True

    def _goes_without_primary(self) -> bool | None:
        """None if it cannot be asked."""
        try:
            return goes_without_primary(self.lower, asleep=True)
        except (DmsoftError, ValueError):
            return None


def _is_suspended(device: Device) -> bool:
    try:
        info = device.info()
    except DmsoftError:
        return False
    return info is not None and info.suspended
