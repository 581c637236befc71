# SPDX-License-Identifier: GPL-2.0-or-later
"""Other ways to catch up a disk, each in seconds from the disk's return to the flush at its end."""

import contextlib
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dmsoft.units import KIB, MIB

BLOCK = 64 * KIB
REQUEST = MIB
_WORKERS = 4
_LONGEST_SECONDS = 120
Extents = list[tuple[int, int]]
Place = tuple[str, int]
"""A device, and where on it the data begin."""


def sh(*argv: str) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def bare(source: Place, target: Place, extents: Extents, *, times: int = 1) -> float:
    """The simplest parallel copy: threads take requests in disk order, with direct I/O. ``times`` 2: each request is
    written twice."""

    def copy(fds: Sequence[int], offset: int, buffers: Sequence[memoryview]) -> None:
        os.preadv(fds[0], [buffers[0]], source[1] + offset)
        for _ in range(times):
            os.pwritev(fds[1], [buffers[0]], target[1] + offset)

    return _in_parallel(source, target, extents, copy)


def compare(source: Place, target: Place, blocks: int) -> float:
    """Both sides are read whole, and what differs is written."""

    def copy(fds: Sequence[int], offset: int, buffers: Sequence[memoryview]) -> None:
        os.preadv(fds[0], [buffers[0]], source[1] + offset)
        os.preadv(fds[1], [buffers[1]], target[1] + offset)
        if bytes(buffers[0]) != bytes(buffers[1]):
            os.pwritev(fds[1], [buffers[0]], target[1] + offset)

    return _in_parallel(source, target, [(0, blocks)], copy)


def _in_parallel(
    source: Place, target: Place, extents: Extents, copy: Callable[[Sequence[int], int, Sequence[memoryview]], None]
) -> float:
    wanted = iter([r for first, count in extents for r in requests(first * BLOCK, count * BLOCK)])
    lock = threading.Lock()
    fds = [os.open(source[0], os.O_RDONLY | os.O_DIRECT), os.open(target[0], os.O_RDWR | os.O_DIRECT)]

    def work() -> None:
        buffers = [memoryview(mmap.mmap(-1, REQUEST)) for _ in range(2)]
        while True:
            with lock:
                request = next(wanted, None)
            if request is None:
                return
            copy(fds, request[0], [buffer[: request[1]] for buffer in buffers])

    start = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(_WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.fsync(fds[1])
    seconds = time.monotonic() - start
    for fd in fds:
        os.close(fd)
    return seconds


def requests(offset: int, length: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end:
        yield offset, min(REQUEST, end - offset)
        offset += REQUEST


def write_set(path: str, extents: Extents) -> None:
    """Change every block of it."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, REQUEST) as buffer:
        for first, count in extents:
            for offset, length in requests(first * BLOCK, count * BLOCK):
                for at in range(0, length, BLOCK):
                    buffer[at : at + 64] = os.urandom(64)
                with memoryview(buffer) as view, view[:length] as part:
                    os.pwritev(fd, [part], offset)
    os.fsync(fd)
    os.close(fd)


def _flushed(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


def _wait(what: str, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not end in {_LONGEST_SECONDS} s")
        time.sleep(0.005)


class Mdadm:
    """A raid1 of two disks with a bitmap; one of them is failed, removed, and added again."""

    name = "mdadm --re-add"

    def __init__(self, first: str, second: str) -> None:
        self._second = second
        sh("modprobe", "raid1")
        for limit, value in (("max", "10000000"), ("min", "1000000")):
            Path(f"/proc/sys/dev/raid/speed_limit_{limit}").write_text(value)
        self._create(first, second)
        self._md = os.path.realpath("/dev/md/bench")
        self._degraded = Path(f"/sys/block/{os.path.basename(self._md)}/md/degraded")

    @staticmethod
    def _create(first: str, second: str) -> None:
        """With the finest bitmap it takes: how fine depends on the room before the data, and so on the disk's size."""
        for chunk in ("64K", "128K", "256K", "512K", "1M", "2M"):
            for disk in (first, second):
                sh("wipefs", "--all", disk)
            with contextlib.suppress(RuntimeError):
                sh("mdadm", "--create", "/dev/md/bench", "--run", "--level=1", "--raid-devices=2", "--bitmap=internal",
                   f"--bitmap-chunk={chunk}", "--assume-clean", first, second)  # fmt: skip
                print(f"mdadm's bitmap has a bit for each {chunk}", file=sys.stderr)
                return
        raise RuntimeError("mdadm takes no bitmap at all on these disks")

    def catch_up(self, extents: Extents) -> float:
        sh("mdadm", self._md, "--fail", self._second)
        sh("mdadm", self._md, "--remove", self._second)
        write_set(self._md, extents)
        start = time.monotonic()
        sh("mdadm", self._md, "--re-add", self._second)
        _wait("the recovery", lambda: self._degraded.read_text().strip() == "0")
        _flushed(self._second)
        return time.monotonic() - start

    def close(self) -> None:
        sh("mdadm", "--stop", self._md)


class Drbd:
    """DRBD 8.4 with both nodes on this machine, over the loopback network, not held back by its rate controller; one
    is disconnected and connected again."""

    name = "DRBD 8.4, connect"
    _ENDS = ("ipv4:127.0.0.1:7788", "ipv4:127.0.0.1:7789")

    def __init__(self, first: str, second: str) -> None:
        self._second = second
        # Else the kernel asks drbdadm before a resync, which has no configuration here, and says no.
        sh("modprobe", "drbd", "usermode_helper=/bin/true")
        sh("ip", "link", "set", "lo", "up")
        for minor, disk in enumerate((first, second)):
            sh("wipefs", "--all", disk)
            sh("drbdmeta", "--force", str(minor), "v08", disk, "internal", "create-md")
            sh("drbdsetup", "new-resource", f"bench{minor}")
            sh("drbdsetup", "new-minor", f"bench{minor}", str(minor), "0")
            sh("drbdsetup", "attach", str(minor), disk, disk, "internal", "--c-plan-ahead=0", "--resync-rate=4G")
        self._connect()
        _wait("the connection", lambda: self._state(0).startswith("cs:Connected"))
        sh("drbdsetup", "new-current-uuid", "0", "--clear-bitmap")
        sh("drbdsetup", "primary", "0")

    def catch_up(self, extents: Extents) -> float:
        sh("drbdsetup", "disconnect", *self._ENDS)
        with contextlib.suppress(RuntimeError):  # it may have noticed by itself
            sh("drbdsetup", "disconnect", *reversed(self._ENDS))
        write_set("/dev/drbd0", extents)
        start = time.monotonic()
        self._connect()
        _wait("the resync", lambda: "cs:Connected" in self._state(0) and "UpToDate/UpToDate" in self._state(0))
        _flushed(self._second)
        return time.monotonic() - start

    def _connect(self) -> None:
        for minor, ends in enumerate((self._ENDS, self._ENDS[::-1])):
            sh("drbdsetup", "connect", f"bench{minor}", *ends, "--protocol=A", "--max-buffers=16000",
               "--max-epoch-size=16000", "--sndbuf-size=4M", "--rcvbuf-size=4M")  # fmt: skip

    def _state(self, minor: int) -> str:
        lines = Path("/proc/drbd").read_text().splitlines()
        return next((line.split(":", 1)[1].strip() for line in lines if line.strip().startswith(f"{minor}: ")), "")

    def close(self) -> None:
        for minor in (0, 1):
            sh("drbdsetup", "down", f"bench{minor}")
