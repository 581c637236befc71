# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's part of ``bench scale``: mirrors of disks that are far larger than anything behind them."""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmsoft.member import header
from dmsoft.member.payload import Primary
from dmsoft.units import GIB, KIB, SECTOR
from tests.bench.as_copied import assume_equal
from tests.vm.rig import read

NAME, LABEL = "scale", "s"
DISK_BYTES = 64 * GIB
# What is before the data of a member lies on a disk of the VM as it is; of the data only what is written.
_HEAD_BYTES, _STORE_BYTES = 16 * GIB, 4 * GIB
_CHUNK_SECTORS = 32
_MEASURE = Path(__file__).with_name("era_measure.py")


def sh(*argv: str) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


class Vast:
    """A device of ``size_bytes`` on some GiB of ``disk`` from ``start`` on, zero where it was not written; a context
    manager."""

    def __init__(self, name: str, disk: str | Path, start: int, size_bytes: int) -> None:
        self._name, self._disk, self._start, self._size = f"vast-{name}", disk, start, size_bytes
        self.path = f"/dev/mapper/{self._name}"

    def __enter__(self) -> "Vast":
        start, head, store, size = (x // SECTOR for x in (self._start, _HEAD_BYTES, _STORE_BYTES, self._size))
        self._make("-store", f"0 {store} linear {self._disk} {start + head}")
        self._make("-zero", f"0 {size - head} zero")
        # A snapshot of nothing, as the kernel's zero.rst has it.
        below = f"{self.path}-zero {self.path}-store"
        self._make("-rest", f"0 {size - head} snapshot {below} N {_CHUNK_SECTORS}")
        self._make("", f"0 {head} linear {self._disk} {start}\n{head} {size - head} linear {self.path}-rest 0")
        return self

    def __exit__(self, *_: object) -> None:
        for layer in ("", "-rest", "-zero", "-store"):
            sh("dmsetup", "remove", "--retry", self._name + layer)

    def _make(self, layer: str, table: str) -> None:
        sh("dmsetup", "create", self._name + layer, "--table", table)


@dataclass(frozen=True)
class Took:
    """What a verb took as a whole process: ``cpu`` seconds of a processor, ``peak`` bytes of memory; ``said``: the last
    line of its output."""

    seconds: float
    cpu: float
    peak: int
    said: dict[str, Any]


def verb(*words: str) -> Took:
    """Run ``dmsoft``; raises RuntimeError unless it is done."""
    program = Path(sys.executable).with_name("dmsoft")
    with tempfile.TemporaryFile("w+") as out:
        # What it prints would come before the figures, and may be long.
        argv = [sys.executable, "-I", str(_MEASURE), "/bin/sh", "-c", 'exec "$0" "$@" >&2', str(program), *words]
        done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, stderr=out, text=True)
        out.seek(0)
        text = out.read()
    figures = json.loads(done.stdout)
    if figures["status"]:
        raise RuntimeError(f"dmsoft {' '.join(words)}: exit status {figures['status']}: {text[-2000:]}")
    said = json.loads(text.splitlines()[-1]) if "--json" in words else {}
    return Took(figures["seconds"], figures["cpu_seconds"], figures["peak_bytes"], said)


def scatter(block_bytes: int, blocks: int, count: int, chance: random.Random) -> list[int]:
    """Write 4 KiB to ``count`` blocks from the first to the last; returns them."""
    chosen = sorted({0, blocks - 1, *chance.sample(range(blocks), count - 2)})
    with open(f"/dev/mapper/{NAME}", "r+b", buffering=0) as top:
        for block in chosen:
            top.seek(block * block_bytes)
            top.write(chance.randbytes(4 * KIB))
    sh("blockdev", "--flushbufs", f"/dev/mapper/{NAME}")
    return chosen


def life(
    disk: str | Path, size_bytes: int, written: int, seed: int, options: Sequence[str] = ()
) -> Iterator[tuple[str, Took]]:
    """Each verb of a mirror of that size and what it took, in the order of a mirror's life; ``disk`` has `DISK_BYTES`.

    Raises RuntimeError where a verb does not do what it should.
    """
    for module in ("dm_era", "dm_snapshot", "dm_zero", "dm_raid", "dm_delay"):
        sh("modprobe", module)
    sh("blkdiscard", "--force", str(disk))
    with Vast("p", disk, 0, size_bytes) as primary, Vast("s", disk, DISK_BYTES // 2, size_bytes) as secondary:
        words = ["--primary", primary.path, "--secondary", f"{LABEL}={secondary.path}", "--yes", *options]
        created = verb("create", NAME, *words, "--json")
        yield "create", created
        blocks = -(-created.said["size_bytes"] // created.said["block_bytes"])
        yield "stale, all", expect(verb("stale", NAME, LABEL, "--json"), extents=[[0, blocks]])
        assume_equal(NAME, LABEL)
        start = time.monotonic()
        chosen = scatter(created.said["block_bytes"], blocks, written, random.Random(seed))
        yield "write", Took(time.monotonic() - start, 0, 0, {})
        yield "status", verb("status", NAME, "--json")
        listed = verb("stale", NAME, LABEL, "--json")
        if [block for first, count in listed.said["extents"] for block in range(first, first + count)] != chosen:
            raise RuntimeError("the stale set is not what was written")
        yield "stale", listed
        done = verb("resync", NAME, "--rate", "max", "--json")
        yield "resync", expect(done, kind="incremental", converged=True)
        compare(primary.path, secondary.path, created.said["block_bytes"], chosen)
        yield "verify", expect(verb("verify", NAME, "--for", "2s", "--json"), name=NAME)
        yield "stop", verb("stop", NAME, "--json")
        yield "start", expect(verb("start", NAME, "--json"), doubt=None, untracked=None, missing=[])
        again = verb("status", NAME, "--json")
        if again.said["mirrors"][0]["secondaries"][0]["state"] not in ("current", "attached"):
            raise RuntimeError(f"it is not current: {again.said}")
        yield "destroy", verb("destroy", NAME, "--yes", "--json")


def expect(took: Took, **wanted: object) -> Took:
    for name, value in wanted.items():
        if took.said[name] != value:
            raise RuntimeError(f"{name} is {took.said[name]}, not {value}")
    return took


def compare(one: str, other: str, block_bytes: int, blocks: Sequence[int]) -> None:
    """That what was written is on both, byte for byte."""
    places = [header.require(path).payload.regions["data"] for path in (one, other)]
    for block in blocks:
        mine, its = (
            read(path, region.offset + block * block_bytes, 4 * KIB)
            for path, region in zip((one, other), places, strict=True)
        )
        if mine != its or not any(mine):
            raise RuntimeError(f"block {block} was not copied")


def placed(path: str) -> dict[str, int]:
    """Bytes of each region of a primary."""
    payload = header.require(path).payload
    assert isinstance(payload, Primary)
    return {name: region.length for name, region in payload.regions.items()}


def header_bytes(path: str) -> int:
    """What is used of a member's header: the prefix, and the payload, whose length the prefix has at byte 28."""
    prefix = read(path, 0, 4 * KIB)
    return len(prefix) + int.from_bytes(prefix[28:32], "little")


def main(size_bytes: int, written: int, seed: int, options: Sequence[str]) -> None:
    for what, took in life("/dev/disk/by-id/virtio-big", size_bytes, written, seed, options):
        figures: dict[str, Any] = {"what": what, "seconds": took.seconds, "cpu": took.cpu, "peak": took.peak}
        if what == "create":
            primary = "/dev/mapper/vast-p"
            figures |= {"regions": placed(primary), "block_bytes": took.said["block_bytes"]}
            figures["header"] = header_bytes(primary)
        if what == "status":
            figures["era"] = took.said["mirrors"][0]["era"]
        if what == "resync":
            figures["stall_ms"] = took.said["stall_ms"]
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
