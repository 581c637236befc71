# SPDX-License-Identifier: GPL-2.0-or-later
"""A real dm-era device that does the steps of `tests.era_history`, and the reader's answers compared with the model."""

import errno
import fcntl
import mmap
import os
import random
import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmsoft.dm.device import Device
from dmsoft.dm.targets import Era, single
from dmsoft.era.blocks import BlockSet
from dmsoft.era.reader import EraReader
from dmsoft.units import MIB, SECTOR, Sectors
from tests.era_history import History, Step, Write, random_step

METADATA_BYTES = 4 * MIB
ORIGIN_BYTES = 48 * MIB
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
_COLLISIONS = 10


def sh(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stdout.decode()} {done.stderr.decode()}"
    return done.stdout.decode()


def bits_of(blocks: BlockSet) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(blocks.bits, np.uint8), bitorder="little")[: blocks.nr_blocks].astype(np.bool_)


def check(metadata: Path, history: History, eras: Sequence[int]) -> None:
    """The reader agrees with ``history``, in the metadata as it lies there and in its snapshot."""
    with EraReader(metadata) as reader:
        superblock = reader.superblock()
        assert (superblock.current_era, superblock.nr_blocks) == (history.era, history.blocks)
        for era in eras:
            history.check(era, bits_of(reader.written_since(era).blocks))
            old = history.snapshot
            if old is not None and era <= old.era + 1:
                old.check(era, bits_of(reader.written_since(era, snapshot=True).blocks))


def _synced(descriptor: int) -> bool:
    """False if a direct write to the same page came in between, which the kernel reports to the buffered one as EIO
    (mm/filemap.c, dio_warn_stale_pagecache)."""
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno != errno.EIO:
            raise
        return False
    return True


class EraBed:
    """An era device over the whole of ``origin``; ``history`` is not touched."""

    def __init__(self, metadata: Path, origin: Path, block_bytes: int) -> None:
        self.metadata = metadata
        self.origin = origin
        self.block_bytes = block_bytes
        self.device = Device("era-bed", "DMSOFT-test-era-bed")
        self.blocks = ORIGIN_BYTES // block_bytes

    def close(self) -> None:
        info = self.device.info()
        if info is not None:
            if info.suspended and info.live_table:
                self.device.resume()
            self.device.remove()

    def do(self, step: Step) -> None:
        """Make ``step`` happen, and wait for its end."""
        if step.kind == "writes":
            for write in step.writes:
                self.write(write)
        elif step.kind == "storm":
            with ThreadPoolExecutor(len(step.writes)) as pool:
                writes = [pool.submit(self.write, write) for write in step.writes]
                self.device.message("checkpoint")
                for done in writes:
                    done.result()
        elif step.kind == "suspend":
            self.device.suspend()
        elif step.kind == "resume":
            self.device.resume()
        elif step.kind == "resize":
            self._resize(step.blocks)
        elif step.kind in ("start", "restart", "crash"):
            self._restart(step.kind)
        else:
            self.device.message(step.kind)

    def write(self, write: Write) -> None:
        flags = {"direct": os.O_DIRECT, "fua": os.O_DIRECT | os.O_DSYNC}.get(write.how, 0)
        descriptor = os.open(self.device.path, os.O_RDWR | flags)
        try:
            if write.how in ("zero", "discard"):
                request = BLKZEROOUT if write.how == "zero" else BLKDISCARD
                fcntl.ioctl(descriptor, request, struct.pack("<QQ", write.offset, write.length))
            else:
                with mmap.mmap(-1, write.length) as data:
                    data.write(os.urandom(512) * (write.length // 512))
                    for _ in range(_COLLISIONS):
                        assert os.pwrite(descriptor, data, write.offset) == write.length
                        if write.how != "buffered" or _synced(descriptor):
                            return
                    raise OSError(errno.EIO, "a buffered write failed again and again", self.device.path)
        finally:
            os.close(descriptor)

    def takes_discards(self) -> bool:
        """5.10 does not give the device the granularity of the disk below, and complains about discards without."""
        queue = Path(f"/sys/dev/block/{self.device.number}/queue")
        return int((queue / "discard_granularity").read_text()) > 0

    def power_cut(self) -> None:
        """The device is gone, and the metadata lies as its disk had it while the target was running."""
        raise NotImplementedError

    def _restart(self, kind: str) -> None:
        if kind == "restart":
            self.device.remove()
        elif kind == "crash":
            self.power_cut()
        self.device.create()
        self._load()
        self.device.resume()

    def _resize(self, blocks: int) -> None:
        """Suspend, load, resume: the order that keeps marks."""
        if not self.device.require().suspended:
            self.device.suspend()
        self.blocks = blocks
        self._load()
        self.device.resume()

    def _load(self) -> None:
        length, block = Sectors(self.blocks * self.block_bytes // SECTOR), Sectors(self.block_bytes // SECTOR)
        self.device.load(single(length, Era(str(self.metadata), str(self.origin), block)))


class LoopBed(EraBed):
    """A bed on loop devices over new files in ``directory``."""

    def __init__(self, directory: Path, block_bytes: int) -> None:
        self._stack = ExitStack()
        self._directory = directory
        self._files = 0
        super().__init__(self._loop(METADATA_BYTES), self._loop(ORIGIN_BYTES), block_bytes)

    def close(self) -> None:
        super().close()
        self._stack.close()

    def power_cut(self) -> None:
        after = self._loop(METADATA_BYTES)
        sh("dd", f"if={self.metadata}", f"of={after}", "bs=1M", "iflag=direct", "oflag=direct", "status=none")
        # What removal writes goes to the metadata left behind.
        self.close_device()
        self.metadata = after

    def close_device(self) -> None:
        EraBed.close(self)

    def _loop(self, size: int) -> Path:
        """A loop device over a new file full of zeroes."""
        self._files += 1
        path = self._directory / f"disk{self._files}"
        with path.open("wb") as new:
            new.truncate(size)
        node = sh("losetup", "--find", "--show", path).strip()
        self._stack.callback(sh, "losetup", "--detach", node)
        return Path(node)


class Program:
    """Random steps on a bed; after every step the reader is compared with the model."""

    def __init__(self, bed: EraBed, seed: int) -> None:
        self.bed = bed
        self.history = History(bed.blocks, bed.block_bytes)
        self._rng = random.Random(seed)
        self.log: list[str] = []

    def do(self, step: Step) -> None:
        self.log.append(step.to_json())
        self.bed.do(step)
        self.history.apply(step)
        self.check()

    def check(self) -> None:
        newest = self.history.era
        check(self.bed.metadata, self.history, sorted({self._rng.randint(0, newest + 1), 1, newest - 1, newest}))

    def run(self, steps: int) -> None:
        leave_out = () if self.bed.takes_discards() else ("discard",)
        for _ in range(steps):
            self.do(random_step(self._rng, self.history, leave_out=leave_out))
