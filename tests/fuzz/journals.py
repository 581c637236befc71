# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutated journals on a secondary, as damage or an attacker without the key leaves them, opened as every command does.

Afterwards the disk is what its header says: the old point in time, the new one where the whole journal was there, or
one in doubt. Journals signed with the right key, and wrong all the same, may leave any data, but nothing outside of the
data region changes but the header, and what fails does so with one of our errors.
"""

import contextlib
import json
import os
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from crc32c import crc32c

from dmsoft.errors import DmsoftError
from dmsoft.member import header
from dmsoft.member import record as records
from dmsoft.member.header import HEADER_BYTES
from dmsoft.member.payload import Secondary
from dmsoft.member.record import RECORD_BYTES
from dmsoft.resync import recovery
from tests.crash.desk import MemoryDisk
from tests.fuzz import odd
from tests.fuzz.tally import Tally
from tests.journal_model import BLOCK, DATA, JOURNAL, KEY, SIZE, after, blank, data_of, job_on, passes, resync

_PER_JOURNAL = 100
_SEGMENTS = HEADER_BYTES + RECORD_BYTES
_FIELDS = [(0, 8), (8, 16), (24, 4), (28, 4), (32, 4), (36, 4), (40, 4), (44, 4), (48, 8)]
_NUMBERS = (
    0,
    1,
    2,
    249,
    250,
    251,
    511,
    512,
    4096,
    BLOCK,
    DATA,
    DATA - 512,
    1 << 20,
    1 << 31,
    (1 << 32) - 1,
    (1 << 63) - 512,
)


class _CutOffError(Exception):
    """The run that writes the journal ends here."""


class Victim:
    """A secondary whose journal was written whole, and committed or not; ``old`` and ``new`` are its data without and
    with it."""

    def __init__(self, chance: random.Random, stack: contextlib.ExitStack) -> None:
        self.old = chance.randbytes(DATA)
        image = blank(self.old, folder=Path(tempfile.gettempdir()))
        disk = MemoryDisk(image, stack)
        self.committed = chance.random() < 0.7
        work = passes(chance, chance.randint(1 if self.committed else 2, 3))
        self.new = after(self.old, work)
        job = job_on(disk)  # type: ignore[arg-type]
        with _ending_before_apply(self.committed):
            resync(job, work)
        self.image = os.pread(disk.fd, SIZE, 0)
        assert data_of(self.image) == self.old
        found = header.read(disk, key=KEY).header
        assert found is not None and isinstance(found.payload, Secondary)
        record = records.read(disk, found, KEY)
        assert record is not None and record.committed is self.committed
        self.before, self.record, self.descriptors = found.payload.sync, record, list(_descriptors(self.image))
        self.disk = disk
        assert self.outcome() == ("new" if self.committed else "old")
        self.put(self.image)

    def put(self, image: bytes) -> None:
        os.ftruncate(self.disk.fd, len(image))
        os.pwrite(self.disk.fd, image, 0)

    def outcome(self) -> str:
        """What opening the disk makes of it."""
        found = header.read(self.disk, key=KEY).header
        assert found is not None
        payload = recovery.recover(self.disk, found, KEY).payload
        data = data_of(os.pread(self.disk.fd, SIZE, 0))
        assert isinstance(payload, Secondary)
        reread = header.read(self.disk, key=KEY).header
        assert reread is not None and reread.payload == payload
        sync = payload.sync
        if sync.doubt is not None or not sync.consistent:
            return "doubt" if sync.doubt is not None else "mix" if sync.era == self.before.era else "WRONG: S moved"
        if sync == self.before:
            return "old" if data == self.old else "WRONG: says old"
        return "new" if sync == self.record.sync and data == self.new else "WRONG: says new"


def fuzz(count: int, seed: int) -> Tally:
    """Try ``count`` journals. Raises `AssertionError` at the first that misleads."""
    chance, tally = random.Random(seed), Tally()
    while tally.count < count:
        with contextlib.ExitStack() as stack:
            victim = Victim(chance, stack)
            for _ in range(min(_PER_JOURNAL, count - tally.count)):
                _try_one(chance, victim, tally, f"seed {seed}, try {tally.count}")
    return tally


def _try_one(chance: random.Random, victim: Victim, tally: Tally, what: str) -> None:
    signed = chance.random() < 0.3
    image = bytearray(victim.image)
    if signed:
        _resign(image, victim, chance)
    for _ in range(chance.choice([0, 1, 2]) if signed else chance.choice([1, 1, 2])):
        chance.choice(_DAMAGES)(image, victim, chance)
    if not signed and chance.random() < 0.03:
        image = image[: chance.randrange(HEADER_BYTES, len(image))]
    victim.put(bytes(image))
    with tally.bounded(what):
        try:
            end = victim.outcome()
        except DmsoftError as err:
            end = err.code
    journal = slice(HEADER_BYTES, min(HEADER_BYTES + JOURNAL, len(image)))
    assert os.pread(victim.disk.fd, SIZE, 0)[journal] == image[journal], what
    # What a disk lost that became shorter is another matter than its journal.
    kind = "signed" if signed else "shorter" if len(image) < SIZE else "damaged"
    assert "WRONG" not in end or kind != "damaged", f"{what}: {end}"
    tally.ends[f"{kind} {end.replace('WRONG: ', '')}"] += 1
    victim.put(victim.image)


@contextlib.contextmanager
def _ending_before_apply(committed: bool) -> Iterator[None]:
    """The run within ends when its journal is committed, or just before that."""
    from dmsoft.resync import steps

    point = "before data-write" if committed else "before commit-write"

    def watch(name: str) -> None:
        if name == point:
            raise _CutOffError

    steps.watch = watch
    try:
        with contextlib.suppress(_CutOffError):
            yield
    finally:
        steps.watch = None


def _descriptors(image: bytes) -> Iterator[int]:
    """Where each descriptor of the journal is on the disk."""
    at = _SEGMENTS
    while image[at : at + 8] == b"\x89DMSSEG\n":
        yield at
        (count,) = struct.unpack_from("<I", image, at + 32)
        at += 4096 + sum(struct.unpack_from("<QQ", image, at + 56 + 16 * n)[1] for n in range(count))


def _anywhere(image: bytearray, victim: Victim, chance: random.Random) -> None:
    end = _SEGMENTS + victim.record.length
    at = chance.choice(
        [
            chance.randrange(HEADER_BYTES, end),
            chance.choice([HEADER_BYTES, *victim.descriptors]) + chance.randrange(120),
        ]
    )
    length = chance.choice([1, 8, 512, 4096])
    fresh = chance.choice([bytes(length), b"\xff" * length, chance.randbytes(length)])
    image[at : min(at + length, end)] = fresh[: max(0, end - at)]


def _descriptor(image: bytearray, victim: Victim, chance: random.Random) -> None:
    """A field of a descriptor is another, and its checksum is right."""
    at = chance.choice(victim.descriptors)
    offset, size = chance.choice([*_FIELDS, *((56 + 8 * n, 8) for n in range(8))])
    number = chance.choice([chance.choice(_NUMBERS), chance.getrandbits(8 * size)]) % (1 << 8 * size)
    image[at + offset : at + offset + size] = number.to_bytes(size, "little")
    (count,) = struct.unpack_from("<I", image, at + 32)
    bare = bytearray(image[at : at + min(4096, 56 + 16 * count)])
    bare[40:44] = bytes(4)
    struct.pack_into("<I", image, at + 40, crc32c(bare))


def _swap(image: bytearray, victim: Victim, chance: random.Random) -> None:
    """Blocks of the journal in each other's place."""
    one, two = (chance.randrange(HEADER_BYTES, HEADER_BYTES + JOURNAL, 4096) for _ in range(2))
    image[one : one + 4096], image[two : two + 4096] = image[two : two + 4096], image[one : one + 4096]


def _forge(image: bytearray, victim: Victim, chance: random.Random) -> None:
    """The record says something else, and is signed with a key that is not the mirror's."""
    _write_record(image, victim, chance, chance.randbytes(32))


def _resign(image: bytearray, victim: Victim, chance: random.Random) -> None:
    _write_record(image, victim, chance, KEY)


def _write_record(image: bytearray, victim: Victim, chance: random.Random, key: bytes) -> None:
    good = msgspec.json.encode(victim.record)
    for _ in range(20):
        with contextlib.suppress(
            DmsoftError, msgspec.DecodeError, UnicodeDecodeError, json.JSONDecodeError, RecursionError
        ):
            odd_record = msgspec.json.decode(odd.json_of(good, chance), type=records.Record)
            image[HEADER_BYTES : HEADER_BYTES + RECORD_BYTES] = records.build(odd_record, key)
            return


_Damage = Callable[[bytearray, Victim, random.Random], None]
_DAMAGES: list[_Damage] = [_anywhere, _anywhere, _descriptor, _descriptor, _swap, _forge]
