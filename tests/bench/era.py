# SPDX-License-Identifier: GPL-2.0-or-later
"""The reader of era metadata beside ``era_invalidate`` of Debian 12 (C++) and Debian 13 (Rust), as whole processes."""

import argparse
import hashlib
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import crc32c

import dmsoft
from dmsoft.era import marks
from dmsoft.units import MIB
from tests.bench import era_packages
from tests.bench.era_build import SINCE
from tests.bench.era_packages import EraInvalidate
from tests.bench.rows import Row

_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent
_SIZES = {"8M": 8 << 20, "64M": 64 << 20, "256M": 256 << 20}
_RUNS = 5
# What takes longer than this runs once.
_LONG_SECONDS = 20.0


@dataclass(frozen=True)
class Run:
    """One process: ``set_seconds`` is the part that a caller of the reader waits for, where the program tells."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    set_seconds: float = 0.0


def measure(arguments: list[str]) -> Iterator[Row]:
    """Rows of every size. Images take up to 1.2 GB of temporary space; they are removed at the end."""
    parser = argparse.ArgumentParser(prog="dev bench era")
    parser.add_argument("--sizes", default=",".join(_SIZES), help="of %(default)s")
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir(), help="where images go")
    options = parser.parse_args(arguments)
    if not marks.COMPILED:
        print("dmsoft was installed without its compiled module: see ./dev setup", file=sys.stderr)
    tools = [era_packages.find("bookworm", "0.9."), era_packages.find("trixie", "1.")]
    for size in options.sizes.split(","):
        with tempfile.TemporaryDirectory(prefix="dmsoft-bench-", dir=options.folder) as folder:
            yield from _measure_size(size, Path(folder), tools)


def _measure_size(size: str, folder: Path, tools: list[EraInvalidate]) -> Iterator[Row]:
    image = folder / "metadata"
    _python("tests.bench.era_build", str(image), str(_SIZES[size]))
    with image.open("rb") as file:
        os.fsync(file.fileno())
    ours = _Contestant(None, image, folder / "ours")
    theirs = [_Contestant(tool, image, folder / tool.version) for tool in tools]
    for state in ("cold", "warm"):
        case = f"{size} {state}"
        plain = _contest([ours, *theirs], image, state)
        yield Row(
            case, "set: seconds / plain read of the file", ours.best.set_seconds, plain, "sequential O_DIRECT read"
        )
        for other in theirs:
            if other.found() != ours.found():
                raise RuntimeError(f"{other.name} and dmsoft disagree about {case}")
            yield from _compare(case, size, ours.best, other)
        if size == "256M":
            limit = _SIZES[size] / 4 + 64 * MIB
            yield Row(
                case, "process: peak memory, MiB", ours.best.peak_bytes / MIB, limit / MIB, "blocks/4 + 64 MiB", 1.0
            )


def _contest(contestants: "list[_Contestant]", image: Path, state: str) -> float:
    """Let all run in turn, so that what else the machine does meets them alike. The best plain read's seconds."""
    plain = float("inf")
    for contestant in contestants:
        contestant.runs.clear()
    for _ in range(_RUNS):
        plain = min(plain, _read_plainly(image))
        for contestant in contestants:
            if not contestant.runs or contestant.runs[0].seconds < _LONG_SECONDS:
                contestant.run(cold=state == "cold")
    return plain


def _compare(case: str, size: str, ours: Run, other: "_Contestant") -> Iterator[Row]:
    theirs, name, rust = other.best, other.name, other.rust
    set_bar = (0.5 if rust else 0.1) if size == "64M" else None
    yield Row(case, "set: seconds / their process", ours.set_seconds, theirs.seconds, name, set_bar)
    process_bar = 1.0 if rust and size == "8M" else None
    yield Row(case, "process: seconds", ours.seconds, theirs.seconds, name, process_bar)
    yield Row(case, "process: processor seconds", ours.cpu_seconds, theirs.cpu_seconds, name)
    yield Row(case, "process: peak memory, MiB", ours.peak_bytes / MIB, theirs.peak_bytes / MIB, name)


class _Contestant:
    """A program that says what was written since an era: ``tool``, or dmsoft's reader."""

    def __init__(self, tool: EraInvalidate | None, image: Path, output: Path) -> None:
        self.runs: list[Run] = []
        self.output = output
        self._ours = tool is None
        self._environment = dict(os.environ)
        self.rust = tool is not None and not tool.version.startswith("0.")
        if tool:
            self.name = tool.name
            self._argv = [*tool.argv, "--written-since", str(SINCE), "-o", str(output), str(image)]
            self._files = [image, *tool.files]
        else:
            self.name = "dmsoft"
            installed = _installed(output.with_name("installed"))
            # -P: only what is installed is found.
            self._argv = [str(installed / "bin/python"), "-P", str(_HERE / "era_worker.py")]
            self._argv += [str(image), str(SINCE), str(output)]
            # Compiled, as installed programs are.
            self._environment.pop("PYTHONDONTWRITEBYTECODE", None)
            self.run(cold=False)
            self._files = [image, *(file for file in installed.rglob("*") if file.is_file())]

    @property
    def best(self) -> Run:
        """The shortest time of each kind and the highest peak."""
        return Run(
            min(run.seconds for run in self.runs),
            min(run.cpu_seconds for run in self.runs),
            max(run.peak_bytes for run in self.runs),
            min(run.set_seconds for run in self.runs),
        )

    def run(self, *, cold: bool) -> None:
        """Run once; ``cold``: after all that it reads was dropped from the page cache."""
        if cold:
            _evict(self._files)
        script = [sys.executable, "-I", "-S", str(_HERE / "era_measure.py")]
        done = subprocess.run([*script, *self._argv], capture_output=True, check=True, env=self._environment)
        figures = json.loads(done.stdout.splitlines()[-1])
        if figures["status"]:
            raise RuntimeError(f"{self.name} failed: {done.stderr.decode()}")
        last = self.output.read_text().rpartition("\n")[2] if self._ours else ""
        set_seconds = json.loads(last)["seconds"] if last else 0.0
        self.runs.append(Run(figures["seconds"], figures["cpu_seconds"], figures["peak_bytes"], set_seconds))

    def found(self) -> str:
        """A digest of the set it found."""
        text = self.output.read_text()
        if self._ours:
            return _digest((int(a), int(a) + int(b)) for a, b in re.findall(r"\[(\d+),(\d+)\]", text))
        rows = re.findall(r'block="(\d+)"|begin="(\d+)" end ?= ?"(\d+)"', text)
        return _digest((int(a or b), int(c) if b else int(a) + 1) for a, b, c in rows)


def _installed(folder: Path) -> Path:
    """A virtual environment in ``folder`` that has dmsoft's reader and what it needs.

    That of the checkout finds dmsoft by a hook and runs whatever else this machine has Python do at its start.
    """
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for module in (dmsoft, crc32c):
        source = Path(module.__file__ or "").parent
        shutil.copytree(source, packages / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _digest(ranges: Iterable[tuple[int, int]]) -> str:
    """A digest of ranges (begin, end), those that touch put together: the tools cut them differently."""
    digest, open_range = hashlib.sha256(), (-1, -1)
    for begin, end in ranges:
        if begin == open_range[1]:
            open_range = (open_range[0], end)
        else:
            digest.update(b"%d %d\n" % open_range)
            open_range = (begin, end)
    digest.update(b"%d %d\n" % open_range)
    return digest.hexdigest()


def _evict(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_plainly(image: Path) -> float:
    """Seconds to read all of ``image`` in order with large direct reads: what the disk allows."""
    with mmap.mmap(-1, 4 * MIB) as buffer:
        descriptor = os.open(image, os.O_RDONLY | os.O_DIRECT)
        begin = time.perf_counter()
        while os.readv(descriptor, [buffer]) == len(buffer):
            pass
        seconds = time.perf_counter() - begin
        os.close(descriptor)
    return seconds


def _python(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, cwd=_ROOT)
