# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's part of ``bench monitor``: one JSON line a case."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.resync_guest import disk, dmsoft

_SETTLE_SECONDS = 20
_TICKS = os.sysconf("SC_CLK_TCK")


def ticks(pid: int) -> int:
    """Processor time of a process and of its children that it has reaped (proc(5): utime, stime, cutime, cstime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def percent(pid: int, seconds: float, *, pause: float, write: bool) -> float:
    """Of one processor, while a block is written or not after each ``pause``."""
    before, end, block = ticks(pid), time.monotonic() + seconds, 0
    fd = os.open("/dev/mapper/bench", os.O_RDWR | os.O_SYNC)
    while time.monotonic() < end:
        if write:
            os.pwrite(fd, os.urandom(4096), (block := (block + 1) % 64) << 20)
        time.sleep(pause)
    os.close(fd)
    return 100 * (ticks(pid) - before) / _TICKS / seconds


def main(seconds: float) -> None:
    dmsoft("create", "bench", "--primary", disk("p"), "--secondary", f"s={disk('s')}", "--interval", "30s", "--yes")
    dmsoft("resync", "bench")
    daemon = subprocess.Popen([sys.executable, "-m", "dmsoft.cli", "monitor"], stderr=subprocess.DEVNULL)
    time.sleep(_SETTLE_SECONDS)
    for case, write in (("idle", False), ("a write in 2 s", True)):
        print(json.dumps({"case": case, "percent": percent(daemon.pid, seconds, pause=2, write=write)}), flush=True)
    daemon.terminate()
    daemon.wait()
    dmsoft("stop", "bench")


if __name__ == "__main__":
    main(float(sys.argv[1]))
