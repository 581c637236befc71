# SPDX-License-Identifier: GPL-2.0-or-later
"""A secondary in a file, its writes recorded, and the images that a power cut may leave of it."""

import contextlib
import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from dmsoft.era.blocks import BlockSet
from dmsoft.member import header
from dmsoft.member.disk import FdDisk
from dmsoft.member.gate import GatedDevice
from dmsoft.member.header import HEADER_BYTES
from dmsoft.member.payload import Identity, Region, Secondary, Sync
from dmsoft.mirror.decision import Decision
from dmsoft.mirror.job import Job
from dmsoft.resync import recovery
from dmsoft.resync.buffers import aligned_buffer
from dmsoft.resync.copy import Piece
from dmsoft.units import KIB
from tests.mirror_model import TOKEN, TRACKER

KEY = b"k" * 32
BLOCK = 16 * KIB
BLOCKS = 32
DATA = BLOCKS * BLOCK
JOURNAL = 320 * KIB
SIZE = HEADER_BYTES + JOURNAL + DATA
OLD_ERA, NEW_ERA = 5, 9
NEW_TOKEN = "8" * 32
SECTOR = 512

OLD = Sync(era=OLD_ERA, tracker=TRACKER, token=TOKEN, consistent=True, consistent_as_of="2026-01-01T00:00:00Z")


def payload(sync: Sync = OLD, journal: int = JOURNAL) -> Secondary:
    regions = {"header": Region(0, HEADER_BYTES), "data": Region(HEADER_BYTES + JOURNAL, DATA)}
    if journal:
        regions["journal"] = Region(HEADER_BYTES, journal)
    return Secondary(
        mirror_uuid="a" * 32, mirror_name="m", member_uuid="b" * 32, identity=Identity(SIZE), regions=regions,
        created="2026-01-01T00:00:00Z", label="one", block_bytes=BLOCK, generation=("c" * 32,), sync=sync,
    )  # fmt: skip


class RecordedDisk(FdDisk):
    """The file ``path`` as a disk; ``log`` has its writes in the order in which they ended, and its flushes as the
    number of writes that had ended when each began."""

    def __init__(self, path: Path, image: bytes) -> None:
        path.write_bytes(image)
        self.path, self.before = path, image
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        super().__init__(self.fd)
        self.log: list[tuple[int, bytes]] = []
        self.flushes: list[int] = []

    def close(self) -> None:
        os.close(self.fd)

    def image(self) -> bytes:
        return self.path.read_bytes()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what is done to the disk, whichever way, in the block."""
        pwritev, fsync, lock = os.pwritev, os.fsync, threading.Lock()

        def write(fd: int, views: Sequence[memoryview], offset: int, *rest: int) -> int:
            count = pwritev(fd, views, offset, *rest)
            if fd == self.fd:
                with lock:
                    self.log.append((offset, b"".join(bytes(view) for view in views)[:count]))
            return count

        def flush(fd: int) -> None:
            if fd == self.fd:
                with lock:
                    self.flushes.append(len(self.log))
            fsync(fd)

        os.pwritev, os.fsync = write, flush  # type: ignore[assignment]
        try:
            yield
        finally:
            os.pwritev, os.fsync = pwritev, fsync

    def cut(self, point: int, chance: random.Random, *, flushed: bool | None = None) -> bytes:
        """The disk after a power cut behind the first ``point`` writes: what was flushed, and of the rest any sectors
        of a cache that writes back as it likes. ``flushed``: whether a flush that began there has ended; None: draw."""
        ended = chance.random() < 0.5 if flushed is None else flushed
        durable = max((n for n in self.flushes if n < point or (ended and n == point)), default=0)
        image = bytearray(self.before)
        for offset, data in self.log[:durable]:
            image[offset : offset + len(data)] = data
        odds = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        for offset, data in self.log[durable:point]:
            for at in range(0, len(data), SECTOR):
                if chance.random() < odds:
                    image[offset + at : offset + at + SECTOR] = data[at : at + SECTOR]
        return bytes(image)


def blank(old: bytes, sync: Sync = OLD, journal: int = JOURNAL, folder: Path | None = None) -> bytes:
    """A secondary that holds ``old``."""
    path = (folder or Path("/tmp")) / f"blank-{os.getpid()}"  # noqa: S108
    disk = RecordedDisk(path, bytes(HEADER_BYTES) + random.Random(3).randbytes(JOURNAL) + old)
    try:
        header.write_first(disk, payload(sync, journal), KEY)
        return disk.image()
    finally:
        disk.close()
        path.unlink()


def job_on(disk: RecordedDisk, **changes: object) -> Job:
    """The secondary's part in a run that copies incrementally."""
    found = header.read(disk, key=KEY).header
    assert found is not None
    owed = BlockSet.full(BLOCKS)
    decision = Decision("incremental", "it is behind", OLD_ERA)
    job = Job(
        "one", found, cast(GatedDevice, disk), KEY, decision, owed, owed.copy(), NEW_TOKEN, attach=False,
        held=(OLD_ERA, None),
    )  # fmt: skip
    for name, value in changes.items():
        setattr(job, name, value)
    return job


Pass = dict[int, bytes]
"""Blocks and what is written to them."""


def passes(chance: random.Random, count: int, most: int = 6) -> list[Pass]:
    return [
        {block: chance.randbytes(BLOCK) for block in sorted(chance.sample(range(BLOCKS), chance.randrange(1, most)))}
        for _ in range(count)
    ]


def after(old: bytes, done: Sequence[Pass]) -> bytes:
    image = bytearray(old)
    for one in done:
        for block, data in one.items():
            image[block * BLOCK : (block + 1) * BLOCK] = data
    return bytes(image)


def pieces(one: Pass) -> list[Piece]:
    held = []
    for block, data in one.items():
        view = aligned_buffer(BLOCK)
        view[:] = data
        held.append((block * BLOCK, view))
    return held


def resync(job: Job, work: Sequence[Pass]) -> None:
    """What a run does to one secondary, pass after pass, with a checkpoint after each but the last."""
    for number, one in enumerate(work):
        held = pieces(one)
        job.open_journal(sum(len(view) + 4096 for _, view in held), direct=False)
        middle = len(held) // 2
        for part in (held[:middle], held[middle:]):
            if part:
                job.target.put(part)
        if number < len(work) - 1:
            job.promise(NEW_ERA - len(work) + 1 + number, TRACKER, as_of=None)
    job.promise(NEW_ERA, TRACKER, as_of="2026-02-02T00:00:00Z")


def reopened(disk: RecordedDisk) -> header.Header:
    """What the next open makes of the disk."""
    found = header.read(disk, key=KEY).header
    assert found is not None and found.verified
    return recovery.recover(disk, found, KEY)


def data_of(image: bytes) -> bytes:
    return image[HEADER_BYTES + JOURNAL :]


def differing(one: bytes, other: bytes) -> list[int]:
    ours, theirs = (np.frombuffer(x, np.uint8).reshape(BLOCKS, BLOCK) for x in (one, other))
    return np.flatnonzero((ours != theirs).any(axis=1)).tolist()
