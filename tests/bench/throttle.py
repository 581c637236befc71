# SPDX-License-Identifier: GPL-2.0-or-later
"""What a resync costs those who use the primary meanwhile, in a VM.

Four writers and readers send requests at random times, so many a second. They are measured alone, beside a resync as it
is by default, alone again, and beside one that does not hold back, each after some seconds of the same. Their 99th
percentiles are held against the mean of the two alone.

The primary is a disk that serves one request at a time, each in a time of its own, so that who comes next has to wait:
the kernel's null_blk. A disk whose bytes a second a VM limits makes nobody wait until it is at its limit.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from dmsoft.units import GIB
from tests.bench import guest
from tests.bench.rows import Row
from tests.harness import vm

_BAR = 1.5
_TIMES = "1,4"
_DISK = 8 * GIB


def measure(arguments: list[str]) -> Iterator[Row]:
    """Rows for each kind of disk; ``ours`` and ``reference`` are ms, or MiB a second."""
    parser = argparse.ArgumentParser(prog="dev bench throttle")
    parser.add_argument("--times", default=_TIMES, help="ms a request takes on the primary (default %(default)s)")
    parser.add_argument("--load", type=float, default=0.2, help="share of the disk's time (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=20, help="of each run (default %(default)s)")
    options = parser.parse_args(arguments)
    for ms in map(float, options.times.split(",")):
        iops = int(1000 * options.load / ms)
        words = [str(ms), str(iops), str(options.seconds), str(_DISK)]
        disks = [vm.Disk("s", size=_DISK)]
        for found in guest.figures("tests.bench.throttle_guest", words, disks, timeout=600, memory=2048):
            yield from _rows(f"{ms:g} ms", found)


def _rows(case: str, found: dict[str, Any]) -> Iterator[Row]:
    for way, bar in (("adaptive", _BAR), ("max", None)):
        name = f"--rate {way}"
        yield Row(case, f"{name}: p99 ms", found[way]["p99_ms"], found["alone"]["p99_ms"], "no resync", bar)
        yield Row(case, f"{name}: mean ms", found[way]["mean_ms"], found["alone"]["mean_ms"], "no resync")
        yield Row(case, f"{name}: resync, MiB/s", found[way]["mib_a_second"], found["idle"]["max"], "an idle primary")
    yield Row(case, "idle primary: resync, MiB/s", found["idle"]["adaptive"], found["idle"]["max"], "--rate max")
