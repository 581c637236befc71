# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev test``: pytest on the host and in VMs, two runs at a time, one total.

Without a PATH: the unit tests, the tests that crash VMs (of 6.1, 5.10 and 6.18), all VM tests on kernel 6.1, and the
tests marked ``smoke`` on 6.12 and 7.2; with ``--all`` also those that need a real boot on Debian 12, and a core of them
on Debian 13. What follows ``--`` goes to every pytest.
"""

import argparse
import compileall
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import kernels
from tests.harness.guestkit import DISKS
from tests.harness.qemu import CHECKOUT
from tests.harness.signals import unwind

TOTALS = "dmsoft-totals "
SMOKE_KERNELS = ("7.2", "6.12")
MORE_KERNELS = ("6.18", "5.10")
MACHINES = ("debian12", "debian13")
SHARDS = 2
PARALLEL = 2
VM_SECONDS = 4500
# Long before that, pytest says where a test that hangs does so.
TEST_SECONDS = 600
_NOTHING_SELECTED = 5
# Lines of pytest's short summary that are said again at the very end.
_FAILURES = ("FAILED ", "ERROR ")


@dataclass(frozen=True)
class Job:
    """One run of pytest: on the host, in a VM with ``kernel``, or about a ``machine`` of Vagrant's."""

    name: str
    paths: tuple[str, ...]
    marks: str
    kernel: str | None = None
    machine: str | None = None

    def argv(self, extra: Sequence[str], timeout: int = VM_SECONDS) -> list[str]:
        """The command that runs it, from the root of the checkout."""
        if self.machine is not None:
            return ["./dev", "vagrant", self.machine, *(["-m", self.marks] * bool(self.marks)), *self.paths, *extra]
        pytest = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider"]
        pytest += ["-o", f"faulthandler_timeout={TEST_SECONDS}"]
        pytest += ["-m", self.marks, *self.paths, *extra]
        if self.kernel is None:
            return pytest
        pytest += ["-p", "no:hypothesispytest"]  # its import takes seconds in a guest, and no test there uses it
        vm = [sys.executable, "-m", "tests.harness", "--kernel", self.kernel, "--memory", "2048"]
        vm += ["--timeout", str(timeout)]
        for serial, size in DISKS.items():
            vm += ["--disk", f"{size}:{serial}"]
        return [*vm, "--", *pytest]


@dataclass
class Totals:
    """Counts of tests over all jobs so far, and what went wrong outside of any test."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def plan(paths: Sequence[str], kernel: str | None, everything: bool) -> list[Job]:
    """The runs to make, longer ones first. ``paths`` are files, folders or node ids below tests/."""
    usual = "not long" if everything else "not slow and not long"
    if paths:
        return list(_plan_paths(paths, kernel))
    if kernel:
        return _shards(kernel, "tests/vm", usual, kernel)
    shards = SHARDS * 2 if everything else SHARDS
    jobs = list(_shards(kernels.DEFAULT, "tests/vm", usual, kernels.DEFAULT, shards))
    for name in MACHINES * everything:
        jobs.append(Job(name, ("tests/vagrant",), usual if name == MACHINES[0] else "core", machine=name))
    jobs.append(Job("crash", ("tests/crash",), usual))
    for version in SMOKE_KERNELS + MORE_KERNELS * everything:
        jobs.append(
            Job(
                version,
                ("tests/vm",),
                "(smoke or core) and not long" if everything else "smoke and not slow and not long",
                version,
            )
        )
    return [*jobs, *_shards("unit", "tests/unit", usual)]


def _plan_paths(paths: Sequence[str], kernel: str | None) -> Iterator[Job]:
    """What is named is run, however it is marked."""
    inside = tuple(path for path in paths if _is_below("tests/vm", path))
    booted = tuple(path for path in paths if _is_below("tests/vagrant", path))
    outside = tuple(path for path in paths if path not in inside + booted)
    if inside:
        version = kernel or kernels.DEFAULT
        yield Job(version, inside, "", version)
    if booted:
        yield Job(MACHINES[0], booted, "", machine=MACHINES[0])
    if outside:
        yield Job("host", outside, "")


def _is_below(folder: str, path: str) -> bool:
    file = Path(path.partition("::")[0]).resolve()
    return file.is_relative_to(CHECKOUT / folder)


def _shards(name: str, folder: str, marks: str, kernel: str | None = None, count: int = SHARDS) -> list[Job]:
    """A folder in runs of like size; a file's length stands for the time its tests take."""
    files = sorted((CHECKOUT / folder).glob("**/test_*.py"), key=lambda file: -file.stat().st_size)
    shards: list[list[Path]] = [[] for _ in range(count)]
    for file in files:
        min(shards, key=lambda shard: sum(member.stat().st_size for member in shard)).append(file)
    parts = [tuple(sorted(str(file.relative_to(CHECKOUT)) for file in shard)) for shard in shards]
    return [Job(f"{name}/{number}", paths, marks, kernel) for number, paths in enumerate(parts, 1) if paths]


class Runner:
    """Runs jobs side by side, with each line of theirs prefixed by the job's name."""

    def __init__(self, extra: Sequence[str], environment: dict[str, str]) -> None:
        self._extra = extra
        self._environment = environment
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = False
        self.totals = Totals()

    def run(self, jobs: Sequence[Job]) -> None:
        with ThreadPoolExecutor(PARALLEL) as pool:
            try:
                list(pool.map(self._execute, jobs))
            finally:
                self._stop()

    def _stop(self) -> None:
        """Each child cleans up after itself on SIGTERM; jobs that have not begun never do."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                process.terminate()

    def _execute(self, job: Job) -> None:
        started = time.monotonic()
        with self._lock:
            if self._stopping:
                return
            process = subprocess.Popen(
                # A runner that is killed leaves no run behind.
                ["setpriv", "--pdeathsig", "TERM", *job.argv(self._extra)],
                cwd=CHECKOUT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # A Ctrl-C reaches the runner alone, which then ends its jobs in order.
                start_new_session=True,
            )
            self._running.add(process)
        counts = self._relay(job, process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
            self._add(job, counts, status)
        self._say(job, f"ended with status {status} after {time.monotonic() - started:.0f} s")

    def _relay(self, job: Job, process: "subprocess.Popen[str]") -> dict[str, int] | None:
        """Print a job's output as it comes; the counts of its last line, if it came to that."""
        counts: dict[str, int] | None = None
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(TOTALS):
                counts = json.loads(line.removeprefix(TOTALS))
            else:
                self._say(job, line.rstrip("\n"))
                if line.startswith(_FAILURES):
                    self.totals.lines.append(f"[{job.name}] {line.rstrip()}")
        return counts

    def _say(self, job: Job, line: str) -> None:
        with self._lock:
            print(f"[{job.name}] {line}", flush=True)

    def _add(self, job: Job, counts: dict[str, int] | None, status: int) -> None:
        counts = counts or {}
        self.totals.passed += counts.get("passed", 0)
        self.totals.failed += counts.get("failed", 0)
        self.totals.skipped += counts.get("skipped", 0)
        # A run that broke off, or was no run at all, is one failure more than the tests it could count.
        if status not in (0, _NOTHING_SELECTED) and not counts.get("failed"):
            self.totals.failed += 1
            self.totals.lines.append(f"[{job.name}] did not finish its tests: status {status}")


def main(argv: list[str]) -> int:
    """Exit status 0 if at least one test ran and none failed."""
    arguments, extra = _parse(argv)
    environment = dict(os.environ, DMSOFT_TEST_TOTALS="1", PYTHONUNBUFFERED="1")
    environment.setdefault("DMSOFT_TEST_SEED", str(random.SystemRandom().randrange(1 << 32)))
    print(f"seed: DMSOFT_TEST_SEED={environment['DMSOFT_TEST_SEED']}", flush=True)
    jobs = plan(arguments.paths, arguments.kernel, arguments.all)
    _compile([path for job in jobs if job.kernel for path in job.paths])
    runner = Runner(extra, environment)
    runner.run(jobs)
    totals = runner.totals
    for line in totals.lines:
        print(line)
    if not totals.passed and not totals.failed:
        print("no test ran")
    print(totals, flush=True)
    return 0 if totals.passed and not totals.failed else 1


def _compile(tests: Sequence[str]) -> None:
    """Guests keep no bytecode: each program in them would compile what it imports anew, and pytest every assertion."""
    for folder in ("dmsoft", "tests"):
        compileall.compile_dir(CHECKOUT / folder, quiet=2)
    if tests:
        collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-m", "", *tests]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run(
            collect, cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    extra: list[str] = []
    if "--" in argv:
        at = argv.index("--")
        argv, extra = argv[:at], argv[at + 1 :]
    parser = argparse.ArgumentParser(prog="dev test", description=__doc__)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="file, folder or node id; tests/vm/... run in a VM")
    parser.add_argument("--kernel", help="run the VM tests alone, on this kernel")
    parser.add_argument("--all", action="store_true", help="slow tests too, and smoke and core tests on all kernels")
    return parser.parse_args(argv), extra


if __name__ == "__main__":
    unwind()
    sys.exit(main(sys.argv[1:]))
