# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's part of ``bench throttle``: one JSON line with what a load met alone and beside resyncs, and how fast these
went."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from dmsoft.mirror.progress import published
from dmsoft.mirror.start import uuid_of

_BY_ID = Path("/dev/disk/by-id")
_NAME = "bench"
# Written anew after each barrier, block by block: so few that this is not what the percentile shows.
_SPAN = "8m"
_WARM_SECONDS, _IDLE_SECONDS = 3.0, 6.0


def dmsoft(*words: str) -> None:
    subprocess.run(["dmsoft", *words], check=True, stdout=subprocess.DEVNULL)


def fio(iops: int, seconds: int) -> dict[str, float]:
    """Mean and 99th percentile of reads and writes together, in ms."""
    argv = ["fio", "--name=load", f"--filename=/dev/mapper/{_NAME}", "--direct=1", "--ioengine=psync", "--rw=randrw",
            "--bs=4k", f"--size={_SPAN}", f"--rate_iops={iops},{iops}", "--time_based", f"--runtime={seconds}",
            "--unified_rw_reporting=1", "--output-format=json"]  # fmt: skip
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
        fio(iops, int(_WARM_SECONDS))
        mark = resync.mark()
        found = fio(iops, seconds)
        return found | {"mib_a_second": resync.speed(mark)}


def idle(rate: str) -> float:
    with Resync(rate) as resync:
        mark = resync.mark()
        time.sleep(_IDLE_SECONDS)
        return resync.speed(mark)


def main(iops: int, seconds: int) -> None:
    dmsoft("create", _NAME, "--primary", str(_BY_ID / "virtio-p"), "--secondary", f"s={_BY_ID / 'virtio-s'}", "--yes")
    fio(iops, seconds)  # the first writes to a sparse file measure the file
    first = fio(iops, seconds)
    adaptive = beside("adaptive", iops, seconds)
    second = fio(iops, seconds)
    alone = {key: (first[key] + second[key]) / 2 for key in first}
    dmsoft("remove", _NAME, "s", "--yes")
    dmsoft("add", _NAME, f"s={_BY_ID / 'virtio-s'}", "--yes")
    most = beside("max", iops, seconds)
    speeds = {rate: idle(rate) for rate in ("adaptive", "max")}
    print(json.dumps({"alone": alone, "adaptive": adaptive, "max": most, "idle": speeds}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
