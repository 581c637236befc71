# SPDX-License-Identifier: GPL-2.0-or-later
"""What grows with a disk, in VMs: a whole life of a mirror whose disks are far larger than what lies behind them.

Time and memory are those of each verb as a whole process, most of it the start of Python; a figure beside it is that of
the first size. Nothing is copied but what was written: a first copy takes as long as the disks do.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from dmsoft.units import KIB, MIB, format_size, parse_size
from tests.bench import guest
from tests.bench.rows import Row
from tests.bench.scale_guest import DISK_BYTES
from tests.harness import vm

_SIZES = "1T,16T,256T"
_MEMORY = 3072
# Times the memory that the same verb takes for the first size. The set of a secondary's blocks is 2 MiB for 16 million.
_BAR = 1.5


def measure(arguments: list[str]) -> Iterator[Row]:
    """Rows for each size; ``ours`` and ``reference`` are seconds, MiB or ms."""
    parser = argparse.ArgumentParser(prog="dev bench scale")
    parser.add_argument("--sizes", default=_SIZES, help="default: %(default)s; 64T:4M has blocks of 4 MiB")
    parser.add_argument("--written", type=int, default=200, help="blocks that are stale (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    first: dict[str, float] = {}
    for words in options.sizes.split(","):
        size, _, block = words.partition(":")
        given = [
            str(parse_size(size)),
            str(options.written),
            str(options.seed),
            *(["--block-size", block] * bool(block)),
        ]
        disks = [vm.Disk("big", size=DISK_BYTES)]
        for found in guest.figures("tests.bench.scale_guest", given, disks, timeout=3600, memory=_MEMORY):
            for row in _rows(words, found):
                yield row if row.metric not in first else _beside(row, first[row.metric], options.sizes.split(",")[0])
                first.setdefault(row.metric, row.ours)


def _rows(case: str, found: dict[str, Any]) -> Iterator[Row]:
    what = found["what"]
    if what == "create":
        sizes = {"block": found["block_bytes"], **found["regions"]}
        for name in ("block", "metadata", "slots"):
            yield Row(case, f"{name}: MiB", sizes[name] / MIB)
        yield Row(case, "header: KiB", found["header"] / KIB)
    if what == "status":
        yield Row(case, "metadata in use: MiB", found["era"]["metadata_used"] * 4096 / MIB)
    yield Row(case, f"{what}: seconds", found["seconds"])
    if what != "write":
        yield Row(case, f"{what}: seconds of processor", found["cpu"])
        yield Row(case, f"{what}: MiB of memory", found["peak"] / MIB)
    if what == "resync":
        yield Row(case, "resync: longest standstill, ms", found["stall_ms"])


def _beside(row: Row, first: float, name: str) -> Row:
    bar = _BAR if row.metric.endswith("of memory") else None
    return Row(row.case, row.metric, row.ours, first, f"{format_size(parse_size(name))}", bar)
