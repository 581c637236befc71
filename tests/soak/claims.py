# SPDX-License-Identifier: GPL-2.0-or-later
"""Every disk against what its header claims, byte for byte, by reading alone: images of a machine that is off, or the
disks of one that runs.

A block that differs from the primary must be in the disk's stale set; a disk that says it is one whole point in time
must be one, and none before the moment that was promised to a person.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmsoft.era.blocks import BlockSet
from dmsoft.era.reader import EraReader
from dmsoft.member import header
from dmsoft.member.disk import FdDisk, open_for_read
from dmsoft.member.header import Scan
from dmsoft.member.payload import AnyPayload, Primary, Secondary
from dmsoft.member.record import read as read_record
from dmsoft.mirror.decision import decide
from tests.soak.content import BLOCK, TORN, Content, Numbers, numbers_of

_PIECE = 4 << 20


@dataclass(frozen=True)
class Seen:
    """One disk: what its header says, and its data."""

    scan: Scan
    payload: AnyPayload
    data: bytes
    committed: bool

    @property
    def numbers(self) -> Numbers:
        return numbers_of(self.data)


def look(path: Path, key: bytes) -> Seen:
    fd = open_for_read(path)
    try:
        scan = header.read(fd, key=key)
        assert scan.header is not None and scan.header.verified, f"{path} lost its header: {scan}"
        region = scan.header.payload.regions["data"]
        record = read_record(FdDisk(fd), scan.header, key)
        disk, data = FdDisk(fd), bytearray()
        while len(data) < region.length:
            data += disk.pread(min(_PIECE, region.length - len(data)), region.offset + len(data))
        return Seen(scan, scan.header.payload, bytes(data), record is not None and record.committed)
    finally:
        os.close(fd)


def problems(
    primary: Path, secondaries: Mapping[str, Path], content: Content, key: bytes, promised: Mapping[str, int]
) -> list[str]:
    """What is not as it is claimed to be; the mirror may run, and be written meanwhile."""
    found = []
    others = {label: look(path, key) for label, path in secondaries.items()}
    mine = look(primary, key)
    assert isinstance(mine.payload, Primary)
    region = mine.payload.regions["metadata"]
    with EraReader(primary, offset_bytes=region.offset, length_bytes=region.length) as reader:
        for label, its in others.items():
            found += whole(label, its, content, promised.get(label, 0))
            found += _covered(label, mine.payload, mine.data, its, reader)
    return found


def whole(label: str, its: Seen, content: Content, promised: int) -> list[str]:
    """A disk that says it is one whole point in time is one, at ``promised`` or later."""
    payload = its.payload
    assert isinstance(payload, Secondary)
    # A journal that is committed and not applied yet: the disk is whole as soon as it is.
    if its.committed or not payload.sync.consistent:
        return []
    numbers = its.numbers
    if not content.is_one_moment(numbers):
        expected = content.at(int(numbers.max()))
        wrong = np.flatnonzero(numbers != expected)
        return [
            f"{label} says it is whole as of {payload.sync.consistent_as_of}, and has {numbers[wrong][:8].tolist()} "
            f"at blocks {wrong[:8].tolist()} where {expected[wrong][:8].tolist()} should be (newest {numbers.max()})"
        ]
    if payload.sync.doubt is None and numbers.max() < promised:
        return [f"{label} was promised to be at {promised}, and is at {numbers.max()}"]
    return []


def _covered(label: str, primary: Primary, data: bytes, its: Seen, reader: EraReader) -> list[str]:
    """Law 1, for what the header says by itself."""
    record, payload = primary.member(label), its.payload
    assert record is not None and isinstance(payload, Secondary)
    if its.scan.doubt is not None or reader.is_zero():
        return []
    # The next start begins another era, before which nothing is asked.
    decision = decide(primary, record, payload, reader.superblock().current_era + 1)
    if decision.kind == "compare" and decision.partial is None:
        return []
    blocks = -(-len(data) // BLOCK)
    differing = np.flatnonzero(
        [data[at : at + BLOCK] != its.data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    )
    owed = decision.owed(lambda era: reader.written_since(era).blocks, blocks)
    missed = BlockSet.from_extents(blocks, [(int(block), 1) for block in differing]) - owed
    if missed:
        return [f"{label} differs at blocks {missed.extents().tolist()[:8]}, which it does not owe ({decision})"]
    return []


def primary_problems(primary: Path, content: Content, key: bytes, acknowledged: int) -> list[str]:
    """The primary has every write that was acknowledged, in order, and at most parts of the one after."""
    numbers = look(primary, key).numbers
    torn = np.flatnonzero(numbers == TORN)
    newest = int(numbers.max())
    if len(torn) > 1 or (len(torn) and torn[0] != content.place(newest + 1)):
        return [f"the primary is torn at {torn.tolist()[:8]} (newest {newest})"]
    expected = content.at(newest).copy()
    expected[torn] = TORN
    if not np.array_equal(numbers, expected) or newest < acknowledged:
        wrong = np.flatnonzero(numbers != expected)
        return [f"the primary lost writes: it is at {newest} of {acknowledged}, wrong at {wrong[:8].tolist()}"]
    return []
