# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's part of the load: one mirror, one file system after the other on it, all kinds of work at once.

    python -m tests.load.guest SEED SECONDS FOLDER KIND...

The secondary ``away`` is caught up by the daemon as fast as that can, and its disk is unplugged and plugged in at any
moment. The secondary ``here`` is caught up by a person, and its point in time looked into while work and daemon go on.
"""

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dmsoft.errors import BusyError
from tests.harness.guestkit import Disks, KernelLog, settle
from tests.load.database import Postgres
from tests.load.image import Image, check, mount, unmount
from tests.load.work import Fio, Sqlite, StressNg, Tree, Work, Worker, WorkError, do, figures, say
from tests.vm.monitor_bed import Monitor
from tests.vm.rig import NAME, Rig, suspended, wait_until

AWAY, HERE = "away", "here"
_SERIALS = {AWAY: "s0", HERE: "s1"}
_MOUNTPOINT, _COPY = Path("/mnt/mirror"), Path("/mnt/copy")
_TOP = f"/dev/mapper/{NAME}"
_IMAGE_SECONDS = 60.0
_TROUBLE = re.compile(
    r"I/O [Ee]rror|IO error|EXT4-fs (?:error|warning)|XFS .*(?:error|[Cc]orrupt|[Ss]hut)|JBD2: .*(?:rror|ail)|"
    r"lost (?:async )?page write"
)


def troubles(lines: Iterable[str], pulled: Iterable[str]) -> list[str]:
    """Messages of the kernel about I/O and file systems, but for those about the disks named (as ``vdb``)."""
    gone = re.compile(rf"\b(?:{'|'.join(pulled) or 'none'})\b")
    return [line for line in lines if _TROUBLE.search(line) and not gone.search(line)]


class Cable(threading.Thread):
    """Pulls the disk of `AWAY` at any moment and puts it back, until it is told to `finish`."""

    def __init__(self, disks: Disks, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self._disks, self._chance, self._over = disks, chance, threading.Event()
        self.nodes = {self._node()}
        self.pulled = 0
        self.error: Exception | None = None

    def _node(self) -> str:
        return self._disks[_SERIALS[AWAY]].resolve().name

    def run(self) -> None:
        try:
            while not self._over.wait(5 + 15 * self._chance.random()):
                self._disks.unplug(_SERIALS[AWAY])
                self.pulled += 1
                time.sleep(4 * self._chance.random())
                self._disks.replug(_SERIALS[AWAY])
                self.nodes.add(self._node())
        except Exception as err:  # raised by `finish`
            self.error = err

    def finish(self) -> None:
        self._over.set()
        self.join()
        if self.error is not None:
            raise self.error


def _subject(summary: str) -> str:
    """Whom an alert is about, which is its first word."""
    return summary.split(maxsplit=1)[0].rstrip(":")


class Load:
    def __init__(self, seed: int, seconds: float, folder: Path) -> None:
        self.chance, self.seconds, self.folder = random.Random(seed), seconds, folder
        self.disks = Disks()
        self.scratch = Path(tempfile.mkdtemp(prefix="dmsoft-load-"))
        self.scratch.chmod(0o755)
        self.rig = Rig(self.disks, self.chance.randrange(1 << 32))
        self.log = KernelLog()
        self.nodes = set[str]()

    def begin(self) -> None:
        for module in ("dm_mod", "dm_era", "dm_raid", "dm_writecache", "dm_delay", "dm_snapshot"):
            do("modprobe", module)
        block = self.chance.choice(["64K", "256K", "1M"])
        self.rig.create("--interval", "1s", "--block-size", block, away=self.disks[_SERIALS[AWAY]])
        do("dmsoft", "add", NAME, f"{HERE}={self.disks[_SERIALS[HERE]]}", "--interval", "0s", "--yes")
        self.rig.secondaries[HERE] = str(self.disks[_SERIALS[HERE]])
        self.resync()  # beside all that work it would hold itself back for long
        say(f"a mirror with blocks of {block}")

    def run(self, kind: str) -> None:
        """All kinds of work on one file system, and what came of it."""
        mount(kind, _TOP, _MOUNTPOINT)
        workers = [Worker(work, _MOUNTPOINT / work.name) for work in self.works()]
        for each in workers:
            each.begin()
        with self.daemon() as monitor, self.working(workers):
            # The time begins when everything is there.
            say(f"{kind}: {', '.join(each.name for each in workers)}")
            cable = Cable(self.disks, random.Random(self.chance.randrange(1 << 32)))
            cable.start()
            end, images = time.monotonic() + self.seconds, 0
            while True:
                self.image(kind, workers, still=False)
                images += 1
                if time.monotonic() + _IMAGE_SECONDS > end:
                    break
            self.wait(workers, end)
            cable.finish()
            self.nodes |= cable.nodes
            caught_up = len(monitor.events("caught-up"))
            self.alarmed(monitor)
        self.image(kind, workers, still=True)
        unmount(_MOUNTPOINT)
        self.equal()
        check(kind, Path(_TOP))
        self.quiet()
        rounds = {each.name: each.rounds for each in workers}
        figures(kind=kind, rounds=rounds, caught_up=caught_up, pulled=cable.pulled, images=images + 1,
                kernel=os.uname().release, seconds=self.seconds)  # fmt: skip

    def works(self) -> list[Work]:
        chances = [random.Random(self.chance.randrange(1 << 32)) for _ in range(5)]
        return [
            Fio(chances[0]), StressNg(chances[1]), Tree(chances[2], self.folder / "tree.tar"), Sqlite(chances[3]),
            Postgres(chances[4], self.folder / "cluster.tar", self.scratch),
        ]  # fmt: skip

    @contextlib.contextmanager
    def working(self, workers: list[Worker]) -> Iterator[None]:
        for each in workers:
            each.start()
        try:
            yield
        finally:
            for each in workers:
                each.finish()
            for each in workers:
                each.join()
        for each in workers:
            each.check()

    def wait(self, workers: list[Worker], end: float) -> None:
        while time.monotonic() < end:
            self.checked(workers)

    def checked(self, workers: list[Worker]) -> None:
        """A second later, if all is well with them."""
        self.log.lines()  # the kernel keeps but some of them
        for each in workers:
            each.check()
        time.sleep(1)

    @contextlib.contextmanager
    def daemon(self) -> Iterator[Monitor]:
        with tempfile.TemporaryDirectory() as folder:
            monitor = Monitor(Path(folder))
            try:
                yield monitor
                monitor.stop()
            finally:
                monitor.kill()

    def alarmed(self, monitor: Monitor) -> None:
        """Whatever the daemon is alarmed by, but for a disk that is pulled, or that others have a hand on, is a
        fault."""
        fine = {AWAY: {"catch-up-failed", "lag-missed", "secondary-failed"}, HERE: {"secondary-failed"}}
        raised = monitor.events("alert-raised")
        if raised := [each for each in raised if each["code"] not in fine.get(_subject(each["summary"]), ())]:
            raise WorkError(f"the daemon is alarmed: {raised}")

    def image(self, kind: str, workers: list[Worker], *, still: bool) -> None:
        """Catch `HERE` up, and look into its point in time. What it costs is bounded by how long its file system and
        programs take to recover."""
        self.log.lines()
        done = self.resync(HERE)
        uuid = self.rig.primary_header().mirror_uuid
        with Image(kind, self.disks[_SERIALS[HERE]], uuid, self.disks["c0"], _COPY) as copy:
            if still:
                self.held()
            for each in workers:
                each.check()
                each.work.inspect(_COPY / each.name, still=still)
            if still:
                self.would_see(copy, next(each for each in workers if isinstance(each.work, Tree)))
        say(f"{kind}: a copy is whole that took {done['bytes_copied'] >> 20} MiB and {done['passes']} passes")

    def would_see(self, copy: Image, worker: Worker) -> None:
        """A byte that is wrong in the copy, and in nothing else."""
        files = [path for path in (_COPY / worker.name / "stays").rglob("*") if path.is_file()]
        copy.damage(max(files, key=lambda path: path.stat().st_size))
        try:
            worker.work.inspect(_COPY / worker.name, still=True)
        except WorkError:
            return
        raise WorkError("a byte of the copy was changed, and nobody saw it")

    def held(self) -> None:
        """What others have a hand on is nobody's copy for so long."""
        states = self.rig.states(9)
        if states[HERE] != "failed":
            raise WorkError(f"it is looked into, and dmsoft would write to it: {states}")

    def resync(self, *labels: str) -> dict[str, Any]:
        """As a person would who cannot wait for a quieter hour: the daemon may have the mirror for a moment."""
        deadline = time.monotonic() + 900
        words = ["dmsoft", "resync", NAME, *labels, "--rate", "max", "--json"]
        while True:
            ran = subprocess.run(words, capture_output=True, text=True, check=False)
            done = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else {"converged": False}
            if done["converged"]:
                return dict(done)
            if ran.returncode not in (0, BusyError.exit_code) or time.monotonic() > deadline:
                raise WorkError(f"dmsoft resync: exit status {ran.returncode}: {ran.stderr}")

    def equal(self) -> None:
        """Everything is caught up, and is the same byte for byte."""
        settle()
        self.resync()
        self.rig.equal(AWAY, HERE)
        wait_until("nothing is suspended", lambda: not suspended())

    def quiet(self) -> None:
        """The kernel has nothing to complain of but the disk that was pulled."""
        if bad := troubles(self.log.lines(), self.nodes) + self.log.faults():
            raise WorkError("the kernel complains:\n" + "\n".join(bad[:20]))


def main(seed: int, seconds: float, folder: Path, kinds: list[str]) -> None:
    load = Load(seed, seconds, folder)
    load.begin()
    for kind in kinds:
        load.run(kind)
    do("dmsoft", "stop", NAME)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
