# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's part of ``bench resync``: the same dirty set caught up in several ways, one JSON line a case.

Everything is timed from the moment when the way begins to copy to the flush at its end. What a resync does before and
after (gate, header, sample, barriers) does not grow with the dirty set, and is a figure of its own.
"""

import contextlib
import io
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dmsoft.cli import run
from dmsoft.member import header
from dmsoft.mirror.progress import Planned
from dmsoft.mirror.sync import Outcome, Request, resync
from dmsoft.units import KIB, MIB

_BY_ID = Path("/dev/disk/by-id")
_NAME, _LABEL, _BLOCK = "bench", "s", 64 * KIB
_REQUEST = MIB
_WORKERS = 4
_CLUSTER_BLOCKS = 128
Extents = list[tuple[int, int]]


def disk(serial: str) -> str:
    return str(_BY_ID / f"virtio-{serial}")


def dmsoft(*words: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run(list(words))
    if code:
        raise RuntimeError(f"dmsoft {' '.join(words)}: exit status {code}: {said.getvalue()}")


def sh(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


class Phases:
    """A reporter that notes when the copying begins."""

    def __init__(self) -> None:
        self.begin = 0.0

    def planned(self, plans: list[Planned], bytes_total: int) -> None: ...

    def phase(self, name: str, bytes_total: int, bytes_later: int = 0) -> None:
        self.begin = self.begin or time.monotonic()

    def advance(self, count: int) -> None: ...
    def note(self, text: str) -> None: ...


def ours(*, direct: bool) -> tuple[float, float, Outcome]:
    """Seconds from the first pass on, seconds of the whole, and what was done."""
    phases, start = Phases(), time.monotonic()
    outcome, error = resync(Request(_NAME, max_stall=0.05, direct=direct), phases, threading.Event())
    end = time.monotonic()
    if error is not None:
        raise error
    return end - phases.begin, end - start, outcome


def bare(source: tuple[str, int], target: tuple[str, int], extents: Extents, *, times: int = 1) -> float:
    """Seconds of the simplest parallel copy: threads take requests in disk order, with direct I/O, and flush at the
    end. ``times`` 2: each request is written twice, as a journal does."""
    requests = iter([r for first, count in extents for r in _requests(first * _BLOCK, count * _BLOCK)])
    lock = threading.Lock()
    fds = [os.open(source[0], os.O_RDONLY | os.O_DIRECT), os.open(target[0], os.O_RDWR | os.O_DIRECT)]

    def work() -> None:
        buffer = memoryview(mmap.mmap(-1, _REQUEST))
        while True:
            with lock:
                request = next(requests, None)
            if request is None:
                return
            offset, length = request
            os.preadv(fds[0], [buffer[:length]], source[1] + offset)
            for _ in range(times):
                os.pwritev(fds[1], [buffer[:length]], target[1] + offset)

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


def _requests(offset: int, length: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end:
        yield offset, min(_REQUEST, end - offset)
        offset += _REQUEST


def dirty_set(share: float, shape: str, blocks: int, chance: random.Random) -> Extents:
    wanted = max(1, int(blocks * share))
    if share >= 1:
        return [(0, blocks)]
    step = 1 if shape == "scattered" else _CLUSTER_BLOCKS
    places = sorted(chance.sample(range(blocks // step), max(1, wanted // step)))
    return [(place * step, step) for place in places]


def write_set(path: str, extents: Extents) -> None:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, _REQUEST) as buffer:
        for first, count in extents:
            for offset, length in _requests(first * _BLOCK, count * _BLOCK):
                buffer[:4096] = os.urandom(4096)
                with memoryview(buffer) as view, view[:length] as part:
                    os.pwritev(fd, [part], offset)
    os.fsync(fd)
    os.close(fd)


def mdadm(extents: Extents) -> float:
    """Seconds from the return of a disk to the end of its recovery by the bitmap."""
    md = "/dev/md/bench"
    sh("mdadm", md, "--fail", disk("md1"))
    sh("mdadm", md, "--remove", disk("md1"))
    write_set(md, extents)
    start = time.monotonic()
    sh("mdadm", md, "--re-add", disk("md1"))
    subprocess.run(["mdadm", "--wait", md], check=False, capture_output=True)
    return time.monotonic() - start


def prepare(words: Sequence[str]) -> tuple[tuple[str, int], tuple[str, int], int]:
    """A mirror that is synced once, and where the data of its disks lie; the number of its blocks."""
    dmsoft("create", _NAME, "--primary", disk("p"), "--secondary", f"{_LABEL}={disk('s')}",
           "--block-size", str(_BLOCK), "--yes", *words)  # fmt: skip
    dmsoft("resync", _NAME)
    found = [header.require(disk(serial)).payload.regions["data"] for serial in ("p", "s")]
    return (disk("p"), found[0].offset), (disk("s"), found[1].offset), found[0].length // _BLOCK


def main(cases: list[tuple[float, str]], journal: str, seed: int) -> None:
    chance = random.Random(seed)
    source, target, blocks = prepare(["--journal-size", journal] if journal else [])
    sh("modprobe", "raid1")
    Path("/proc/sys/dev/raid/speed_limit_max").write_text("10000000")
    Path("/proc/sys/dev/raid/speed_limit_min").write_text("1000000")
    sh("mdadm", "--create", "/dev/md/bench", "--run", "--level=1", "--raid-devices=2", "--bitmap=internal",
       "--bitmap-chunk=64K", "--assume-clean", disk("md0"), disk("md1"))  # fmt: skip
    for share, shape in cases:
        extents = dirty_set(share, shape, blocks, chance)
        figures: dict[str, object] = {"share": share, "shape": shape, "mib": sum(c for _, c in extents) * _BLOCK / MIB}
        for way, direct in (("direct", True), ("journal", False)):
            write_set(f"/dev/mapper/{_NAME}", extents)
            copy, whole, outcome = ours(direct=direct)
            figures |= {way: copy, f"{way} whole": whole, f"{way} copied": outcome.bytes_copied / MIB}
            figures[f"{way} through the journal"] = bool(outcome.secondaries[0].journal)
        scratch = (disk("x"), target[1])
        figures |= {"bare": bare(source, scratch, extents), "bare twice": bare(source, scratch, extents, times=2)}
        figures["mdadm --re-add"] = mdadm(extents)
        if share >= 1:
            figures["compare"] = compare(source, target, blocks)
        print(json.dumps(figures), flush=True)


def compare(source: tuple[str, int], target: tuple[str, int], blocks: int) -> float:
    """Seconds to read both sides whole."""
    start = time.monotonic()
    for path, offset in (source, target):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, _REQUEST) as buffer:
            for at in range(0, blocks * _BLOCK, _REQUEST):
                os.preadv(fd, [buffer], offset + at)
        os.close(fd)
    return time.monotonic() - start


if __name__ == "__main__":
    chosen = [(float(share), shape) for share, shape in (word.split(":") for word in sys.argv[1].split(","))]
    main(chosen, sys.argv[2], int(sys.argv[3]))
