# SPDX-License-Identifier: GPL-2.0-or-later
"""How long an era target is held up by a suspend and a resume in process, beside dmsetup's, in a VM."""

import argparse
from collections.abc import Iterator

from dmsoft.units import MIB
from tests.bench import guest
from tests.bench.rows import Row
from tests.harness import vm


def measure(arguments: list[str]) -> Iterator[Row]:
    """``ours`` and ``reference`` are medians in ms."""
    parser = argparse.ArgumentParser(prog="dev bench suspend")
    parser.add_argument("--times", type=int, default=31, help="how often each is done (default %(default)s)")
    options = parser.parse_args(arguments)
    disks = [vm.Disk("metadata", size=8 * MIB), vm.Disk("origin", size=16 * MIB)]
    for found in guest.figures("tests.bench.suspend_guest", [str(options.times)], disks, timeout=300):
        for what, (ours, theirs) in found.items():
            yield Row("era", f"{what}, ms", ours, theirs, "dmsetup", 1.0)
