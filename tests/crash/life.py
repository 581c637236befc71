# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a mirror up to its end, beside a writer: what it goes through is marked on the tape, where it can be cut.

Runs in the lab's VM. Verbs run in process; some are killed. A mark ``phase NAME`` says which verb runs (``running``:
none), ``stage NAME`` which part of a copy, others stand before and after each step of it and each device-mapper call of
a barrier.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

from dmsoft.dm import helper
from dmsoft.dm.device import Device
from dmsoft.mirror.barrier import Barrier
from dmsoft.mirror.lock import RUN_DIR
from dmsoft.mirror.progress import Progress
from dmsoft.mirror.running import Running
from dmsoft.resync import copy, steps
from tests.crash.writer import PATH as WRITER
from tests.vm.rig import NAME, dmsoft, ok, suspended, wait_until

if TYPE_CHECKING:
    from tests.crash.guest import Mail

DISKS = {serial: f"/dev/disk/by-id/virtio-{serial}" for serial in ("p", "a", "b", "c")}
_WAYS: dict[str, tuple[str, ...]] = {
    # The era metadata on the primary, and on a disk of their own: there no commit of it flushes the primary by the way.
    "periodic": (),
    "apart": ("--metadata", DISKS["c"]),
    "behind": ("--mode", "write-behind", "--via", f"writecache:{DISKS['c']}"),
}
STORIES = tuple(_WAYS)
CREATE = {
    story: ["create", NAME, "--primary", DISKS["p"], "--secondary", f"one={DISKS['a']}", "--block-size", "64K", *way,
            "--yes"]
    for story, way in _WAYS.items()
}  # fmt: skip
ADD = ["add", NAME, f"two={DISKS['b']}", "--journal-size", "0", "--yes"]


class Life:
    """``story`` is one of `STORIES`; ``count`` of what may come is drawn between the first copy and the end."""

    def __init__(self, mail: "Mail", seed: int, story: str, count: int) -> None:
        self._mail, self._chance, self._story, self._count = mail, random.Random(seed), story, count
        self._writer: subprocess.Popen[str] | None = None
        self._next = 1

    def run(self) -> None:
        with self._marking():
            self._verb("create", *CREATE[self._story][1:])
            from tests.crash.guest import files

            self._mail.mark(f"etc {json.dumps(files())}")
            self._verb("add", *ADD[1:])
            self._write()
            self._verb("resync", NAME, phase="first copy")
            for deed in self._deeds():
                self._run(self._chance.uniform(0.05, 0.6))
                deed()
            self._run(0.1)
            self._rest()
            self._verb("destroy", NAME, "--yes", then="destroyed")

    def _deeds(self) -> list[Callable[[], None]]:
        known: list[Callable[[], None]] = [
            lambda: self._verb("resync", NAME, "--max-stall", "0ms"),
            self._killed,
            lambda: self._verb("resync", NAME),
            self._bounce,
            lambda: self._eject("two", "b"),
            self._killed,
            lambda: self._eject("one", "a"),
            lambda: self._verb("resync", NAME, "--direct"),
        ]
        return self._chance.sample(known, self._count)

    def _verb(self, *words: str, phase: str | None = None, then: str = "running") -> None:
        self._mail.mark(f"phase {phase or words[0]}")
        ok(*words)
        self._mail.mark(f"phase {then}")

    def _eject(self, label: str, disk: str) -> None:
        """It goes and comes back, as udev brings it; what keeps an ejected disk from that is a note of this plug-in."""
        self._verb("eject", NAME, label)
        self._run(0.1)
        for note in RUN_DIR.glob(f"*.{label}.ejected"):
            note.unlink()
        self._verb("attach", DISKS[disk])

    def _bounce(self) -> None:
        self._rest()
        self._verb("stop", NAME, then="stopped")
        self._verb("start", NAME)
        self._write()

    def _killed(self) -> None:
        """A resync that dies at one of its steps, or at any moment."""
        chance = self._chance
        words = chance.choice([(), ("--max-stall", "0ms"), ("--direct",)])
        point, number = (
            f"{chance.choice(['before', 'after'])} {chance.choice(steps.STEPS)}",
            chance.choice([1, 1, 2, 4]),
        )
        seconds = chance.uniform(0, 2) if chance.random() < 0.4 else None
        self._mail.mark("phase killed resync")
        child = os.fork()
        if not child:
            if seconds is None:
                steps.watch = _killer(point, number, self._step)
            os._exit(dmsoft("resync", NAME, *words).code)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        self._mail.mark(f"killed {point if seconds is None else seconds}" if os.WIFSIGNALED(status) else "lived")
        wait_until("the guard resumes", lambda: not suspended())
        self._mail.mark("phase running")

    def _run(self, seconds: float) -> None:
        time.sleep(seconds)

    def _write(self) -> None:
        words = [sys.executable, "-I", "-S", str(WRITER), f"/dev/mapper/{NAME}", DISKS["p"].replace("-p", "-mail")]
        words += [str(self._chance.randrange(1 << 32)), str(self._next)]
        self._writer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._writer.stdout is not None and self._writer.stdout.readline() == "ready\n"

    def _rest(self) -> None:
        """End the writer, which must have met no error."""
        assert self._writer is not None
        out, _ = self._writer.communicate("", timeout=120)
        said = json.loads(out)
        assert not said["errors"], said
        self._next = said["next"]

    def _step(self, name: str) -> None:
        self._mail.mark(f"step {name}")

    @contextlib.contextmanager
    def _marking(self) -> Iterator[None]:
        """Steps and barriers are marked meanwhile."""
        kept = {name: getattr(Device, name) for name in ("suspend", "resume")}
        phase = Progress.phase

        def staged(progress: Progress, name: str, *arguments: Any, **options: Any) -> None:
            self._mail.mark(f"stage {name}")
            phase(progress, name, *arguments, **options)

        def marked(name: str) -> Callable[..., Any]:
            def call(device: Device, *arguments: Any, **options: Any) -> Any:
                self._mail.mark(f"before {name} {device.name}")
                try:
                    return kept[name](device, *arguments, **options)
                finally:
                    self._mail.mark(f"after {name} {device.name}")

            return call

        for name in kept:
            setattr(Device, name, marked(name))
        Progress.phase = staged  # type: ignore[method-assign]
        # A raid1's resume is made by a helper, which keeps no file that it does not know of.
        close_files = helper.close_files
        helper.close_files = lambda *keep: close_files(*keep, self._mail.fd)  # type: ignore[assignment]
        steps.watch, usual, copy.CHECKPOINT_SECONDS = self._step, copy.CHECKPOINT_SECONDS, 0.05
        try:
            yield
        finally:
            steps.watch, copy.CHECKPOINT_SECONDS = None, usual
            helper.close_files, Progress.phase = close_files, phase  # type: ignore[method-assign]
            for name, method in kept.items():
                setattr(Device, name, method)
            if self._writer is not None:
                self._writer.kill()


@contextlib.contextmanager
def careless(what: str) -> Iterator[None]:
    """Leave a care out, if one is named: the lab must find out."""
    with contextlib.ExitStack() as stack:
        if what == "flush_primary":
            stack.enter_context(mock.patch.object(Running, "flush_primary", lambda _: None))
        elif what == "stale":
            # S moves to an era later than the one that began with the barrier.
            original = Barrier.next_era
            stack.enter_context(mock.patch.object(Barrier, "next_era", lambda here, reader: original(here, reader) + 1))
        else:
            assert not what
        yield


def _killer(point: str, occurrence: int, told: Callable[[str], None]) -> Callable[[str], None]:
    lock, seen = threading.Lock(), 0

    def watch(name: str) -> None:
        nonlocal seen
        told(name)
        with lock:
            seen += name == point
            if name == point and seen == occurrence:
                os.kill(os.getpid(), signal.SIGKILL)

    return watch
