# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's part of ``bench resync``: the same dirty sets caught up in several ways, one JSON line a set."""

import contextlib
import io
import json
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from dmsoft.cli import run
from dmsoft.member import header
from dmsoft.mirror.progress import Planned
from dmsoft.mirror.sync import Request, resync
from dmsoft.resync import steps
from dmsoft.units import MIB, SECTOR
from tests.bench.as_copied import assume_equal
from tests.bench.resync_peers import BLOCK, Drbd, Extents, Mdadm, bare, compare, sh, write_set

_NAME, _LABEL = "bench", "s"
_CLUSTER_BLOCKS = 128
_COMPARE = "a compare of everything"


@dataclass(frozen=True)
class Plan:
    """What is to be measured. ``cases`` are (share, shape) of dirty sets; ``delay_ms``: the disk that is caught up
    takes so much longer for each write, by dm-delay; each way is taken ``rounds`` times, and its best one counts."""

    cases: list[tuple[float, str]]
    seed: int
    journal_bytes: int
    delay_ms: int = 0
    rounds: int = 1


def note(text: str) -> None:
    """For whoever waits."""
    print(f"{time.monotonic():.0f} s: {text}", file=sys.stderr, flush=True)


def disk(serial: str, delay_ms: int = 0) -> str:
    path = f"/dev/disk/by-id/virtio-{serial}"
    if not delay_ms:
        return path
    slow = f"slow-{serial}"
    if not Path(f"/dev/mapper/{slow}").exists():
        size = int(sh("blockdev", "--getsize64", path)) // SECTOR
        sh("dmsetup", "create", slow, "--table", f"0 {size} delay {path} 0 0 {path} 0 {delay_ms}")
    return f"/dev/mapper/{slow}"


def dmsoft(*words: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run(list(words))
    if code:
        raise RuntimeError(f"dmsoft {' '.join(words)}: exit status {code}: {said.getvalue()}")


class Clock:
    """Watches a resync from both ends: its reporter hears of phases, and the steps of the copy are noted."""

    def __init__(self) -> None:
        self.phases: list[tuple[float, str]] = []
        self.steps: list[tuple[float, str]] = []

    def planned(self, plans: list[Planned], bytes_total: int) -> None: ...

    def phase(self, name: str, bytes_total: int, bytes_later: int = 0) -> None:
        self.phases.append((time.monotonic(), name))

    def advance(self, count: int) -> None: ...
    def note(self, text: str) -> None: ...

    def step(self, text: str) -> None:
        if text not in ("before copy", "after copy", "before stage", "after stage"):  # one for every request
            self.steps.append((time.monotonic(), text))


@dataclass(frozen=True)
class Ours:
    """Seconds. ``start`` is all before the first pass: members found, gate, sample check, first barrier; ``copying``
    the passes, the rest after the final barrier, flushes, commit, application of the journal and headers; ``barrier``
    the final one with what prepares it; ``end`` what the primary notes, and the cleaning up."""

    start: float
    copying: float
    barrier: float
    end: float
    mib: float
    journal: bool


def ours(*, direct: bool) -> Ours:
    clock, start = Clock(), time.monotonic()
    steps.watch = clock.step
    try:
        outcome, error = resync(Request(_NAME, max_stall=0, direct=direct), clock, threading.Event())
    finally:
        steps.watch = None
    end = time.monotonic()
    if error is not None:
        raise error
    first = clock.phases[0][0]
    final = next(when for when, name in clock.phases if name == "final")
    # A barrier in which nothing was left to copy is followed by a flush.
    resumed = next(when for when, _ in clock.steps if when > final)
    last = clock.steps[-1][0]
    done = outcome.secondaries[0]
    return Ours(
        first - start, final - first + last - resumed, resumed - final, end - last, outcome.bytes_copied / MIB,
        done.journal,
    )  # fmt: skip


def dirty_set(share: float, shape: str, blocks: int, chance: random.Random) -> Extents:
    wanted = max(1, int(blocks * share))
    if share >= 1:
        return [(0, blocks)]
    step = 1 if shape == "scattered" else _CLUSTER_BLOCKS
    places = sorted(chance.sample(range(blocks // step), max(1, wanted // step)))
    return [(place * step, step) for place in places]


def prepare(plan: Plan) -> tuple[tuple[str, int], tuple[str, int], int]:
    """A mirror of two disks that hold nothing but zeros, so that they are in sync; where the data of its disks lie; and
    the number of its blocks."""
    first, second = disk("p"), disk("s", plan.delay_ms)
    journal = ["--journal-size", str(plan.journal_bytes)]
    dmsoft("create", _NAME, "--primary", first, "--secondary", f"{_LABEL}={second}", "--block-size", str(BLOCK),
           *journal, "--yes")  # fmt: skip
    assume_equal(_NAME, _LABEL)
    found = [header.require(path).payload.regions["data"] for path in (first, second)]
    return (first, found[0].offset), (second, found[1].offset), found[0].length // BLOCK


def main(plan: Plan) -> None:
    chance = random.Random(plan.seed)
    source, target, blocks = prepare(plan)
    scratch = (disk("x", plan.delay_ms), target[1])
    sets = [dirty_set(share, shape, blocks, chance) for share, shape in plan.cases]
    runs: dict[int, dict[str, list[Ours]]] = {}
    plain: dict[int, dict[str, list[float]]] = {}
    peers: dict[int, dict[str, list[float]]] = {}
    # How long it takes hardly depends on what differs, and it is by far the longest of all.
    whole = compare(source, scratch, blocks)
    for number, extents in enumerate(sets):
        runs[number] = {"direct": [], "journal": []}
        plain[number] = {"bare": [], "bare twice": []}
        peers[number] = {_COMPARE: [whole]}
        note(f"{plan.cases[number]}")
        for _ in range(plan.rounds):
            for way, done in runs[number].items():
                write_set(f"/dev/mapper/{_NAME}", extents)
                done.append(ours(direct=way == "direct"))
            plain[number]["bare"].append(bare(source, scratch, extents))
            plain[number]["bare twice"].append(bare(source, scratch, extents, times=2))
    dmsoft("stop", _NAME)
    for kind in (Drbd, Mdadm):
        note(kind.name)
        try:
            peer = kind(disk("m0"), disk("m1", plan.delay_ms))
            for number, extents in enumerate(sets):
                peers[number][kind.name] = [peer.catch_up(extents) for _ in range(plan.rounds)]
            peer.close()
        except (RuntimeError, OSError) as err:  # its rows say so, and the others are still good
            note(f"{kind.name} failed: {err}")
    for number, (share, shape) in enumerate(plan.cases):
        best = {way: asdict(min(done, key=lambda took: took.copying)) for way, done in runs[number].items()}
        print(
            json.dumps({
                "share": share, "shape": shape, "mib": sum(c for _, c in sets[number]) * BLOCK / MIB, **best,
                **{way: min(done) for way, done in plain[number].items()}, "slowest bare": max(plain[number]["bare"]),
                "peers": {
                    name: min(peers[number][name]) if name in peers[number] else None
                    for name in (_COMPARE, Drbd.name, Mdadm.name)
                },
            }), flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    main(Plan(**given))
