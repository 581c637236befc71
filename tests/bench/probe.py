# SPDX-License-Identifier: GPL-2.0-or-later
"""What udev's probe costs beside the least that a Python program costs: both run once for every block device."""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dmsoft.hotplug import probe
from tests.bench.rows import Row
from tests.header_model import member

_PYTHON = ("/usr/bin/python3", "-I", "-S")
_BAR = 1.5


def measure(arguments: list[str]) -> Iterator[Row]:
    """One row for a member and one for a disk that is none: milliseconds, the quickest of many runs in turn."""
    parser = argparse.ArgumentParser(prog="dev bench probe")
    parser.add_argument("--runs", type=int, default=60, help="of each (default %(default)s)")
    runs = parser.parse_args(arguments).runs
    with tempfile.TemporaryDirectory(prefix="dmsoft-bench-") as folder:
        ours, other = Path(folder, "member"), Path(folder, "other")
        ours.write_bytes(bytes(member(1).medium))
        other.write_bytes(bytes(1 << 20))
        for case, disk in (("a member", ours), ("another disk", other)):
            script: tuple[str, ...] = (*_PYTHON, str(probe.__file__), str(disk))
            times = [(_seconds(script), _seconds((*_PYTHON, "-c", "pass"))) for _ in range(runs)]
            mine, bare = (1000 * min(column) for column in zip(*times, strict=True))
            yield Row(case, "ms a run", mine, bare, "python3 -I -S -c pass", _BAR)


def _seconds(argv: tuple[str, ...]) -> float:
    begin = time.perf_counter()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin
