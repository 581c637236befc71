# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk with a volatile cache for tests of the header, and every way the power can go away under a write."""

import errno
import random
from collections.abc import Callable

from dmsoft.member import header
from dmsoft.member.header import HEADER_BYTES
from dmsoft.member.payload import AnyPayload, Identity, Region, Secondary, Sync

SECTOR = 512
KEY = b"k" * 32
MEMBER = "b" * 32


def secondary(number: int, *, member_uuid: str = MEMBER, padding: int = 0) -> Secondary:
    """A payload that tells by its era which one it is."""
    return Secondary(
        mirror_uuid="a" * 32,
        mirror_name="m",
        member_uuid=member_uuid,
        identity=Identity(1 << 30, ("x" * 200,) * padding),
        regions={"header": Region(0, HEADER_BYTES)},
        created="2026-01-01T00:00:00Z",
        label="b",
        block_bytes=65536,
        generation=("c" * 32,),
        sync=Sync(era=number),
    )


def number_of(payload: AnyPayload) -> int:
    assert isinstance(payload, Secondary)
    assert payload.sync.era is not None
    return payload.sync.era


class PowerCutError(Exception):
    """The model's power went away, or the writing process did."""


class ModelDisk:
    """A disk with a volatile cache: what was written is seen at once, and only a flush makes it durable.

    ``budget`` operations (writes and flushes) go through, the next raises `PowerCutError`: a write after some of its
    sectors (``reach``), a flush before it did anything.
    """

    name = "model"

    def __init__(self, medium: bytes | bytearray) -> None:
        self.medium = bytearray(medium)
        self.cached: list[tuple[int, bytes]] = []
        self.budget: int | None = None
        self.reach = 0
        self.log: list[tuple[str, int, int]] = []
        self.read_bytes = 0

    def _spend(self) -> bool:
        if self.budget == 0:
            return False
        if self.budget is not None:
            self.budget -= 1
        return True

    def pread(self, length: int, offset: int) -> bytes:
        assert length % 4096 == 0 and offset % 4096 == 0
        self.read_bytes += length
        seen = bytearray(self.medium[offset : offset + length])
        for at, sector in self.cached:
            if offset <= at < offset + len(seen):
                seen[at - offset : at - offset + SECTOR] = sector
        return bytes(seen)

    def pwrite(self, data: bytes, offset: int) -> None:
        assert len(data) % 4096 == 0 and offset % 4096 == 0
        if offset + len(data) > len(self.medium):
            raise OSError(errno.ENOSPC, "No space left on device")
        sectors = [(offset + at, data[at : at + SECTOR]) for at in range(0, len(data), SECTOR)]
        if not self._spend():
            self.cached += sectors[: self.reach]
            raise PowerCutError
        self.cached += sectors
        self.log.append(("write", offset, len(data)))

    def flush(self) -> None:
        if not self._spend():
            raise PowerCutError
        for at, sector in self.cached:
            self.medium[at : at + SECTOR] = sector
        self.cached.clear()
        self.log.append(("flush", 0, 0))

    def cut(self, kept: Callable[[int], bool]) -> "ModelDisk":
        """The disk after a power cut: of the sectors in the cache, the ones ``kept`` says reached the medium."""
        after = bytearray(self.medium)
        for index, (at, sector) in enumerate(self.cached):
            if kept(index):
                after[at : at + SECTOR] = sector
        return ModelDisk(after)


Write = Callable[[ModelDisk], object]


def member(number: int = 1) -> ModelDisk:
    disk = ModelDisk(random.Random(7).randbytes(HEADER_BYTES + 8192))
    header.write_first(disk, secondary(number), KEY)
    return disk


def keepers(count: int, rng: random.Random) -> list[Callable[[int], bool]]:
    """None, all, a few prefixes, and random subsets of the ``count`` sectors in a cache."""
    chosen: list[Callable[[int], bool]] = [lambda _: False, lambda _: True]
    for _ in range(3):
        edge = rng.randrange(count + 1)
        chosen += [lambda i, edge=edge: i < edge, lambda i, edge=edge: i >= edge]
        some = {i for i in range(count) if rng.random() < 0.5}
        chosen.append(lambda i, some=some: i in some)
    chosen += [lambda i: i == 0, lambda i: i != 0]
    return chosen


def crashes(before: ModelDisk, write: Write, seed: int) -> list[ModelDisk]:
    """Disks after a power cut at every operation of ``write``, with various sectors of the cache on the medium."""
    rng = random.Random(seed)
    found = []
    for budget in range(1000):
        disk = ModelDisk(before.medium)
        disk.cached = list(before.cached)
        disk.budget, disk.reach = budget, rng.randrange(1, 20)
        try:
            write(disk)
        except PowerCutError:
            found += [disk.cut(kept) for kept in keepers(len(disk.cached), rng)]
        else:
            return [*found, disk.cut(lambda _: False)]
    raise AssertionError("the write never ends")
