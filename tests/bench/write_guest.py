# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's part of ``bench write``: runs fio on the bare primary and on mirrors in turn, prints a JSON line a load."""

import json
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
# The working set. fio's words and the bytes of one request for each load.
_SPAN = GIB
_LOADS = {
    "random-1": (("--rw=randwrite", "--bs=4k", "--fdatasync=1"), 4 * KIB),
    "random-16": (("--rw=randwrite", "--bs=4k", "--fdatasync=1", "--numjobs=16", "--thread"), 4 * KIB),
    "sequential": (("--rw=write", "--bs=1m"), MIB),
}


@dataclass(frozen=True)
class Load:
    """What one fio run did: milliseconds a request, and bytes written."""

    ms: float
    written: int


def fio(device: Path, load: str, seconds: int) -> Load:
    """Write to the first GiB of ``device`` for that long. The next run goes on where this one's cache state is."""
    words, request = _LOADS[load]
    argv = ["fio", f"--name={load}", f"--filename={device}", "--direct=1", "--ioengine=psync", f"--size={_SPAN}",
            f"--runtime={seconds}", "--time_based", "--group_reporting", "--output-format=json", *words]  # fmt: skip
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["write"]
    return Load(1000 * seconds / result["total_ios"], result["total_ios"] * request)


def bare(load: str, seconds: int, warm_up: int) -> tuple[Load, Load]:
    return fio(_PRIMARY, load, warm_up), fio(_PRIMARY, load, seconds)


def mirrored(size: int, place: str, load: str, seconds: int, warm_up: int) -> tuple[Load, Load, int]:
    """The warm-up after a barrier, the run, and the bytes that a resync would copy after both."""
    words = ["--metadata", str(_METADATA)] if place == "separate" else []
    dmsoft("create", _NAME, "--primary", str(_PRIMARY), "--secondary", f"s={_SECONDARY}",
           "--block-size", str(size), "--yes", *words)  # fmt: skip
    running = Running.of(locate.assemble(_NAME))
    top = Path(running.names.top.path)
    with running.era_reader() as reader:
        with guard_of(running, coupled=False) as guard, barrier(running.names, guard, freeze=False):
            era = reader.superblock().current_era + 1
        first, then = fio(top, load, warm_up), fio(top, load, seconds)
        stale = reader.written_since(era).blocks.count() * size
    dmsoft("destroy", _NAME, "--yes")
    return first, then, stale


def dmsoft(*words: str) -> None:
    subprocess.run(["dmsoft", *words], check=True, stdout=subprocess.DEVNULL)


def main(seconds: int, warm_up: int, sizes: list[int], loads: list[str], places: list[str]) -> None:
    for load in loads:
        bare(load, warm_up, warm_up)  # the first writes to a sparse file measure the file
    for load in loads:
        before = bare(load, seconds, warm_up)
        for place in places:
            for size in sizes:
                first, then, stale = mirrored(size, place, load, seconds, warm_up)
                after = bare(load, seconds, warm_up)
                figures = {
                    "block_bytes": size, "place": place, "load": load,
                    "first_ms": first.ms, "ms": then.ms, "stale": stale, "written": first.written + then.written,
                    "bare_first_ms": (before[0].ms + after[0].ms) / 2, "bare_ms": (before[1].ms + after[1].ms) / 2,
                }  # fmt: skip
                print(json.dumps(figures), flush=True)
                before = after


if __name__ == "__main__":
    lists = [words.split(",") for words in sys.argv[3:6]]
    main(int(sys.argv[1]), int(sys.argv[2]), [int(size) for size in lists[0]], lists[1], lists[2])
