# SPDX-License-Identifier: GPL-2.0-or-later
"""One machine of the soak: goes on where the last one ended, does its part of the events, and comes to its end.

    python -m tests.soak.guest SEED FIRST LAST STATE

STATE is a `State` as JSON. Standard output is for the host: a line of JSON for whatever must be
remembered, also by a machine that dies the moment after.
"""

import contextlib
import json
import mmap
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from dmsoft.errors import BusyError
from dmsoft.member import header, keys
from dmsoft.mirror.lock import locked
from dmsoft.mirror.times import now
from tests.harness.guestkit import Disks, settle
from tests.soak.claims import look, primary_problems, problems
from tests.soak.content import BLOCK, Content, fill, newest
from tests.vm.monitor_bed import Monitor
from tests.vm.rig import NAME, Ran, dmsoft, ok, sh, suspended, wait_until

CUT = "the power goes now"
LABELS = {"a": "s0", "b": "s1", "c": "s2"}
# A disk that is gone, a kill, an older copy: whatever a run says of them, it must say it in these words.
_GONE, _REFUSED = (0, 5, 6), ("old-copy", "changed-elsewhere")
_LONGEST_STALL = 60.0
_FIRST_CUT = 7
# So long at most it is at work before a disk is plugged in, and after.
_DAEMON_SECONDS = 6.0


class State(msgspec.Struct):
    """What outlives a machine. ``promised``: by label, the number that a whole disk has at least; ``out``: labels that
    are unplugged; ``mirror`` and ``key``: its uuid and its key, in hex; ``asked``: how often a person was."""

    acknowledged: int = 0
    promised: dict[str, int] = {}
    out: list[str] = []
    mirror: str = ""
    key: str = ""
    asked: int = 0


def ends(seed: int, event: int) -> str | None:
    """How the machine ends after that event, None if it goes on: known to the host too, which watches for it. Also the
    shortest soak has one power cut."""
    if event == _FIRST_CUT:
        return "cut"
    chance = random.Random(f"end {seed} {event}")
    return chance.choice(["reset", "cut", "stop"]) if chance.random() < 0.06 else None


class Machine:
    def __init__(self, seed: int, state: State) -> None:
        self.seed, self.state, self.disks = seed, state, Disks()
        self.chance = random.Random()
        self.next = 0
        self.content = Content(seed, 0)

    @property
    def primary(self) -> Path:
        return self.disks["p0"]

    @property
    def top(self) -> str:
        return f"/dev/mapper/{NAME}"

    def here(self) -> list[str]:
        return [label for label in LABELS if label not in self.state.out]

    def say(self, **what: object) -> None:
        print(json.dumps(what), flush=True)

    def remember(self) -> None:
        self.say(state=msgspec.to_builtins(self.state))

    def begin(self) -> None:
        for module in ("dm_mod", "dm_era", "dm_raid", "dm_writecache", "dm_delay"):
            sh("modprobe", module)
        if not self.state.key:
            self._create()
        else:
            keys.DIRECTORY.mkdir(mode=0o700, parents=True)
            path = keys.DIRECTORY / f"{self.state.mirror}.key"
            path.touch(mode=0o600)
            path.write_text(self.state.key)
            for label in self.state.out:
                self.disks.unplug(LABELS[label])
            patiently("start", NAME)
        self.content = Content(self.seed, self._blocks())
        self.next = max(1, newest(look(self.primary, self.key()).data))
        self.write(1)  # what the last machine may have left in pieces

    def _create(self) -> None:
        words = [word for label, serial in LABELS.items() for word in ("--secondary", f"{label}={self.disks[serial]}")]
        ok("create", NAME, "--primary", self.primary, *words, "--block-size", "64K", "--interval", "2s", "--yes")
        self.state.mirror = header.require(self.primary).payload.mirror_uuid
        self.state.key = self.key().hex()
        self.remember()

    def _blocks(self) -> int:
        return int(header.require(self.primary).payload.regions["data"].length // BLOCK)

    def key(self) -> bytes:
        key = keys.load(header.require(self.primary).payload.mirror_uuid)
        assert key is not None
        return key

    def write(self, count: int) -> None:
        """Write the next blocks, each durable before the one after it."""
        with _Writer(self.top) as writer:
            for _ in range(count):
                writer.write(self.content, self.next)
                self.next += 1
        self.acknowledge(self.next - 1)

    def acknowledge(self, number: int) -> None:
        self.next = number + 1
        self.state.acknowledged = number
        self.say(acknowledged=number)

    @contextlib.contextmanager
    def writing(self):  # type: ignore[no-untyped-def]
        """Another process goes on writing while the block runs."""
        stop, stopped = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            _write_on(self.top, self.content, self.next, stop[0], stopped[1])
        try:
            yield
        finally:
            os.write(stop[1], b".")
            last, longest = json.loads(os.read(stopped[0], 100) or b"[0, 0]")
            os.waitpid(child, 0)
            for end in (*stop, *stopped):
                os.close(end)
        assert last, "a write to the mirror failed"
        assert longest < _LONGEST_STALL, f"a write waited {longest:.0f} s"
        self.acknowledge(last)

    # Events.

    def do(self, event: int) -> None:
        self.chance = random.Random(f"event {self.seed} {event}")
        kinds: list[tuple[Callable[[], str], int]] = [
            (self.burst, 30), (self.plug, 30 if self.state.out else 0), (self.pull, 12 if self.here() else 0),
            (self.pull_in_a_copy, 8 if self.here() else 0), (self.eject, 12 if self.here() else 0),
            (self.kill, 14 if self.here() else 0), (self.daemon, 8), (self.restart, 5),
            (self.check, 5),
        ]  # fmt: skip
        (kind,) = self.chance.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
        start = time.monotonic()
        what = kind()
        self.say(event=event, what=f"{kind.__name__}: {what}", seconds=round(time.monotonic() - start, 1))

    def burst(self) -> str:
        count = self.chance.randint(1, 40)
        self.write(count)
        return f"{count} blocks"

    def plug(self) -> str:
        label = self.chance.choice(self.state.out)
        self.disks.replug(LABELS[label])
        self.state.out.remove(label)
        self.remember()
        return f"{label}, {self.attach(label, busy=self.chance.random() < 0.5)}"

    def attach(self, label: str, *, busy: bool) -> str:
        """What udev does for a disk that appears; ``busy``: under writes."""
        least = self.next - 1
        with self.writing() if busy else contextlib.nullcontext():
            ran = dmsoft("attach", self.disks[LABELS[label]], "--json", "--wait", "60s")
        said = ran.json
        if ran.code == 4 and said["verdict"] in _REFUSED:
            self.state.asked += 1
            done = patiently("resync", NAME, label, "--json").json
            self.promise(label, done, least)
            return f"{said['verdict']}, and copied when a person asked for it"
        assert ran.code == 0, ran
        if said["resync"] is not None:
            self.promise(label, said["resync"], least)
        return str(said["verdict"])

    def promise(self, label: str, outcome: dict[str, object], least: int) -> None:
        if outcome["converged"]:
            self.state.promised[label] = least
        self.remember()

    def pull(self) -> str:
        label = self.chance.choice(self.here())
        self._unplug(label)
        return label

    def _unplug(self, label: str) -> None:
        self.disks.unplug(LABELS[label])
        self.state.out.append(label)
        self.remember()

    def pull_in_a_copy(self) -> str:
        label = self.chance.choice(self.here())
        self.write(self.chance.randint(1, 40))
        child = self._copying(label)
        time.sleep(self.chance.random() * 1.5)
        self._unplug(label)
        code = _wait(child)
        assert code in (*_GONE, 4, 10), f"a copy to a disk that went ended with {code}"
        return f"{label}, exit status {code}"

    def kill(self) -> str:
        """SIGKILL in the middle of a copy: whatever stands still goes on, and the disk is what it says."""
        label = self.chance.choice(self.here())
        self.write(self.chance.randint(1, 60))
        child = self._copying(label)
        time.sleep(self.chance.random() * 1.5)
        os.kill(child, signal.SIGKILL)
        code = _wait(child)
        wait_until("nothing is suspended", lambda: not suspended(), seconds=60)
        self.write(1)
        return f"{label}, {'in time' if code < 0 else 'too late'}"

    def daemon(self) -> str:
        """The daemon is at work while blocks are written and a disk is plugged in, and is killed."""
        with tempfile.TemporaryDirectory() as folder:
            least, start = self.next - 1, now()
            monitor = Monitor(Path(folder))
            try:
                with self.writing():
                    time.sleep(_DAEMON_SECONDS * self.chance.random())
                    if self.state.out:
                        label = self.chance.choice(self.state.out)
                        self.disks.replug(LABELS[label])
                        self.state.out.remove(label)
                        self.remember()
                    time.sleep(_DAEMON_SECONDS * self.chance.random())
                assert monitor.process.poll() is None, f"the daemon ended by itself: {monitor.events()}"
            finally:
                monitor.kill()
            # What it has begun is ended by those who do it.
            with locked(self.state.mirror, "operation", timeout=60):
                assert not suspended()
            caught_up = [each for each in monitor.events("caught-up") if each.get("consistent_as_of", "") > start]
            for event in caught_up:
                self.state.promised[event["label"]] = max(least, self.state.promised.get(event["label"], 0))
            self.remember()
            self.write(1)
            told = ", ".join(sorted({event["event"] for event in monitor.events()}))
            return f"killed after {len(caught_up)} copies ({told})"

    def _copying(self, label: str) -> int:
        """A process that copies to that disk, in one way or the other."""
        words = self.chance.choice([("attach", str(self.disks[LABELS[label]])), ("resync", NAME, label),
                                    ("resync", NAME, label, "--direct"), ("eject", NAME, label)])  # fmt: skip
        return _child(*words)

    def eject(self) -> str:
        label, least = self.chance.choice(self.here()), self.next - 1
        self.promise(label, patiently("eject", NAME, label, "--json").json["resync"], least)
        if self.chance.random() < 0.8:
            self._unplug(label)
        return label

    def restart(self) -> str:
        patiently("stop", NAME)
        patiently("start", NAME)
        return ""

    def check(self) -> str:
        paths = {label: self.disks[LABELS[label]] for label in self.here()}
        found = problems(self.primary, paths, self.content, self.key(), self.state.promised)
        found += primary_problems(self.primary, self.content, self.key(), self.state.acknowledged)
        assert not found, found
        return ", ".join(paths)

    def finish(self) -> None:
        """Everything is plugged in and caught up: every disk is the primary, byte for byte."""
        for label in list(self.state.out):
            self.disks.replug(LABELS[label])
            self.state.out.remove(label)
        settle()
        for label, serial in LABELS.items():
            if self.attach(label, busy=False) == "ejected":  # and waits to be unplugged
                self.disks.unplug(serial)
                self.disks.replug(serial)
                self.attach(label, busy=False)
        data = look(self.primary, self.key()).data
        for label, serial in LABELS.items():
            assert look(self.disks[serial], self.key()).data == data, f"{label} is not equal at the end"
        self.check()
        patiently("stop", NAME)
        self.remember()

    def end(self, how: str) -> None:
        self.say(end=how)
        if how == "stop":
            patiently("stop", NAME)
            sys.exit(0)
        # In the middle of a copy or of the daemon's work, and of writes.
        here, busy = self.here(), self.chance.choices(["copy", "daemon", ""], [5, 2, 3])[0]
        if busy == "daemon":
            Monitor(Path(tempfile.mkdtemp()))
        elif busy and here:
            self._copying(self.chance.choice(here))
        with self.writing():
            time.sleep(self.chance.random() * 1.5)
            if how == "cut":
                print(CUT, flush=True)
            else:
                Path("/proc/sys/kernel/sysrq").write_text("1")
                Path("/proc/sysrq-trigger").write_text("b")
            time.sleep(60)


class _Writer:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
        self._buffer = mmap.mmap(-1, BLOCK)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, content: Content, number: int) -> None:
        self._buffer[:] = fill(number)
        assert os.pwritev(self._fd, [self._buffer], content.place(number) * BLOCK) == BLOCK


def _write_on(path: str, content: Content, number: int, stop: int, stopped: int) -> None:
    """Write until told to stop, then tell the last number, 0 after an error, and the longest wait."""
    longest = 0.0
    try:
        with _Writer(path) as writer:
            while not select.select([stop], [], [], 0.01)[0]:
                start = time.monotonic()
                writer.write(content, number)
                longest = max(longest, time.monotonic() - start)
                number += 1
    except OSError as err:
        print(err, file=sys.stderr)
        number = 1
    os.write(stopped, json.dumps([number - 1, longest]).encode())
    os._exit(0)


def _child(*words: str) -> int:
    """A process that runs a verb and ends with its status."""
    child = os.fork()
    if child == 0:
        os._exit(dmsoft(*words).code)
    return child


def patiently(*words: str) -> Ran:
    """Run a verb; what a process that was killed has left behind may hold the mirror for a while."""
    deadline = time.monotonic() + 60
    while (ran := dmsoft(*words)).code == BusyError.exit_code and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ran.code == 0, f"dmsoft {' '.join(words)}: {ran}"
    return ran


def _wait(child: int) -> int:
    """Its exit status, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(seed: int, first: int, last: int, state: str) -> None:
    machine = Machine(seed, msgspec.json.decode(state, type=State))
    machine.begin()
    for event in range(first, last):
        machine.do(event)
        how = ends(seed, event)
        if how is not None:
            machine.end(how)
    machine.finish()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
