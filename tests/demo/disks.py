# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's disks: their cables, the kernel's count of what was written to them, and comparing them."""

import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmsoft.inventory.sysfs import block_device
from dmsoft.member import header
from dmsoft.units import MIB, SECTOR
from tests.demo.stage import DemoError, quiet
from tests.harness.guestkit import Disks

SERIALS = ("primary", "one", "two", "cache")
_CHUNK = 4 * MIB


class Cables(Disks):
    """The disks that ``./dev demo`` gives its VM, by serial."""

    def __getitem__(self, serial: str) -> Path:
        if serial not in SERIALS:
            raise KeyError(serial)
        return Path("/dev/disk/by-id") / f"virtio-{serial}"

    def __iter__(self) -> Iterator[str]:
        return iter(SERIALS)

    def size(self, serial: str) -> int:
        return block_device(str(self[serial])).size_bytes


@dataclass(frozen=True)
class Data:
    """The data region of a member; bytes."""

    device: Path
    offset: int
    length: int

    @classmethod
    def on(cls, device: Path) -> "Data":
        """As the header on the device has it."""
        region = header.require(str(device)).payload.regions["data"]
        return cls(device, region.offset, region.length)

    def read(self, descriptor: int, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], self.offset + offset + done)
            if not count:
                raise DemoError(f"{self.device} ends early")
            done += count


def written(device: Path) -> int:
    """Bytes that the kernel has sent to the disk since it was plugged in (Documentation/block/stat)."""
    name = device.resolve().name
    return int(Path(f"/sys/class/block/{name}/stat").read_text().split()[6]) * SECTOR


def differing(sides: list[Data], block_bytes: int) -> list[set[int]]:
    """Compare the first region with each of the others, every byte, read from the disks themselves (O_DIRECT).

    Returns the numbers of the blocks that differ, one set for each of the others.
    """
    first, *others = sides
    if any(side.length != first.length for side in others):
        raise DemoError("the data regions are not of one size")
    found: list[set[int]] = [set() for _ in others]
    with ExitStack() as stack:
        descriptors = []
        for side in sides:
            descriptors.append(os.open(side.device, os.O_RDONLY | os.O_DIRECT))
            stack.callback(os.close, descriptors[-1])
        buffers = [memoryview(mmap.mmap(-1, _CHUNK)) for _ in sides]
        pool = stack.enter_context(ThreadPoolExecutor(len(sides)))
        for offset in range(0, first.length, _CHUNK):
            views = [buffer[: min(_CHUNK, first.length - offset)] for buffer in buffers]
            list(pool.map(Data.read, sides, descriptors, views, [offset] * len(sides)))
            for index, view in enumerate(views[1:]):
                found[index] |= _unequal(views[0], view, offset, block_bytes)
    return found


def _unequal(ours: memoryview, theirs: memoryview, offset: int, block_bytes: int) -> set[int]:
    left, right = np.frombuffer(ours, np.uint64), np.frombuffer(theirs, np.uint64)
    if np.array_equal(left, right):
        return set()
    places = np.flatnonzero(left != right)
    return {int(block) for block in np.unique((places * 8 + offset) // block_bytes)}


@contextmanager
def read_only(data: Data, name: str, mount: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Mount the copy in a way that cannot write to its disk: a read-only table, and no replay of the journal.

    Yields the two commands, as one would type them.
    """
    table = f"0 {data.length // SECTOR} linear {data.device.resolve()} {data.offset // SECTOR}"
    create = ["dmsetup", "create", name, "--readonly", "--table", table]
    attach = ["mount", "-o", "ro,noload", f"/dev/mapper/{name}", str(mount)]
    mount.mkdir(parents=True, exist_ok=True)
    quiet(*create)
    try:
        quiet(*attach)
        try:
            yield create, attach
        finally:
            quiet("umount", str(mount))
    finally:
        quiet("dmsetup", "remove", "--retry", name)
        mount.rmdir()
