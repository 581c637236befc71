# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk whose every request can be made to fail or to hang, and whose cache is lost when it matters.

The disk is this process: it serves a device of the kernel's nbd, another one each time that it is plugged in, as one
that is still held keeps the connection that it had. It has a volatile cache, as real ones do. A flush that
fails loses what the cache held (the disk has told of it once, and the next flush succeeds), a write that fails is done
by half, and `Faulty.power_cut` takes the cache at any time.
"""

import contextlib
import mmap
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from tests.harness.guestkit import settle
from tests.harness.nbd import Server
from tests.vm.rig import NAME, Rig, dmsoft, sh, wait_until

Kind = Literal["read", "write", "flush"]
KINDS: tuple[Kind, ...] = ("read", "write", "flush")
_DEVICES = 2


def _always() -> bool:
    return True


def _memory(size_bytes: int) -> mmap.mmap:
    """Of this process alone: a guard and its helpers would lock copies of what they inherit."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)
    return memory


class Faulty:
    """``counts``: requests since `fail`, `hang` or `mend`; ``failed``: those of them that were made to fail;
    ``waiting``: one hangs, and with it all that come after; ``pause``: seconds that each write takes."""

    def __init__(self, size_bytes: int, socket: Path) -> None:
        self.size, self.socket = size_bytes, socket
        self.server: Server | None = None
        self.path = "/dev/nbd0"
        self._data, self._durable = _memory(size_bytes), _memory(size_bytes)
        self._dirty: list[tuple[int, int]] = []
        self._lock = threading.Lock()
        self._failing: Kind | None = None
        self._after, self._times = 0, 0
        self._hanging: Kind | None = None
        self._when: Callable[[], bool] = _always
        self._go = threading.Event()
        self.counts, self.failed, self.waiting, self.pause = Counter[str](), 0, False, 0.0

    def fail(self, kind: Kind, *, after: int = 0, times: int = 1 << 30) -> None:
        """From the request of that kind on that comes after so many, so many times."""
        with self._lock:
            self.counts.clear()
            self._failing, self._after, self._times, self.failed = kind, after, times, 0

    def hang(self, kind: Kind, *, after: int = 0, when: Callable[[], bool] = _always) -> None:
        """From such a request on (the first for which ``when()`` holds) none is answered, until `mend`."""
        with self._lock:
            self.counts.clear()
            self._hanging, self._after, self._when = kind, after, when
            self._go.clear()

    def mend(self) -> None:
        with self._lock:
            self._failing = self._hanging = None
            self.pause = 0.0
            self.counts.clear()
        self._go.set()

    def power_cut(self) -> None:
        """What no flush has made durable is gone."""
        with self._lock:
            self._lose()

    def read(self, offset: int, length: int) -> bytes:
        self._meet("read")
        with self._lock:
            return self._data[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        try:
            self._meet("write")
        except OSError:
            self._put(offset, data[: len(data) // 2])
            raise
        self._put(offset, data)

    def flush(self) -> None:
        try:
            self._meet("flush")
        except OSError:
            self.power_cut()
            raise
        with self._lock:
            for offset, length in self._dirty:
                self._durable[offset : offset + length] = self._data[offset : offset + length]
            self._dirty.clear()

    def _put(self, offset: int, data: bytes) -> None:
        with self._lock:
            self._data[offset : offset + len(data)] = data
            self._dirty.append((offset, len(data)))

    def _lose(self) -> None:
        for offset, length in self._dirty:
            self._data[offset : offset + length] = self._durable[offset : offset + length]
        self._dirty.clear()

    def _meet(self, kind: Kind) -> None:
        with self._lock:
            self.counts[kind] += 1
            due = self.counts[kind] > self._after
            if self._failing == kind and due and self.failed < self._times:
                self.failed += 1
                raise OSError(5, "as the test wants it")
            hangs = self._hanging == kind and due
        if kind == "write" and self.pause:
            time.sleep(self.pause)
        if hangs and self._when():
            self.waiting = True
            self._go.wait()
            self.waiting = False

    def plug(self, number: int) -> str:
        """Appear as that device of nbd; returns its path."""
        self.path = f"/dev/nbd{number}"
        sh("nbd-client", "-N", "disk", "-unix", self.socket, self.path, "-timeout", "0")
        sectors = Path(f"/sys/block/nbd{number}/size")
        wait_until("it is connected", lambda: int(sectors.read_text()) * 512 == self.size)
        settle()
        return self.path

    def unplug(self) -> None:
        """What is under way fails, and all that comes. A disk that hangs takes no word of goodbye either."""
        if self.server is not None:
            self.server.cut()
        for number in range(_DEVICES):
            subprocess.run(["nbd-client", "-d", f"/dev/nbd{number}"], capture_output=True, check=False, timeout=60)


@contextlib.contextmanager
def faulty(folder: Path, size_bytes: int) -> Iterator[Faulty]:
    """Such a disk for a while. Whatever uses it has to be stopped before."""
    sh("modprobe", "nbd", f"nbds_max={_DEVICES}")
    disk = Faulty(size_bytes, folder / "nbd")
    with Server(disk.socket, {"disk": disk}) as disk.server:
        try:
            disk.plug(0)
            yield disk
        finally:
            disk.mend()
            disk.unplug()


@contextlib.contextmanager
def mirror(rig: Rig, folder: Path, size: int, *options: str, **more: str) -> Iterator[Faulty]:
    """A mirror of ``size`` bytes on such a secondary, synced once; ``more`` secondaries as `Rig.create` has them."""
    with faulty(folder, size) as disk:
        rig.create(*options, primary=rig.cut("p0", size), one=disk.path, **more)
        try:
            rig.resync()
            yield disk
        finally:
            disk.mend()
            dmsoft("stop", NAME)
