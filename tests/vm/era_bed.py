# SPDX-License-Identifier: GPL-2.0-or-later
"""A real dm-era device on loop devices, and a model that knows which block was last written in which era."""

import fcntl
import mmap
import os
import random
import struct
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmsoft.dm.device import Device
from dmsoft.dm.targets import Era, EraStatus, single
from dmsoft.era.blocks import BlockSet
from dmsoft.era.reader import EraReader
from dmsoft.units import MIB, SECTOR, Sectors

METADATA_BYTES = 4 * MIB
ORIGIN_BYTES = 48 * MIB
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F


def sh(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stdout.decode()} {done.stderr.decode()}"
    return done.stdout.decode()


def bits_of(blocks: BlockSet) -> NDArray[np.bool_]:
    return np.unpackbits(blocks.words.view(np.uint8), bitorder="little")[: blocks.nr_blocks].astype(np.bool_)


class Model:
    """``last``: the era each block was last written in. ``maybe``: blocks the kernel may list or not."""

    def __init__(self, nr_blocks: int) -> None:
        self.last = np.zeros(nr_blocks, np.uint32)
        self.maybe = np.zeros(nr_blocks, np.bool_)
        self.era = 0

    def copy(self) -> "Model":
        other = Model(len(self.last))
        other.last, other.maybe, other.era = self.last.copy(), self.maybe.copy(), self.era
        return other

    def write(self, first: int, count: int) -> None:
        self.last[first : first + count] = self.era
        self.maybe[first : first + count] = False

    def discard(self, first: int, count: int) -> None:
        """The target marks the first block of a discard; whether more is marked is not ours to say."""
        self.maybe[first + 1 : first + count] |= self.last[first + 1 : first + count] != self.era
        self.write(first, 1)

    def resize(self, nr_blocks: int) -> None:
        """What a shrink cut off is forgotten, except in writesets that are not digested yet."""
        kept = min(nr_blocks, len(self.last))
        last, maybe = np.zeros(nr_blocks, np.uint32), np.ones(nr_blocks, np.bool_)
        last[:kept], maybe[:kept] = self.last[:kept], self.maybe[:kept]
        self.last, self.maybe = last, maybe

    def check(self, era: int, blocks: BlockSet) -> None:
        """``blocks`` has every block written since ``era``, and no other but those in doubt."""
        found, wanted = bits_of(blocks), (self.last >= era) & (self.last != 0)
        missing = np.flatnonzero(wanted & ~found)
        assert not len(missing), f"since {era}: blocks {missing[:10]} are missing, last written in {self.last[missing]}"
        extra = np.flatnonzero(found & ~wanted & ~self.maybe)
        assert not len(extra), f"since {era}: blocks {extra[:10]} were not written, but in {self.last[extra]}"


class EraBed:
    """An era device with a tracking block of ``block_sectors``, and its model."""

    def __init__(self, directory: Path, block_sectors: int) -> None:
        self._stack = ExitStack()
        self._directory = directory
        self.block_bytes = block_sectors * SECTOR
        self._files = 0
        self.origin = self.loop(ORIGIN_BYTES)
        self.metadata = self.loop(METADATA_BYTES)
        self.device = Device("era-bed", "DMSOFT-test-era-bed")
        self.suspended = False
        self.snapshot: Model | None = None
        self.model = Model(ORIGIN_BYTES // self.block_bytes)
        self.log: list[str] = []

    def loop(self, size: int) -> Path:
        """A loop device over a new file full of zeroes."""
        self._files += 1
        path = self._directory / f"disk{self._files}"
        with path.open("wb") as new:
            new.truncate(size)
        node = sh("losetup", "--find", "--show", path).strip()
        self._stack.callback(sh, "losetup", "--detach", node)
        return Path(node)

    def close(self) -> None:
        if self.device.info() is not None:
            if self.suspended:
                self.device.resume()
            self.device.remove()
        self._stack.close()

    def load(self) -> None:
        length = Sectors(len(self.model.last) * self.block_bytes // SECTOR)
        block = Sectors(self.block_bytes // SECTOR)
        self.device.load(single(length, Era(str(self.metadata), str(self.origin), block)))

    def start(self) -> None:
        self.device.create()
        self.load()
        self.device.resume()
        self.model.era += 1

    def stop(self) -> None:
        if self.suspended:
            self.resume()
        self.device.remove()

    def restart(self) -> None:
        self.stop()
        self.start()

    def crash(self) -> None:
        """Go on from what a power cut would leave: the metadata as it lies on its disk while the target runs."""
        if self.suspended:
            self.resume()
        after = self.loop(METADATA_BYTES)
        sh("dd", f"if={self.metadata}", f"of={after}", "bs=1M", "iflag=direct", "oflag=direct", "status=none")
        self.device.remove()
        self.metadata = after
        self.check([1, self.model.era])
        self.start()

    def suspend(self) -> None:
        if not self.suspended:
            self.device.suspend()
            self.suspended = True

    def resume(self) -> None:
        self.device.resume()
        if self.suspended:
            self.model.era += 1
        self.suspended = False

    def reload(self, nr_blocks: int) -> None:
        """Suspend, load, resume: the order that keeps marks."""
        self.suspend()
        self.model.resize(nr_blocks)
        self.load()
        self.resume()

    def message(self, text: str) -> None:
        if self.suspended:
            self.resume()
        self.device.message(text)
        if text != "drop_metadata_snap":
            self.model.era += 1

    def take_snapshot(self) -> None:
        if self.snapshot is not None:
            self.message("drop_metadata_snap")
        self.message("take_metadata_snap")
        self.snapshot = self.model.copy()

    def status(self) -> EraStatus:
        (line,) = self.device.status()
        return EraStatus.parse(line.text)

    def write(self, how: str, offset: int, length: int) -> None:
        """Write ``length`` bytes at ``offset``, both whole sectors, in one of the ways of `WAYS`."""
        if self.suspended:
            self.resume()
        first = offset // self.block_bytes
        count = (offset + length - 1) // self.block_bytes - first + 1
        flags = {"direct": os.O_DIRECT, "fua": os.O_DIRECT | os.O_DSYNC}.get(how, 0)
        descriptor = os.open(self.device.path, os.O_RDWR | flags)
        try:
            if how in ("zero", "discard"):
                request = BLKZEROOUT if how == "zero" else BLKDISCARD
                fcntl.ioctl(descriptor, request, struct.pack("<QQ", offset, length))
            else:
                with mmap.mmap(-1, length) as data:
                    data.write(os.urandom(512) * (length // 512))
                    assert os.pwrite(descriptor, data, offset) == length
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        (self.model.discard if how == "discard" else self.model.write)(first, count)

    def takes_discards(self) -> bool:
        """5.10 does not give the device the granularity of the disk below, and complains about discards without."""
        queue = Path(f"/sys/dev/block/{self.device.number}/queue")
        return int((queue / "discard_granularity").read_text()) > 0

    def check(self, eras: list[int]) -> None:
        """The reader agrees with the model, live and in the metadata snapshot."""
        with EraReader(self.metadata) as reader:
            assert reader.superblock().current_era == self.model.era
            for era in eras:
                self.model.check(era, reader.written_since(era).blocks)
                if self.snapshot is not None and era <= self.snapshot.era + 1:
                    self.snapshot.check(era, reader.written_since(era, snapshot=True).blocks)


WAYS = ("direct", "direct", "fua", "buffered", "zero", "discard")


class Program:
    """A random program on a bed; after every step the reader is compared with the model."""

    def __init__(self, bed: EraBed, rng: random.Random) -> None:
        self.bed = bed
        self.rng = rng

    def run(self, steps: int) -> None:
        for number in range(steps):
            step = self.rng.choices(
                [self.write, self.checkpoint, self.suspend, self.snapshot, self.restart, self.crash, self.resize],
                [60, 12, 8, 4, 3, 2, 3],
            )[0]
            self.bed.log.append(f"{number} {step.__name__}")
            step()
            newest = self.bed.model.era
            self.bed.check([self.rng.randint(0, newest + 1), 1, newest - 1, newest, newest + 1])

    def write(self) -> None:
        rng, bed = self.rng, self.bed
        size = len(bed.model.last) * bed.block_bytes
        ways = [way for way in WAYS if way != "discard" or bed.takes_discards()]
        for _ in range(rng.choice([1, 1, 5, 30])):
            how = rng.choice(ways)
            # A kernel splits a discard where its start is not aligned to the disk's unit.
            unit = 4096 if how == "discard" else 512
            length = rng.choice([1, 8, rng.randint(1, 64), rng.randint(1, 2048)]) * unit
            offset = rng.randrange(0, size - length, unit)
            if rng.random() < 0.3:
                offset -= offset % bed.block_bytes
            bed.log.append(f"  {how} {offset} {length}")
            bed.write(how, offset, length)

    def checkpoint(self) -> None:
        self.bed.message("checkpoint")

    def suspend(self) -> None:
        self.bed.suspend()

    def snapshot(self) -> None:
        if self.bed.snapshot is not None and self.rng.random() < 0.5:
            self.bed.message("drop_metadata_snap")
            self.bed.snapshot = None
        else:
            self.bed.take_snapshot()

    def restart(self) -> None:
        self.bed.restart()

    def crash(self) -> None:
        self.bed.crash()

    def resize(self) -> None:
        most = ORIGIN_BYTES // self.bed.block_bytes
        self.bed.reload(self.rng.choice([most, most // 2, self.rng.randint(most // 4, most)]))
