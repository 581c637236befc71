# SPDX-License-Identifier: GPL-2.0-or-later
"""What tracking costs: writes to a mirror beside the same writes to the bare primary, for several block sizes, in a VM.

A barrier comes first. Then the first write to each block costs a commit of the metadata, which a mirror meets once in
each interval: the warm-up is what follows a barrier, the run itself what the rest of an interval is like. The mirror
and its bare primary take turns of ten seconds, and the medians of both are compared. Both parts together stand for a
whole default interval, where the working set was marked by the end of the warm-up.

The disks take as many requests and bytes a second as a good SATA SSD takes small writes with a flush after each.
Without a limit a VM's disks are as fast as the host's memory, and what shows is the emulated processor.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from dmsoft.mirror.create import DEFAULT_BLOCK_BYTES, DEFAULT_INTERVAL
from dmsoft.units import KIB, MIB, format_size
from tests.bench import guest
from tests.bench.rows import Row
from tests.harness import vm

# Times, so at least 0.90 of the bare device's rate.
_BAR = 1 / 0.90
_SIZES = (64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB)
_LOADS = ("random-1", "random-16", "sequential")
_DISK = 1400 * MIB


def measure(arguments: list[str]) -> Iterator[Row]:
    """Rows for each load, place of the metadata and block size; ``ours`` and ``reference`` are ms a request."""
    parser = argparse.ArgumentParser(prog="dev bench write")
    parser.add_argument("--seconds", type=int, default=60, help="of each run (default %(default)s)")
    parser.add_argument("--warm-up", type=int, default=10, help="seconds before it (default %(default)s)")
    parser.add_argument("--sizes", default=",".join(map(str, _SIZES)), help="bytes of a block (default %(default)s)")
    parser.add_argument("--loads", default=",".join(_LOADS), help="default %(default)s")
    parser.add_argument("--places", default="primary,separate", help="of the metadata (default %(default)s)")
    parser.add_argument("--iops", type=int, default=2000, help="of each disk, 0: no limit (default %(default)s)")
    parser.add_argument("--speed", type=int, default=400, help="of each disk in MiB/s (default %(default)s)")
    options = parser.parse_args(arguments)
    cases = [len(words.split(",")) for words in (options.sizes, options.loads, options.places)]
    seconds = cases[0] * cases[1] * cases[2] * (2 * options.seconds + 3 * options.warm_up + 60)
    sizes = {"primary": _DISK, "secondary": _DISK, "metadata": 256 * MIB}
    disks = [vm.Disk(n, size=size, speed=options.speed * MIB, iops=options.iops) for n, size in sizes.items()]
    words = [str(options.seconds), str(options.warm_up), options.sizes, options.loads, options.places]
    for found in guest.figures("tests.bench.write_guest", words, disks, timeout=900 + 2 * seconds):
        yield from _rows(found, options.warm_up)


def _rows(found: dict[str, Any], warm_up: int) -> Iterator[Row]:
    case = f"{format_size(found['block_bytes']).replace(' ', '')} {found['place']}"
    bar = _BAR if found["block_bytes"] == DEFAULT_BLOCK_BYTES and found["place"] == "primary" else None
    load = found["load"]
    yield Row(case, f"{load}: ms a request", found["ms"], found["bare_ms"], "the bare primary", bar)
    yield Row(case, f"{load}: after a barrier", found["first_ms"], found["bare_first_ms"], "the bare primary")
    rest = DEFAULT_INTERVAL - warm_up
    ours, bare = (
        DEFAULT_INTERVAL / (warm_up / found[f"{whose}first_ms"] + rest / found[f"{whose}ms"]) for whose in ("", "bare_")
    )
    yield Row(case, f"{load}: one barrier in {DEFAULT_INTERVAL:.0f} s", ours, bare, "the bare primary")
    yield Row(case, f"{load}: MiB to copy", found["stale"] / MIB, found["written"] / MIB, "MiB written, repeats too")
