# SPDX-License-Identifier: GPL-2.0-or-later
"""Catching up a secondary beside other ways to the same end, in a VM: the same dirty set, one way after the other.

The bare copy is the limit: the same extents by the simplest parallel program with direct I/O. With the journal
everything is written twice, so it is held against a bare copy that does the same. mdadm re-adds a disk by its bitmap.
"""

import argparse
import random
from collections.abc import Iterator
from typing import Any

from dmsoft.units import MIB
from tests.bench import guest
from tests.bench.rows import Row
from tests.harness import vm

# Times, so at least 0.90 of the bare copy's rate.
_BAR = 1 / 0.90
_MOST_COPIED = 1.01
_CASES = "0.01:scattered,0.1:scattered,0.01:clustered,0.1:clustered,1:all"
_DATA = 600 * MIB
_JOURNAL = 700 * MIB


def measure(arguments: list[str]) -> Iterator[Row]:
    """Rows for each dirty set; ``ours`` and ``reference`` are seconds of copying, or MiB."""
    parser = argparse.ArgumentParser(prog="dev bench resync")
    parser.add_argument("--cases", default=_CASES, help="share:shape of the dirty set (default %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args(arguments)
    sizes = {"p": _DATA, "s": _DATA + _JOURNAL, "x": _DATA + _JOURNAL, "md0": _DATA, "md1": _DATA}
    disks = [vm.Disk(serial, size=size) for serial, size in sizes.items()]
    words = [options.cases, str(_JOURNAL), str(options.seed)]
    for found in guest.figures("tests.bench.resync_guest", words, disks, timeout=1800):
        yield from _rows(found)


def _rows(found: dict[str, Any]) -> Iterator[Row]:
    case = f"{100 * found['share']:g} % {found['shape']}"
    yield Row(case, "direct: seconds", found["direct"], found["bare"], "a bare copy", _BAR)
    yield Row(case, "journal: seconds", found["journal"], found["bare twice"], "a bare copy that writes twice", _BAR)
    yield Row(case, "direct: seconds", found["direct"], found["mdadm --re-add"], "mdadm --re-add", 1.0)
    yield Row(case, "direct, all of the command: seconds", found["direct whole"], found["mdadm --re-add"], "mdadm")
    for way in ("direct", "journal"):
        yield Row(case, f"{way}: MiB copied", found[f"{way} copied"], found["mib"], "stale MiB", _MOST_COPIED)
    if not found["journal through the journal"]:
        raise RuntimeError(f"{case} did not go through the journal")
    if "compare" in found:
        yield Row(case, "direct: seconds", found["direct"], found["compare"], "reading both disks whole")
