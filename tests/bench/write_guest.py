# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's part of ``bench write``: runs fio on the bare primary and on mirrors in turn, prints a JSON line a load."""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dmsoft.mirror import locate
from dmsoft.mirror.barrier import barrier
from dmsoft.mirror.running import Running, guard_of
from dmsoft.units import GIB, KIB, MIB

_BY_ID = Path("/dev/disk/by-id")
_PRIMARY, _SECONDARY, _METADATA = (_BY_ID / f"virtio-{name}" for name in ("primary", "secondary", "metadata"))
_NAME = "bench"
# The mirror and the bare primary are written in turns of so long.
_TURN_SECONDS = 10
# The working set. fio's words and the bytes of one request for each load.
_SPAN = GIB
_LOADS = {
    "random-1": (("--rw=randwrite", "--bs=4k", "--fdatasync=1"), 4 * KIB),
    "random-16": (("--rw=randwrite", "--bs=4k", "--fdatasync=1", "--numjobs=16", "--thread"), 4 * KIB),
    "sequential": (("--rw=write", "--bs=1m"), MIB),
}


@dataclass(frozen=True)
class Load:
    """What fio runs did: milliseconds a request (the median of the runs), and bytes written."""

    ms: float
    written: int

    @classmethod
    def of(cls, runs: "list[Load]") -> "Load":
        return cls(statistics.median(run.ms for run in runs), sum(run.written for run in runs))


@dataclass(frozen=True)
class Place:
    """Where to write: the working set begins at ``offset``."""

    device: Path
    offset: int = 0

    def fio(self, load: str, seconds: int) -> Load:
        words, request = _LOADS[load]
        argv = ["fio", f"--name={load}", f"--filename={self.device}", f"--offset={self.offset}", f"--size={_SPAN}",
                "--direct=1", "--ioengine=psync", f"--runtime={seconds}", "--time_based", "--group_reporting",
                "--output-format=json", *words]  # fmt: skip
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["write"]
        return Load(1000 * seconds / result["total_ios"], result["total_ios"] * request)


def measure(size: int, place: str, load: str, seconds: int, warm_up: int) -> dict[str, object]:
    """One mirror, and its primary past the mirror. They take turns: what else the machine does meets both alike."""
    words = ["--metadata", str(_METADATA)] if place == "separate" else []
    dmsoft("create", _NAME, "--primary", str(_PRIMARY), "--secondary", f"s={_SECONDARY}",
           "--block-size", str(size), "--yes", *words)  # fmt: skip
    running = Running.of(locate.assemble(_NAME))
    bare, top = Place(_PRIMARY, running.data.offset), Place(Path(running.names.top.path))
    with running.era_reader() as reader:
        with guard_of(running, coupled=False) as guard, barrier(running.names, guard, freeze=False):
            era = reader.superblock().current_era + 1
        first, bare_first = top.fio(load, warm_up), bare.fio(load, warm_up)
        ours, theirs = [], []
        for turn in range(max(seconds // _TURN_SECONDS, 1)):
            turns = [(top, ours), (bare, theirs)]
            for where, runs in turns if turn % 2 else reversed(turns):
                runs.append(where.fio(load, min(seconds, _TURN_SECONDS)))
        stale = reader.written_since(era).blocks.count() * size
    dmsoft("destroy", _NAME, "--yes")
    then, reference = Load.of(ours), Load.of(theirs)
    return {
        "block_bytes": size, "place": place, "load": load, "first_ms": first.ms, "ms": then.ms,
        "bare_first_ms": bare_first.ms, "bare_ms": reference.ms,
        "stale": stale, "written": first.written + then.written,
    }  # fmt: skip


def dmsoft(*words: str) -> None:
    subprocess.run(["dmsoft", *words], check=True, stdout=subprocess.DEVNULL)


def main(seconds: int, warm_up: int, sizes: list[int], loads: list[str], places: list[str]) -> None:
    # The first writes to a sparse file measure the file.
    subprocess.run(["dd", "if=/dev/zero", f"of={_PRIMARY}", "bs=1M", "oflag=direct"], check=False, capture_output=True)
    for load in loads:
        for place in places:
            for size in sizes:
                print(json.dumps(measure(size, place, load, seconds, warm_up)), flush=True)


if __name__ == "__main__":
    lists = [words.split(",") for words in sys.argv[3:6]]
    main(int(sys.argv[1]), int(sys.argv[2]), [int(size) for size in lists[0]], lists[1], lists[2])
