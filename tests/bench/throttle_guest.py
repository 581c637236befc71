# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's part of ``bench throttle``: one JSON line with what a load met alone and beside resyncs, and how fast these
went."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dmsoft.mirror.progress import published
from dmsoft.mirror.start import uuid_of
from dmsoft.units import KIB

_NAME = "bench"
_SECONDARY = "/dev/disk/by-id/virtio-s"
_NULL = Path("/sys/kernel/config/nullb/nullb0")
_WRITERS = 4
# The most that a request takes at once; larger ones become several.
_REQUEST_BYTES = 128 * KIB
# Written anew after each barrier, block by block: so few that this is not what the percentile shows.
_SPAN = "8m"
_WARM_SECONDS, _IDLE_SECONDS = 5, 6.0


def dmsoft(*words: str) -> None:
    subprocess.run(["dmsoft", *words], check=True, stdout=subprocess.DEVNULL)


def disk(ms: float, size: int) -> str:
    """One that serves one request at a time and takes so long for it (Documentation/block/null_blk.rst)."""
    subprocess.run(["modprobe", "configfs"], check=True)
    subprocess.run(["modprobe", "null_blk", "nr_devices=0"], check=True)
    if not os.path.ismount("/sys/kernel/config"):
        subprocess.run(["mount", "-t", "configfs", "configfs", "/sys/kernel/config"], check=True)
    _NULL.mkdir()
    values = {"size": size >> 20, "memory_backed": 1, "irqmode": 2, "completion_nsec": int(ms * 1e6)}
    values["max_sectors"] = _REQUEST_BYTES // 512
    for name, value in (values | {"hw_queue_depth": 1, "submit_queues": 1, "power": 1}).items():
        (_NULL / name).write_text(str(value))
    name = f"nullb{(_NULL / 'index').read_text().strip()}"
    subprocess.run(["udevadm", "settle"], check=True)
    return f"/dev/{name}"


def fio(iops: int, seconds: int) -> dict[str, float]:
    """Mean and 99th percentile of reads and writes together, in ms, after some seconds of the same load."""
    rate = iops // (2 * _WRITERS) or 1
    argv = ["fio", "--name=load", f"--filename=/dev/mapper/{_NAME}", "--direct=1", "--ioengine=psync", "--rw=randrw",
            "--bs=4k", f"--size={_SPAN}", f"--rate_iops={rate},{rate}", "--rate_process=poisson",
            f"--numjobs={_WRITERS}", "--thread", "--group_reporting", "--time_based", f"--ramp_time={_WARM_SECONDS}",
            f"--runtime={seconds}", "--unified_rw_reporting=1", "--output-format=json"]  # fmt: skip
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    latency = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["mixed"]["clat_ns"]
    return {"mean_ms": latency["mean"] / 1e6, "p99_ms": latency["percentile"]["99.000000"] / 1e6}


class Resync:
    """One that runs until the block ends, and is cancelled then."""

    def __init__(self, rate: str) -> None:
        self._process = subprocess.Popen(
            ["dmsoft", "resync", _NAME, "--direct", "--rate", rate],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._uuid = uuid_of(_NAME)

    def __enter__(self) -> "Resync":
        while self.done() == 0:
            if self._process.poll() is not None:
                raise RuntimeError("the resync ended before it was measured")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    def done(self) -> int:
        """Bytes so far."""
        said = published(self._uuid)
        return 0 if said is None else said.bytes_done

    def speed(self, since: tuple[float, int]) -> float:
        """MiB a second since then."""
        if self._process.poll() is not None:
            raise RuntimeError("the resync ended while it was measured")
        return (self.done() - since[1]) / (time.monotonic() - since[0]) / (1 << 20)

    def mark(self) -> tuple[float, int]:
        return time.monotonic(), self.done()


def beside(rate: str, iops: int, seconds: int) -> dict[str, float]:
    with Resync(rate) as resync:
        mark = resync.mark()
        return fio(iops, seconds) | {"mib_a_second": resync.speed(mark)}


def idle(rate: str) -> float:
    with Resync(rate) as resync:
        mark = resync.mark()
        time.sleep(_IDLE_SECONDS)
        return resync.speed(mark)


def main(ms: float, iops: int, seconds: int, size: int) -> None:
    dmsoft("create", _NAME, "--primary", disk(ms, size), "--secondary", f"s={_SECONDARY}", "--yes")
    first = fio(iops, seconds)
    adaptive = beside("adaptive", iops, seconds)
    second = fio(iops, seconds)
    alone = {key: (first[key] + second[key]) / 2 for key in first}
    dmsoft("remove", _NAME, "s", "--yes")
    dmsoft("add", _NAME, f"s={_SECONDARY}", "--yes")
    most = beside("max", iops, seconds)
    speeds = {rate: idle(rate) for rate in ("adaptive", "max")}
    print(json.dumps({"alone": alone, "adaptive": adaptive, "max": most, "idle": speeds}), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
