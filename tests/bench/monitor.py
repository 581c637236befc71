# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon costs while there is little or nothing to do: its processor time, workers included, in a VM."""

import argparse
from collections.abc import Iterator

from dmsoft.units import MIB
from tests.bench import guest
from tests.bench.rows import Row
from tests.harness import vm


def measure(arguments: list[str]) -> Iterator[Row]:
    """Percent of one processor over a while: nothing is written; then a block now and then, which is copied in time."""
    parser = argparse.ArgumentParser(prog="dev bench monitor")
    parser.add_argument("--seconds", type=int, default=60, help="of each case (default %(default)s)")
    options = parser.parse_args(arguments)
    disks = [vm.Disk(serial, size=96 * MIB) for serial in ("p", "s")]
    for found in guest.figures("tests.bench.monitor_guest", [str(options.seconds)], disks, timeout=900):
        bar = 1.0 if found["case"] == "idle" else None
        yield Row(found["case"], "% of a processor", found["percent"], 1.0, "1 %", bar)
