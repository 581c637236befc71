# SPDX-License-Identifier: GPL-2.0-or-later
"""Catching up a secondary beside other ways to the same end, in VMs: the same dirty set, one way after the other.

The bare copy is the limit: the same extents by the simplest parallel program with direct I/O. With the journal
everything is written twice, so it is held against a bare copy that does the same. Peers are mdadm, which re-adds a disk
by its bitmap, DRBD over the loopback network, and a parallel compare of both disks whole.

``copying`` is everything that grows with what is copied: the passes, flushes, headers, and the application of a
journal. What a run does once, however little is stale, has rows of its own: on an emulated processor it is ten times
what it is on a real one. A peer's figure is all that it does from the return of the disk on; copying is held against
it, and the whole run stands beside it.

The disks move as many bytes a second as a hard disk does on the average. Without a limit a VM's disks are as fast as
the host's memory, and what shows is how fast the emulated processor runs each way's program: stage ``memory`` measures
that, and has no bars. At a disk's full rate nobody is faster than the bare copy: how far its own rounds are apart is a
row, and whoever is no further behind a peer is not slower.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dmsoft.units import GIB, MIB
from tests.bench import guest
from tests.bench.rows import Row
from tests.harness import vm

# Times, so at least 0.90 of the bare copy's rate.
_BAR = 1 / 0.90
_MOST_COPIED = 1.01
# Times the best peer: two rounds of one and the same bare copy are further apart than that.
_TIE = 1.05
# MiB: of a small server. What is staged in a journal is applied from memory while half of that is free.
_MEMORY = 4096


@dataclass(frozen=True)
class Stage:
    """One VM: how large the disks are, and the dirty sets as share:shape. On the large disks even a small share takes
    the disk long enough to be measured. ``speed``: bytes a second of each disk, 0 for no limit. A ``delay_ms`` is added
    to each write of the disk that is caught up."""

    name: str
    data_bytes: int
    cases: str
    speed: int = 100 * MIB
    delay_ms: int = 0

    @property
    def disks(self) -> list[vm.Disk]:
        behind = self.data_bytes + self.journal_bytes + 16 * MIB
        sizes = {"p": self.data_bytes, "s": behind, "x": behind, "m0": behind, "m1": behind}
        return [vm.Disk(serial, size=size, speed=self.speed) for serial, size in sizes.items()]

    @property
    def journal_bytes(self) -> int:
        """Room for the largest set."""
        most = max(float(case.split(":")[0]) for case in self.cases.split(","))
        return int(1.2 * most * self.data_bytes) + 32 * MIB


STAGES = (
    Stage("large", 8 * GIB, "0.01:scattered,0.01:clustered,0.1:scattered,0.1:clustered"),
    Stage("small", 800 * MIB, "1:all"),
    Stage("slow", 3 * GIB, "0.01:scattered,0.1:scattered,0.1:clustered", delay_ms=20),
    Stage("memory", 800 * MIB, "0.1:scattered,0.1:clustered,1:all", speed=0),
)


def measure(arguments: list[str]) -> Iterator[Row]:
    """Rows for each dirty set; ``ours`` and ``reference`` are seconds, or MiB."""
    parser = argparse.ArgumentParser(prog="dev bench resync")
    parser.add_argument("--stages", default=",".join(stage.name for stage in STAGES), help="default: %(default)s")
    parser.add_argument("--cases", help="share:shape of the dirty sets, in place of each stage's own")
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many counts (default %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args(arguments)
    for stage in STAGES:
        if stage.name in options.stages.split(","):
            cases = [word.split(":") for word in (options.cases or stage.cases).split(",")]
            plan = {
                "cases": [[float(share), shape] for share, shape in cases], "seed": options.seed,
                "journal_bytes": stage.journal_bytes, "delay_ms": stage.delay_ms, "rounds": options.rounds,
            }  # fmt: skip
            words = [json.dumps(plan)]
            for found in guest.figures("tests.bench.resync_guest", words, stage.disks, timeout=1800, memory=_MEMORY):
                yield from _rows(stage, found)


def _rows(stage: Stage, found: dict[str, Any]) -> Iterator[Row]:
    place = {"slow": ", slow", "memory": ", memory"}.get(stage.name, "")
    case = f"{100 * found['share']:g} % {found['shape']}{place}"
    copying = _BAR if stage.speed else None
    direct, journal = found["direct"], found["journal"]
    if not journal["journal"] or direct["journal"]:
        raise RuntimeError(f"{case} did not go the way it was meant to")
    yield Row(case, "direct: copying", direct["copying"], found["bare"], "a bare copy", copying)
    yield Row(
        case, "journal: copying", journal["copying"], found["bare twice"], "a bare copy that writes twice", copying
    )
    best = min(seconds for seconds in found["peers"].values() if seconds is not None)
    for name, seconds in found["peers"].items():
        bar = _TIE if stage.speed and seconds in (best, None) else None  # one that failed is not beaten
        yield Row(case, "direct: copying", direct["copying"], seconds, name, bar)
    whole = sum(direct[part] for part in ("start", "copying", "barrier", "end"))
    yield Row(case, "direct: whole run", whole, best, "the fastest peer")
    for way, took in (("direct", direct), ("journal", journal)):
        yield Row(case, f"{way}: MiB copied", took["mib"], found["mib"], "stale MiB", _MOST_COPIED)
    for part in ("start", "barrier", "end"):
        yield Row(case, f"direct: {part}", direct[part])
    yield Row(case, "a bare copy: its slowest round", found["slowest bare"], found["bare"], "its fastest")
