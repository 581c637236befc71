# SPDX-License-Identifier: GPL-2.0-or-later
"""What a resync costs those who use the primary meanwhile, in a VM whose primary moves so many bytes a second.

A load at a fixed rate is measured alone, beside a resync as it is by default, alone again, and beside one that does not
hold back. Their 99th percentiles are held against the mean of the two alone.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from dmsoft.units import GIB, MIB
from tests.bench import guest
from tests.bench.rows import Row
from tests.harness import vm

_BAR = 1.5
_SPEEDS = "60,200"
_DISK = 4 * GIB


def measure(arguments: list[str]) -> Iterator[Row]:
    """Rows for each speed of the primary; ``ours`` and ``reference`` are ms, or MiB a second."""
    parser = argparse.ArgumentParser(prog="dev bench throttle")
    parser.add_argument("--speeds", default=_SPEEDS, help="MiB a second of the primary (default %(default)s)")
    parser.add_argument("--iops", type=int, default=100, help="of reads and of writes (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=15, help="of each run (default %(default)s)")
    options = parser.parse_args(arguments)
    for speed in map(int, options.speeds.split(",")):
        disks = [vm.Disk("p", size=_DISK, speed=speed * MIB), vm.Disk("s", size=_DISK)]
        words = [str(options.iops), str(options.seconds)]
        for found in guest.figures("tests.bench.throttle_guest", words, disks, timeout=600):
            yield from _rows(f"{speed} MiB/s", speed, found)


def _rows(case: str, speed: int, found: dict[str, Any]) -> Iterator[Row]:
    for way, bar in (("adaptive", _BAR), ("max", None)):
        name = f"--rate {way}"
        yield Row(case, f"{name}: p99 ms", found[way]["p99_ms"], found["alone"]["p99_ms"], "no resync", bar)
        yield Row(case, f"{name}: mean ms", found[way]["mean_ms"], found["alone"]["mean_ms"], "no resync")
        yield Row(case, f"{name}: resync, MiB/s", found[way]["mib_a_second"], speed, "the primary's speed")
    yield Row(case, "idle primary: resync, MiB/s", found["idle"]["adaptive"], found["idle"]["max"], "--rate max")
