# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's loop: one thread that waits for events, feeds the keepers, and starts and ends workers.

It makes no call that could wait for a device, a lock or a program: that is what workers are for. So a mirror that hangs
stops neither the others nor the watchdog. Nothing that matters is kept here: killed and started again, it finds all of
it in the headers and the kernel.
"""

import contextlib
import fcntl
import functools
import os
import selectors
import signal
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from dmsoft.dm.events import EventPoll
from dmsoft.dm.task import prepare
from dmsoft.errors import BusyError
from dmsoft.inventory import udev
from dmsoft.mirror import bulletin, loss
from dmsoft.mirror.bulletin import Bulletin
from dmsoft.mirror.lock import open_lock
from dmsoft.mirror.progress import moved_at
from dmsoft.monitor import hooks, sources, work
from dmsoft.monitor.events import Event
from dmsoft.monitor.facts import Action, CaughtUp, Facts, Failure, Marked, Mended, Pulse, Result, Shed
from dmsoft.monitor.hooks import HookRun
from dmsoft.monitor.keeper import Keeper
from dmsoft.monitor.notify import Notifier
from dmsoft.monitor.sources import Plugs, Standing
from dmsoft.monitor.worker import Worker, spawn

_ANSWERS: Final[dict[str, type[Result]]] = {
    "look": Facts, "pulse": Pulse, "mark": Marked, "shed": Shed, "mend": Mended, "catch-up": CaughtUp,
}  # fmt: skip
_IDLE_SECONDS: Final = 30.0
_LOCK_SECONDS: Final = 2.0
# What a worker may still do when the daemon is told to end; a catch-up stops between two requests.
_STOP_SECONDS: Final = 20.0
_HOOK_STOP_SECONDS: Final = 5.0


class MonitorRunsError(BusyError):
    """Another daemon looks after the mirrors of this machine already.

    One is enough. `systemctl status dmsoftd` shows it if systemd started it.
    """

    code = "monitor-runs"


@dataclass(slots=True)
class Ward:
    """One mirror in the daemon's care: its keeper, and the workers at it by slot."""

    standing: Standing
    keeper: Keeper
    workers: dict[str, tuple[Action, Worker]] = field(default_factory=dict)


@dataclass(slots=True)
class Daemon:
    """Everything but the decisions, which are `Keeper`'s."""

    notifier: Notifier
    wards: dict[str, Ward] = field(default_factory=dict)
    leaving: list[Ward] = field(default_factory=list)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _queue: hooks.Queue = field(default_factory=hooks.Queue)
    _hook_worker: Worker | None = None
    _ending: list[Worker] = field(default_factory=list)
    _signals: set[int] = field(default_factory=set)
    _said: Bulletin | None = None
    _alive_at: float = 0.0

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises `MonitorRunsError`, `NotRootError`, `DeviceError`."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(_only_one())
            if stat.S_ISSOCK(os.fstat(sys.stderr.fileno()).st_mode):
                os.set_blocking(sys.stderr.fileno(), False)  # a journal that hangs must not keep us
            prepare()
            udev.prepare()
            wakeup = stack.enter_context(_signal_pipe(self._signals))
            plugs, events = Plugs(), stack.enter_context(EventPoll())
            for each in (wakeup, plugs, events):
                self._selector.register(each, selectors.EVENT_READ)
            self._tell([Event("monitor-started")])
            events.arm()
            self._refresh(_clock())
            self.notifier.ready()
            while not self._signals & {signal.SIGTERM, signal.SIGINT}:
                ready = {key.fileobj for key, _ in self._selector.select(self._timeout())}
                now = _clock()
                if wakeup in ready:
                    os.read(wakeup, 4096)
                if events in ready:
                    events.arm()
                    self._refresh(now)
                if plugs in ready or signal.SIGHUP in self._signals:
                    self._plugged(plugs, now)
                self._turn(now)
            self._stop()

    def _timeout(self) -> float:
        """Until something is to be done: by a keeper, or for the watchdog."""
        now = _clock()
        moments = [now + _IDLE_SECONDS, *(ward.keeper.wake(now) for ward in self.wards.values())]
        if self.notifier.watchdog is not None:
            moments.append(self._alive_at + self.notifier.watchdog / 2)
        return max(0.0, min(moments) - now)

    def _turn(self, now: float) -> None:
        for ward in (*self.wards.values(), *self.leaving):
            self._reap(ward, now)
        self.leaving = [ward for ward in self.leaving if ward.workers]
        for uuid, ward in self.wards.items():
            ward.keeper.moved(moved_at(uuid), now)
            ward.keeper.sampled(ward.standing.writes(), now)
            if ward.keeper.cancels(now):
                ward.workers["actor"][1].signal(signal.SIGTERM)
            for action in ward.keeper.actions(now):
                self._begin(ward, action, now)
            self._tell(ward.keeper.events)
            ward.keeper.events.clear()
        self._hooks(now)
        self._bury()
        self._publish(now)
        if self.notifier.watchdog is None or now - self._alive_at >= self.notifier.watchdog / 2:
            self.notifier.alive()
            self._alive_at = now

    def _begin(self, ward: Ward, action: Action, now: float) -> None:
        worker = spawn(functools.partial(work.do, action, ward.standing.names), now)
        ward.workers["looker" if action.looks_only else "actor"] = (action, worker)
        self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        self._selector.register(worker.pidfd, selectors.EVENT_READ)
        self._selector.register(worker.pipe, selectors.EVENT_READ)

    def _heard(self, worker: Worker) -> bool:
        """Take what it says; True once it has said all, or can say no more: call `Worker.result` next."""
        worker.read()
        if not worker.said_all:
            if not worker.ended():
                return False
            worker.read()  # it may have said it in between
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.pipe)  # at its end it would be readable for ever
            worker.hang_up()
        self._ending.append(worker)
        return True

    def _bury(self) -> None:
        """Reap the workers that have ended; one that has answered may take its time, which keeps nobody."""
        for worker in [worker for worker in self._ending if worker.ended()]:
            self._ending.remove(worker)
            self._selector.unregister(worker.pidfd)
            worker.reap()

    def _reap(self, ward: Ward, now: float) -> None:
        for slot, (action, worker) in list(ward.workers.items()):
            if not self._heard(worker):
                continue
            del ward.workers[slot]
            ward.keeper.finished(action, worker.result(_ANSWERS[action.kind]), now)

    def _refresh(self, now: float) -> None:
        """Device-mapper had an event: mirrors may have come or gone, a leg may have failed."""
        found = sources.standing()
        for uuid in self.wards.keys() - found.keys():
            ward = self.wards.pop(uuid)
            self.leaving.append(ward)
            self._tell([Event("mirror-stopped", ward.keeper.name)])
        for uuid, seen in found.items():
            if uuid not in self.wards:
                self.wards[uuid] = Ward(seen, Keeper(seen.names.name))
                self._tell([Event("mirror-started", seen.names.name)])
                continue
            ward = self.wards[uuid]
            if seen.lower_event != ward.standing.lower_event:
                ward.keeper.lower_changed(now)
            if (seen.layers, seen.top) != (ward.standing.layers, ward.standing.top):
                ward.keeper.plugged(now)
            ward.standing = seen

    def _plugged(self, plugs: Plugs, now: float) -> None:
        found = plugs.take()
        everywhere = found is None or signal.SIGHUP in self._signals
        self._signals.discard(signal.SIGHUP)
        for uuid, ward in self.wards.items():
            if everywhere or any(_concerns(plug, uuid, ward) for plug in found or ()):
                ward.keeper.plugged(now)

    def _tell(self, events: list[Event]) -> None:
        stamped = [event.stamped() for event in events]
        for event in stamped:
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), msgspec.json.encode(event) + b"\n")
        self._queue.add(stamped)

    def _hooks(self, now: float) -> None:
        if self._hook_worker is not None and self._heard(self._hook_worker):
            answer = self._hook_worker.result(HookRun)
            self._hook_worker = None
            said = (answer.message,) if isinstance(answer, Failure) else answer.problems
            for problem in said:
                event = Event("hook-failed", summary=problem).stamped()
                with contextlib.suppress(OSError):
                    os.write(sys.stderr.fileno(), msgspec.json.encode(event) + b"\n")
        if self._hook_worker is None and self._queue.waiting:
            taken = self._queue.take()
            self._hook_worker = spawn(lambda _: hooks.tell(taken), now)
            self._watch(self._hook_worker)

    def _publish(self, now: float) -> None:
        epoch = time.time()
        said = {uuid: ward.keeper.said(epoch, now) for uuid, ward in self.wards.items()}
        word = Bulletin(os.getpid(), said)
        if word != self._said:
            bulletin.publish(word)
            self._said = word
        busy = sum(1 for ward in self.wards.values() if ward.keeper.actor is not None)
        alerts = sum(len(ward.keeper.alerts) for ward in self.wards.values())
        self.notifier.status(f"{len(self.wards)} mirrors, {busy} at work, {alerts} alerts")

    def _stop(self) -> None:
        """End workers in good order: what they have promised stands, what they have suspended is resumed."""
        self.notifier.stopping()
        self._tell([Event("monitor-stopped")])
        deadline = _clock() + _STOP_SECONDS
        running = [worker for ward in (*self.wards.values(), *self.leaving) for _, worker in ward.workers.values()]
        for worker in running:
            worker.signal(signal.SIGTERM)
        self._hooks(_clock())
        hook_deadline = _clock() + _HOOK_STOP_SECONDS
        while _clock() < deadline:
            for worker in running:
                worker.read()
            running = [worker for worker in running if not worker.ended()]
            hooking = self._hook_worker is not None and not self._hook_worker.ended()
            if not running and (not hooking or _clock() > hook_deadline):
                break
            self.notifier.alive()
            time.sleep(0.02)
        for worker in running:
            worker.signal(signal.SIGKILL)  # a guard resumes what it may have suspended
        loss.remember_all()  # at a shutdown others may take the devices down that know it
        bulletin.withdraw()


def _clock() -> float:
    """Seconds that go on while the machine sleeps, as a lag does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _concerns(plug: sources.Plug, uuid: str, ward: Ward) -> bool:
    """Whether a mirror has to look at what happened to a disk. What udev says of it only spares looks."""
    known = {care.facts.here.split()[0] for care in ward.keeper.cares.values() if care.facts.here is not None}
    if plug.action == "went":
        return plug.number in known
    if plug.mirror_uuid is not None and plug.mirror_uuid != uuid:
        return False
    return plug.action == "came" or plug.number not in known


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Hold the lock that says that a daemon lives."""
    fd = open_lock(bulletin.LOCK)
    try:
        deadline = _clock() + _LOCK_SECONDS  # `status` holds it for a moment to see whether we live
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if _clock() > deadline:
                    raise MonitorRunsError(
                        "A daemon looks after the mirrors already.",
                        hint="One is enough; see `systemctl status dmsoftd`.",
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _signal_pipe(seen: set[int]) -> Iterator[int]:
    """A descriptor that is readable once a signal has come, which is in ``seen`` then."""
    theirs, ours = os.pipe()
    os.set_blocking(theirs, False)
    os.set_blocking(ours, False)
    before = {
        number: signal.signal(number, lambda got, _frame: seen.add(got))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    old = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
    try:
        yield theirs
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(theirs)
        os.close(ours)
