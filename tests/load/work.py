# SPDX-License-Identifier: GPL-2.0-or-later
"""What works on the mirror: programs that people use, each with its own way to tell whether its data are whole.

All of them run inside the VM, each in its own folder of the file system on the mirror. A copy of the file system, as it
was at any moment, is `inspect`ed elsewhere.
"""

import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

LONG_SECONDS = 600
_NICE = 10
# Stressors that write so many bytes if nothing is said that the mirror would be full.
_STRESS_BYTES = {
    "fallocate": "16m", "fiemap": "16m", "hdd": "16m", "iomix": "16m", "sync-file": "16m",
}  # fmt: skip


# What works on other file systems than the mirror's, might hang the machine, or takes 256 MiB at the least.
_NOT_HERE = ("procfs", "sysfs", "binderfs", "bind-mount", "copy-file")


class WorkError(Exception):
    """A program found its data wrong, or failed."""


def do(*argv: str | Path, accept: Sequence[int] = (0,), cwd: Path | None = None, data: str | None = None,
       environment: Mapping[str, str] | None = None) -> str:  # fmt: skip
    """Run a program; returns its output. Raises `WorkError` with what it said for any other exit status."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, errors="replace", cwd=cwd, input=data,
            timeout=LONG_SECONDS, env=None if environment is None else {**os.environ, **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired as err:
        raise WorkError(f"{' '.join(words)} did not end") from err
    if done.returncode not in accept:
        said = (done.stdout[-3000:] + done.stderr[-3000:]).strip()
        raise WorkError(f"{' '.join(words)}: exit status {done.returncode}: {said}")
    return done.stdout


class Work(Protocol):
    """One kind of work. `begin` makes ``folder``; `round` works once, and looks whether all is as it should be;
    `inspect` looks at its folder in a copy of the file system, which it may write to; ``still``: nothing was at work
    when the copy was made."""

    @property
    def name(self) -> str: ...
    def begin(self, folder: Path) -> None: ...
    def round(self) -> None: ...
    def inspect(self, folder: Path, *, still: bool) -> None: ...


class Fio:
    """Eight jobs that write what they can verify by checksums, and do."""

    name = "fio"
    _JOBS = """
[global]
directory={folder}
randseed={seed}
verify=crc32c
verify_fatal=1
verify_state_save=0
thread
[sequential]
rw=write
bs=128k
size=8m
[random]
rw=randwrite
bs=4k
size=2m
numjobs=3
direct=1
[mixed]
rw=randrw
rwmixwrite=70
bssplit=4k/60:16k/30:64k/10
size=4m
numjobs=4
fsync=16
"""

    def __init__(self, chance: random.Random) -> None:
        self._chance, self._seed = chance, 0
        self._folder = Path()

    def begin(self, folder: Path) -> None:
        self._folder = folder

    def round(self) -> None:
        self._seed = self._chance.randrange(1 << 32)
        self._run(self._folder)

    def inspect(self, folder: Path, *, still: bool) -> None:
        if still and self._seed:
            self._run(folder, "--verify_only")

    def _run(self, folder: Path, *words: str) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".fio") as jobs:
            jobs.write(self._JOBS.format(folder=folder, seed=self._seed))
            jobs.flush()
            do("fio", "--minimal", "--output=/dev/null", *words, jobs.name)


class StressNg:
    """What stress-ng has for file systems, a few of its stressors together."""

    name = "stress-ng"
    _TOGETHER, _SECONDS = 3, 4
    # Of the run as a whole: fine; a stressor is not made for this kernel or file system (stress-ng(1), EXIT STATUS).
    _FINE = (0, 3, 4)

    def __init__(self, chance: random.Random) -> None:
        said = subprocess.run(["stress-ng", "--class", "filesystem?"], check=False, capture_output=True, text=True)
        named = (said.stdout + said.stderr).rpartition("stressors:")[2].split()
        self._all = [name for name in named if name not in _NOT_HERE]
        if "hdd" not in self._all:
            raise WorkError(f"stress-ng does not list its stressors: {said}")
        self._chance, self._next = chance, list[str]()
        self._folder = Path()

    def begin(self, folder: Path) -> None:
        self._folder = folder

    def round(self) -> None:
        if len(self._next) < self._TOGETHER:
            self._next = self._chance.sample(self._all, len(self._all))
        chosen, self._next = self._next[: self._TOGETHER], self._next[self._TOGETHER :]
        words = [word for name in chosen for word in (f"--{name}", "1")]
        words += [word for name in chosen if name in _STRESS_BYTES for word in (f"--{name}-bytes", _STRESS_BYTES[name])]
        do("stress-ng", *words, "--timeout", str(self._SECONDS), "--temp-path", self._folder, "--verify",
           "--oomable", accept=self._FINE)  # fmt: skip

    def inspect(self, folder: Path, *, still: bool) -> None: ...


class Tree:
    """A source tree that is unpacked, kept by git, changed, packed and thrown away; one that stays as it is."""

    name = "tree"
    _GIT = ("git", "-c", "user.name=dmsoft", "-c", "user.email=dmsoft@localhost", "-c", "core.fsync=all")

    def __init__(self, chance: random.Random, archive: Path) -> None:
        self._chance, self._archive = chance, archive
        self._digests = dict[str, str]()
        self._folder, self._commits = Path(), 0

    def begin(self, folder: Path) -> None:
        self._folder = folder
        self._unpack(folder / "stays")
        self._digests = self._digest(folder / "stays")
        do("git", "init", "--quiet", folder / "kept")
        self._commit(folder / "kept")

    def round(self) -> None:
        fresh, kept = self._folder / "fresh", self._folder / "kept"
        self._unpack(fresh)
        if self._digest(fresh) != self._digests:
            raise WorkError("a tree that was unpacked is not what was packed")
        shutil.rmtree(fresh)
        self._commit(kept)
        do(*self._GIT, "reflog", "expire", "--expire=now", "--all", cwd=kept)
        do(*self._GIT, "gc", "--quiet", "--prune=now", cwd=kept)
        self._fsck(kept)

    def inspect(self, folder: Path, *, still: bool) -> None:
        if self._digest(folder / "stays") != self._digests:
            raise WorkError("the tree that was there from the beginning is another one")
        self._fsck(folder / "kept")

    def _unpack(self, folder: Path) -> None:
        folder.mkdir()
        do("tar", "-xf", self._archive, "-C", folder)

    def _commit(self, folder: Path) -> None:
        for number in range(8):
            (folder / f"{number}.txt").write_bytes(self._chance.randbytes(self._chance.randrange(1, 300_000)))
        do(*self._GIT, "add", "--all", cwd=folder)
        # A history that only grew would fill the mirror in a long run.
        amend = ["--amend"] if self._commits > 5 else []
        do(*self._GIT, "commit", "--quiet", "--message", f"{self._commits}", *amend, cwd=folder)
        self._commits += 1

    @staticmethod
    def _fsck(folder: Path) -> None:
        # As root on a copy that belongs to root; git would not trust another owner's.
        do("git", "fsck", "--full", "--strict", "--no-dangling", cwd=folder)

    @staticmethod
    def _digest(folder: Path) -> dict[str, str]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


_BANK = """
import random, sqlite3, sys
path, mode, seed = sys.argv[1:]
chance = random.Random(int(seed))
bank = sqlite3.connect(path, isolation_level=None)
bank.execute(f"pragma journal_mode={mode}"); bank.execute("pragma synchronous=full")
while True:
    one, other, amount = chance.randrange(500), chance.randrange(500), chance.randrange(100)
    bank.execute("begin immediate")
    bank.execute("update account set balance = balance - ? where id = ?", (amount, one))
    bank.execute("update account set balance = balance + ? where id = ?", (amount, other))
    bank.execute("insert into note(text) values (?)", (chance.randbytes(chance.randrange(2000)),))
    last = bank.execute("select max(id) from note").fetchone()[0]
    bank.execute("delete from note where id < ?", (last - 3000,))
    bank.execute("commit")
    print(last, flush=True)
"""


class Sqlite:
    """A bank in SQLite that is killed in the middle of its transactions."""

    name = "sqlite"

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._path, self._committed = Path(), 0

    def begin(self, folder: Path) -> None:
        self._path = folder / "bank"
        bank = sqlite3.connect(self._path)
        bank.execute("create table account(id integer primary key, balance integer)")
        bank.execute("create table note(id integer primary key, text blob)")
        bank.executemany("insert into account values (?, 1000)", [(number,) for number in range(500)])
        bank.commit()
        bank.close()

    def round(self) -> None:
        words = [str(self._path), self._chance.choice(["wal", "delete"]), str(self._chance.randrange(1 << 32))]
        teller = subprocess.Popen([sys.executable, "-I", "-S", "-c", _BANK, *words], stdout=subprocess.PIPE, text=True)
        try:
            time.sleep(2 + 4 * self._chance.random())
            if teller.poll() is not None:
                raise WorkError("SQLite failed; see above")
        finally:
            teller.kill()
            said, _ = teller.communicate()
        lines = [line for line in said.splitlines(keepends=True) if line.endswith("\n")]
        self._committed = int(lines[-1]) if lines else self._committed
        self._look(self._path, self._committed)

    def inspect(self, folder: Path, *, still: bool) -> None:
        self._look(folder / "bank", self._committed if still else 0)

    @staticmethod
    def _look(path: Path, committed: int) -> None:
        bank = sqlite3.connect(path, timeout=60)
        try:
            (state,) = bank.execute("pragma integrity_check").fetchone()
            (total,) = bank.execute("select sum(balance) from account").fetchone()
            (last,) = bank.execute("select coalesce(max(id), 0) from note").fetchone()
        except sqlite3.Error as err:
            raise WorkError(f"SQLite cannot read its bank: {err}") from err
        finally:
            bank.close()
        if state != "ok" or total != 500_000 or last < committed:
            raise WorkError(f"the bank has {state}, {total} in all, and transactions to {last} of {committed}")


class Worker(threading.Thread):
    """Goes on with one kind of work until it is told to `finish`."""

    def __init__(self, work: Work, folder: Path) -> None:
        super().__init__(name=work.name, daemon=True)
        self.work, self._folder, self._over = work, folder, threading.Event()
        self.rounds, self.error = 0, None

    rounds: int
    error: Exception | None

    def begin(self) -> None:
        """Make what it works on, while nothing else is at work: that is quicker."""
        self._folder.mkdir()
        self.work.begin(self._folder)

    def run(self) -> None:
        # This thread and the programs it starts: on an emulated processor dmsoft would else take minutes to start.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            while not self._over.is_set() or not self.rounds:
                self.work.round()
                self.rounds += 1
        except Exception as err:  # raised again by `finish`, in the thread that can end the run
            self.error = err

    def finish(self) -> None:
        """Tell it to stop after the round it is in."""
        self._over.set()

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def say(text: str, started: float = time.monotonic()) -> None:
    print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)


def figures(**what: object) -> None:
    """For the host."""
    print("figures " + json.dumps(what), flush=True)
