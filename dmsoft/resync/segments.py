# SPDX-License-Identifier: GPL-2.0-or-later
"""One segment of a journal as bytes: a descriptor block, then the data of its pieces, one behind the other.

All integers are little-endian. The descriptor:

====== ====== =====================================================================================
offset length field
====== ====== =====================================================================================
0      8      magic: 89 "DMSSEG" 0a
8      16     id of the journal
24     4      number of the segment, from 0
28     4      epoch: which pass it is of; what a later pass wrote wins
32     4      number of pieces, 1 to 250
36     4      zero
40     4      CRC-32C of this descriptor to the end of the pieces, with this field zero
44     4      zero
48     8      XXH64 of the data
56     -      for each piece its offset in the data region (8) and length (8), both multiples of 512; then zero
====== ====== =====================================================================================
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import xxhash
from crc32c import crc32c

from dmsoft.errors import DeviceError
from dmsoft.resync.copy import BATCH_PIECES, REQUEST_BYTES

DESCRIPTOR_BYTES: Final = 4096

_MAGIC: Final = b"\x89DMSSEG\n"
_FIELDS: Final = struct.Struct("<8s16sIIIIIIQ")
_PIECE: Final = struct.Struct("<QQ")
_ALIGNMENT: Final = 512
_ZEROS: Final = bytes(DESCRIPTOR_BYTES)


class JournalDamagedError(DeviceError):
    """A committed journal on a secondary does not read back as it was written.

    It was flushed before it counted, so the disk lost or changed what it had acknowledged. The secondary is compared
    block by block at the next resync. Look at its SMART state and its cable.
    """

    code = "journal-damaged"

    # False when the disk itself said that it cannot read it: then nothing else that it holds is in doubt.
    doubtful = True


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a segment holds: ``pieces`` are (offset in the data region, length) in bytes."""

    number: int
    epoch: int
    data_hash: int
    pieces: tuple[tuple[int, int], ...]

    @property
    def data_bytes(self) -> int:
        return sum(length for _, length in self.pieces)


def data_hash(views: Iterable[memoryview]) -> int:
    """The checksum of data, which has to cost much less than writing them."""
    state = xxhash.xxh64()
    for view in views:
        state.update(view)
    return state.intdigest()


def build(descriptor: Descriptor, journal_id: bytes, into: memoryview) -> None:
    """Write the descriptor into a block of memory."""
    into[:] = _ZEROS
    fields = (descriptor.number, descriptor.epoch, len(descriptor.pieces))
    _FIELDS.pack_into(into, 0, _MAGIC, journal_id, *fields, 0, 0, 0, descriptor.data_hash)
    for index, piece in enumerate(descriptor.pieces):
        _PIECE.pack_into(into, _FIELDS.size + index * _PIECE.size, *piece)
    struct.pack_into("<I", into, 40, crc32c(into[: _end(len(descriptor.pieces))]))


def parse(block: memoryview, journal_id: bytes, number: int, data_length: int) -> Descriptor:
    """The descriptor of segment ``number``; raises `JournalDamagedError` unless it is that and possible in a data
    region of ``data_length`` bytes."""
    magic, found_id, found, epoch, count, _, own_crc, _, checksum = _FIELDS.unpack_from(block)
    if magic != _MAGIC or found_id != journal_id or found != number:
        raise damaged(f"segment {number} is not there")
    if not 0 < count <= BATCH_PIECES:
        raise damaged(f"segment {number} has {count} pieces")
    end = _end(count)
    bare = bytearray(block[:end])
    bare[40:44] = bytes(4)
    if crc32c(bare) != own_crc or bytes(block[end:]) != _ZEROS[end:]:
        raise damaged(f"segment {number} is not there")
    pieces = tuple(_PIECE.unpack_from(block, _FIELDS.size + index * _PIECE.size) for index in range(count))
    for offset, length in pieces:
        if (
            offset % _ALIGNMENT
            or length % _ALIGNMENT
            or not 0 < length <= REQUEST_BYTES
            or offset > data_length - length
        ):
            raise damaged(f"segment {number} lies outside the data")
    descriptor = Descriptor(number, epoch, checksum, pieces)
    if descriptor.data_bytes > REQUEST_BYTES:
        raise damaged(f"segment {number} is too long")
    return descriptor


def chain(digest: bytes, block: memoryview) -> bytes:
    """The digest of everything up to the segment of this descriptor, one that was built or parsed; that of nothing is
    32 zeros."""
    return hashlib.sha256(digest + block[: _end(_FIELDS.unpack_from(block)[4])]).digest()


def _end(pieces: int) -> int:
    """Where so many pieces end in a descriptor."""
    return _FIELDS.size + pieces * _PIECE.size


def unreadable(err: OSError) -> JournalDamagedError:
    """The journal's own disk cannot read it."""
    found = JournalDamagedError(
        f"The journal of the secondary could not be read: {err.strerror}.", hint="Look at the disk's health."
    )
    found.doubtful = False
    return found


def damaged(what: str) -> JournalDamagedError:
    return JournalDamagedError(
        f"The journal of the secondary is damaged: {what}.",
        hint="The next resync compares every block; look at the disk's health.",
    )
