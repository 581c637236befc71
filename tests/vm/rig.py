# SPDX-License-Identifier: GPL-2.0-or-later
"""A mirror under test: verbs run in process, data compared byte for byte past every cache, writers beside them.

A verb runs as ``dmsoft.cli.run([...])`` with its output captured: in an emulated guest a process of its own would spend
seconds on starting up.
"""

import contextlib
import io
import json
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmsoft.cli import run
from dmsoft.member import header
from dmsoft.member.payload import MemberRecord, Primary, Secondary
from dmsoft.mirror.lock import RUN_DIR
from dmsoft.units import MIB
from tests.harness.guestkit import Disks, settle

NAME = "m"
_CHUNK = 4 * MIB
_WEIGHTS = np.random.default_rng(1).integers(0, 1 << 63, MIB // 8, dtype=np.uint64) * 2 + 1

Blocks = set[int]


@dataclass(frozen=True)
class Ran:
    """What a verb did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of standard output, which must be one JSON object."""
        value: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return value

    def __str__(self) -> str:
        return f"exit status {self.code}\n{self.out}{self.err}"


def sh(*argv: str | Path, data: bytes | None = None) -> str:
    """Run a program that must succeed; returns its output."""
    done = subprocess.run([str(word) for word in argv], input=data, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.stdout.decode()} {done.stderr.decode()}"
    return done.stdout.decode()


def dmsoft(*words: str | Path) -> Ran:
    """Run one verb in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([str(word) for word in words])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Ran(code, out.getvalue(), err.getvalue())


def ok(*words: str | Path) -> Ran:
    """Run a verb that must succeed."""
    ran = dmsoft(*words)
    assert ran.code == 0, f"dmsoft {' '.join(map(str, words))}: {ran}"
    return ran


def refused(code: int, *words: str | Path) -> str:
    """Run a verb that must fail with that exit status, in one sentence and a hint; returns the sentence."""
    ran = dmsoft(*words)
    assert ran.code == code, f"dmsoft {' '.join(map(str, words))}: {ran}"
    lines = ran.err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("Error: ") and lines[1].startswith("Hint: "), ran.err
    assert lines[0].endswith(".") and lines[1].endswith((".", "?")), ran.err
    assert not ran.out, ran.out
    return lines[0].removeprefix("Error: ")


def crash() -> None:
    """Take the stack down as a power cut leaves the disks, but for their caches, which are not lost: without a word to
    any header, and without what dm-era and md write as they are removed."""
    lies = [(path, offset, data) for name in ours() for path, offset, data in _lies_under(name)]
    _take_down()
    for path, offset, data in lies:
        write(path, offset, data)


def _lies_under(name: str) -> Iterator[tuple[str, int, bytes]]:
    """What the kernel keeps for itself on the disk under one of the mirror's devices, if that is still plugged in."""
    if not re.fullmatch(rf"{NAME}-(metadata-disk|slot\d+)", name):
        return
    _, length, kind, *words = sh("dmsetup", "table", name).split()
    if kind == "error":  # the slot of a primary that is held out
        return
    path, offset, size = f"/dev/block/{words[0]}", int(words[1]) * 512, int(length) * 512
    if Path(path).exists():
        before = None
        while (data := read(path, offset, size)) != before:  # the kernel may be at it
            before = data
        yield path, offset, data


def _take_down() -> None:
    """Whatever nothing stands on, until nothing is left."""
    while left := ours():
        gone = [name for name in left if _removed(name)]
        assert gone, f"somebody has these open: {left}"


def _removed(name: str) -> bool:
    """Whether nothing stood on the device, so that it is gone now."""
    if os.listdir(Path("/sys/class/block", Path(f"/dev/mapper/{name}").resolve().name, "holders")):
        return False
    sh("dmsetup", "remove", "--retry", name)
    return True


def read(path: str | Path, offset: int, length: int) -> bytes:
    """Bytes of a device as they are on it, whatever a page cache says."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as buffer:
            assert os.preadv(fd, [buffer], offset) == length
            return buffer[:]
    finally:
        os.close(fd)


def write(path: str | Path, offset: int, data: bytes) -> None:
    """Write to a device past every cache, and flush it."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            assert os.pwritev(fd, [buffer], offset) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def fingerprint(*paths: str | Path) -> list[tuple[str, int, int]]:
    """A number for each MiB of each device; no single changed word, and next to no other change, leaves them all."""
    found = []
    with mmap.mmap(-1, _CHUNK) as buffer:
        for path in paths:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                for offset in range(0, os.lseek(fd, 0, os.SEEK_END), _CHUNK):
                    count = os.preadv(fd, [buffer], offset)
                    for at in range(0, count, MIB):
                        words = np.frombuffer(buffer[at : min(at + MIB, count)], np.uint64)
                        total = int((words * _WEIGHTS[: len(words)]).sum()) if words.any() else 0
                        found.append((str(path), (offset + at) // MIB, total))
            finally:
                os.close(fd)
    return found


@contextlib.contextmanager
def unchanged(*paths: str | Path) -> Iterator[None]:
    """Assert that the block changes no byte of these devices."""
    settle()
    before = fingerprint(*paths)
    yield
    settle()
    now = fingerprint(*paths)
    changed = [f"{path} MiB {at}" for (path, at, _), other in zip(before, now, strict=True) if (path, at, _) != other]
    assert not changed, f"changed: {', '.join(changed)}"


def suspended() -> list[str]:
    """Names of the device-mapper devices that are suspended, but for a canary: nobody ever waits for that."""
    names = []
    for folder in Path("/sys/block").glob("dm-*/dm"):
        with contextlib.suppress(OSError):  # it goes at this moment
            if (folder / "suspended").read_text().strip() == "1":
                names.append((folder / "name").read_text().strip())
    return [name for name in names if not name.endswith("-canary")]


def ours() -> list[str]:
    """Names of the device-mapper devices of any mirror, in alphabetical order."""
    folders = Path("/sys/block").glob("dm-*/dm")
    return sorted(
        (f / "name").read_text().strip() for f in folders if (f / "uuid").read_text().strip().startswith("DMSOFT-")
    )


def table(name: str) -> str:
    """The live table of a device as the kernel prints it, without start and length."""
    return sh("dmsetup", "table", name).split(maxsplit=2)[2].strip()


def dm_name(number: str) -> str:
    """The name of the device-mapper device ``MAJOR:MINOR``."""
    return Path(f"/sys/dev/block/{number}/dm/name").read_text().strip()


class Rig:
    """The disks of the guest, one mirror called `NAME` on them, and what is written to it."""

    def __init__(self, disks: Disks, seed: int) -> None:
        self.disks = disks
        self.chance = random.Random(seed)
        self._bytes = np.random.default_rng(seed)
        self._exits = contextlib.ExitStack()
        self.primary = str(disks["p0"])
        self.secondaries: dict[str, str] = {}

    @property
    def top(self) -> str:
        return f"/dev/mapper/{NAME}"

    def create(self, *options: str | Path, primary: str | None = None, **secondaries: str | Path) -> Ran:
        """``create`` with these secondaries (label = path)."""
        self.primary = primary or self.primary
        self.secondaries = {label: str(path) for label, path in secondaries.items()}
        words = [word for label, path in self.secondaries.items() for word in ("--secondary", f"{label}={path}")]
        return ok("create", NAME, "--primary", self.primary, *words, "--yes", *options)

    def cut(self, serial: str, size_bytes: int, start_bytes: int = 0) -> str:
        """A device-mapper device on a part of a disk, for tests that want a small one; gone with the test."""
        name = f"cut-{serial}-{start_bytes // MIB}"
        sectors, start = size_bytes // 512, start_bytes // 512
        sh("dmsetup", "create", name, data=f"0 {sectors} linear {self.disks[serial]} {start}\n".encode())
        settle()
        return f"/dev/mapper/{name}"

    def behave(self, cut: str, serial: str, *features: str, bad: tuple[int, int] | None = None) -> None:
        """Have a cut from the start of a disk do I/O with these features of dm-flakey, without any as it should; the
        sectors (first, count) of ``bad`` cannot be read nor written."""
        name, disk = Path(cut).name, self.disks[serial]
        size = int(sh("blockdev", "--getsz", cut))
        kind = f"flakey {disk} {{}} 0 600 {len(features)} {' '.join(features)}" if features else f"linear {disk} {{}}"
        first, count = bad or (size, 0)
        parts = [(0, first, kind), (first, count, "error"), (first + count, size - first - count, kind)]
        lines = [f"{start} {length} {what.format(start)}" for start, length, what in parts if length]
        sh("modprobe", "dm_flakey")
        sh("dmsetup", "suspend", "--noflush", "--nolockfs", name)
        sh("dmsetup", "load", name, data="\n".join(lines).encode())
        sh("dmsetup", "resume", name)

    def random(self, length: int) -> bytes:
        return self._bytes.bytes(length)

    def write(self, *blocks: int, block_bytes: int = MIB, length: int | None = None, device: str | None = None) -> None:
        """Write random bytes to the first ``length`` bytes (default: all) of each of these blocks of the mirror."""
        for block in blocks:
            write(device or self.top, block * block_bytes, self.random(length or block_bytes))

    def resync(self, *words: str) -> dict[str, Any]:
        """``resync --json``: the last line."""
        return ok("resync", NAME, *words, "--json").json

    def status(self, code: int = 0) -> dict[str, Any]:
        """The mirror's part of ``status --json``."""
        ran = dmsoft("status", NAME, "--json")
        assert ran.code == code, ran
        (mirror,) = ran.json["mirrors"]
        assert isinstance(mirror, dict)
        return mirror

    def secondary(self, label: str, code: int = 0) -> dict[str, Any]:
        """That secondary's part of ``status --json``."""
        (found,) = [each for each in self.status(code)["secondaries"] if each["label"] == label]
        assert isinstance(found, dict)
        return found

    def states(self, code: int = 0) -> dict[str, str]:
        return {each["label"]: each["state"] for each in self.status(code)["secondaries"]}

    def stale(self, label: str) -> Blocks:
        """The blocks that ``stale --json`` lists."""
        extents = ok("stale", NAME, label, "--json").json["extents"]
        return {block for first, count in extents for block in range(first, first + count)}

    def primary_header(self) -> Primary:
        payload = header.require(self.primary).payload
        assert isinstance(payload, Primary)
        return payload

    def secondary_header(self, label: str) -> Secondary:
        payload = header.require(self.secondaries[label]).payload
        assert isinstance(payload, Secondary)
        return payload

    def overwrite_older_header(self, path: str) -> None:
        """Zero the copy of a member's header that does not count, as somebody else may have done."""
        older = min(header.read(path).copies, key=lambda copy: copy.sequence or 0)
        write(path, older.slot * header.SLOT_BYTES, bytes(4096))

    def record(self, label: str) -> MemberRecord:
        found = self.primary_header().member(label)
        assert found is not None
        return found

    def differing(self, label: str) -> Blocks:
        """The blocks whose bytes on the secondary's own medium are not the primary's; every byte is read."""
        ours, theirs = self.primary_header(), self.secondary_header(label)
        mine, its = ours.regions["data"], theirs.regions["data"]
        assert mine.length == its.length
        with contextlib.ExitStack() as stack:
            fds = []
            for path in (self.primary, self.secondaries[label]):
                fds.append(os.open(path, os.O_RDONLY | os.O_DIRECT))
                stack.callback(os.close, fds[-1])
            return _compare(fds[0], fds[1], mine.offset, its.offset, mine.length, ours.block_bytes)

    def equal(self, *labels: str) -> None:
        """Assert that these secondaries (default: all) hold the primary's every byte."""
        for label in labels or self.secondaries:
            assert self.differing(label) == set(), label

    def superset(self, label: str) -> None:
        """Assert that every block that differs is in the stale set; the mirror may be written meanwhile."""
        differing = self.differing(label)  # first: a block is marked before it changes
        missed = differing - self.stale(label)
        assert not missed, f"{label} differs at {sorted(missed)[:20]}, which its stale set lacks"

    def write_to_medium(self, label: str | None, offset: int, data: bytes) -> None:
        """Change a member's data behind the mirror's back (``label`` None: the primary's)."""
        payload = self.primary_header() if label is None else self.secondary_header(label)
        path = self.primary if label is None else self.secondaries[label]
        write(path, payload.regions["data"].offset + offset, data)

    @contextlib.contextmanager
    def writing(self, **options: int) -> Iterator["Writer"]:
        """A process that writes to the mirror until the block ends; it must meet no error."""
        writer = Writer(self.top, self.chance.randrange(1 << 32), **options)
        try:
            yield writer
        finally:
            writer.stop()
        assert not writer.errors, writer.errors[:5]

    def close(self) -> None:
        self._exits.close()
        left = suspended()
        for folder in (Path("/etc/dmsoft"), RUN_DIR):
            shutil.rmtree(folder, ignore_errors=True)
        assert not left, f"still suspended: {left}"


def _compare(one: int, two: int, first: int, second: int, length: int, block_bytes: int) -> Blocks:
    found: Blocks = set()
    step = min(block_bytes, _CHUNK)
    chunk = _CHUNK // step * step  # so that no piece lies in two blocks
    with mmap.mmap(-1, _CHUNK) as ours, mmap.mmap(-1, _CHUNK) as theirs:
        for offset in range(0, length, chunk):
            size = min(chunk, length - offset)
            for fd, at, buffer in ((one, first, ours), (two, second, theirs)):
                with memoryview(buffer) as view, view[:size] as part:
                    assert os.preadv(fd, [part], at + offset) == size
            if ours[:size] != theirs[:size]:
                found |= {
                    (offset + at) // block_bytes
                    for at in range(0, size, step)
                    if ours[at : min(at + step, size)] != theirs[at : min(at + step, size)]
                }
    return found


_WRITER = """
import json, mmap, os, random, select, sys, time
path, seed, pause, span = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) / 1000, int(sys.argv[4])
chance = random.Random(seed)
fd = os.open(path, os.O_RDWR | os.O_DIRECT)
span = min(span, os.lseek(fd, 0, os.SEEK_END)) or os.lseek(fd, 0, os.SEEK_END)
buffer = mmap.mmap(-1, 65536)
count, longest, errors = 0, 0.0, []
sys.stdout.write("ready\\n"); sys.stdout.flush()
while not select.select([0], [], [], pause)[0]:
    buffer[:4096] = chance.randbytes(4096)
    start = time.monotonic()
    try:
        os.pwritev(fd, [buffer], chance.randrange(span // 65536) * 65536)
        if count % 8 == 0:
            os.fsync(fd)
    except OSError as err:
        errors.append(str(err))
    longest = max(longest, time.monotonic() - start)
    count += 1
print(json.dumps({"count": count, "longest": longest, "errors": errors}))
"""


class Writer:
    """A process that writes 64 KiB at random places, with an fsync now and then; ``longest`` in seconds."""

    def __init__(self, path: str, seed: int, *, pause_ms: int = 20, span: int = 0) -> None:
        argv = [sys.executable, "-I", "-S", "-c", _WRITER, path, str(seed), str(pause_ms), str(span)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"
        self.count, self.longest, self.errors = 0, 0.0, list[str]()
        self._running = True

    def stop(self) -> None:
        if not self._running:
            return
        self._running = False
        out, _ = self._process.communicate("", timeout=120)
        found = json.loads(out)
        self.count, self.longest, self.errors = found["count"], found["longest"], found["errors"]


def wait_until(what: str, true: Any, seconds: float = 20) -> None:
    """Wait until ``true()`` holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)


def sectors_written(path: str | Path) -> int:
    """Sectors the kernel wrote to that disk since it was plugged in (Documentation/block/stat.rst)."""
    node = Path(path).resolve().name
    return int(Path(f"/sys/class/block/{node}/stat").read_text().split()[6])


def flatten(words: Sequence[object]) -> list[str]:
    return [str(word) for word in words]


@pytest.fixture
def rig(disks: Disks, seed: int) -> Iterator[Rig]:
    modules = ("dm_mod", "dm_era", "dm_raid", "dm_writecache", "dm_delay", "loop")
    if missing := [name for name in modules if not Path("/sys/module", name).exists()]:
        sh("modprobe", "--all", *missing)
    made = Rig(disks, seed)
    yield made
    made.close()
