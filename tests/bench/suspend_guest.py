# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's part of ``bench suspend``: one JSON line of medians, ours and dmsetup's, taken in turns."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from dmsoft.dm import memory
from dmsoft.dm.device import Device
from dmsoft.dm.targets import Era, single
from dmsoft.dm.task import prepare
from dmsoft.units import KIB, MIB, SECTOR, Sectors

_BLOCK = 64 * KIB
_SIZE = 16 * MIB


def milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def dmsetup(*words: str) -> None:
    subprocess.run(["dmsetup", *words], check=True)


def main(times: int) -> None:
    metadata, origin = (os.path.realpath(f"/dev/disk/by-id/virtio-{name}") for name in ("metadata", "origin"))
    era = Device("bench-era", "DMSOFT-bench-era")
    era.create()
    era.load(single(Sectors(_SIZE // SECTOR), Era(metadata, origin, Sectors(_BLOCK // SECTOR))))
    era.resume()
    prepare()
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    top = os.open(era.path, os.O_RDWR | os.O_DSYNC)
    for at in range(times):
        os.pwrite(top, b"o" * 4096, at * _BLOCK % _SIZE)
        with memory.locked():
            suspend = milliseconds(lambda: era.suspend(lockfs=False))
            started = time.perf_counter()
            cookie = era.resume(wait=False)
            ours.append((suspend, (time.perf_counter() - started) * 1000))
        if cookie is not None:
            cookie.wait()
        os.pwrite(top, b"t" * 4096, at * _BLOCK % _SIZE)
        theirs.append((
            milliseconds(lambda: dmsetup("suspend", "--nolockfs", era.name)),
            milliseconds(lambda: dmsetup("resume", era.name)),
        ))  # fmt: skip
    os.close(top)
    medians = [[statistics.median(column) for column in zip(*found, strict=True)] for found in (ours, theirs)]
    print(json.dumps(dict(zip(("suspend", "resume"), zip(*medians, strict=True), strict=True))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
