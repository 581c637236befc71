# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of a secondary's journal: one block at the start of the journal region, which alone makes it count.

It is valid only behind everything it speaks for: what lies in the journal is flushed first, the record is written and
flushed after. It names the header that it was made under, by sequence number, so that every later write of the header
but the one it asks for itself retires it. All integers are little-endian:

====== ====== =====================================================================================
offset length field
====== ====== =====================================================================================
0      8      magic: 89 "DMSJRN" 0a
8      4      format version, 1
12     4      length of the payload
16     32     checksum: SHA-256 of the block with checksum and mac zero
48     32     mac: HMAC-SHA256 with the mirror's key of the block with checksum and mac zero
80     -      payload (JSON), then zero up to 4096
====== ====== =====================================================================================
"""

import hashlib
import hmac
import struct
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from dmsoft.errors import DmsoftError, MetadataError
from dmsoft.member import header as headers
from dmsoft.member.disk import Disk, opened
from dmsoft.member.header import Header
from dmsoft.member.payload import Bytes, Count, Digest, EraNumber, Secondary, Sync, Uuid, Value

RECORD_BYTES: Final = 4096

_MAGIC: Final = b"\x89DMSJRN\n"
_VERSION: Final = 1
_FIELDS: Final = struct.Struct("<8sII32s32s")
_CHECKSUM: Final = slice(16, 48)
_MAC: Final = slice(48, 80)


class Record(Value, frozen=True):
    """What a journal holds, and for which disk in which state it was written.

    ``committed``: the header is to say ``sync`` as soon as the journal was applied; else ``sync`` is what the disk and
    the journal hold together, for a run that goes on where one was cut off. ``old_era`` is the S of the header.
    ``epoch`` counts the passes; ``segments`` and ``length`` are how much lies in the journal, ``digest`` the chain of
    its descriptors.
    """

    id: Uuid
    member_uuid: Uuid
    header_sequence: Count
    committed: bool
    sync: Sync
    epoch: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
    segments: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
    length: Bytes
    digest: Digest
    old_era: EraNumber | None = None

    @property
    def state(self) -> Literal["staged", "committed"]:
        return "committed" if self.committed else "staged"

    def belongs_to(self, header: Header) -> bool:
        """Whether it was written under exactly this header. Its two copies have numbers in a row, and say the same."""
        payload = header.payload
        return (
            isinstance(payload, Secondary)
            and self.member_uuid == payload.member_uuid
            and self.header_sequence - 1 <= header.sequence <= self.header_sequence
            and self.old_era == payload.sync.era
        )


_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder(order="deterministic")


def build(record: Record, key: bytes) -> bytes:
    """The block; raises `MetadataError` for a record that could not be read again."""
    data = _encoder.encode(record)
    _decode(data)
    if _FIELDS.size + len(data) > RECORD_BYTES:
        raise MetadataError("The record of the journal is too long.", hint="Please report this.")
    bare = _FIELDS.pack(_MAGIC, _VERSION, len(data), bytes(32), bytes(32)) + data
    block = bytearray(bare.ljust(RECORD_BYTES, b"\0"))
    block[_CHECKSUM], block[_MAC] = hashlib.sha256(block).digest(), hmac.digest(key, block, "sha256")
    return bytes(block)


def judge(block: bytes, key: bytes) -> Record | None:
    """The record in ``block``; None for anything that was not written whole and with that key."""
    if len(block) != RECORD_BYTES:
        return None
    magic, version, length, checksum, mac = _FIELDS.unpack_from(block)
    if magic != _MAGIC or version != _VERSION or length > RECORD_BYTES - _FIELDS.size:
        return None
    bare = bytearray(block)
    bare[_CHECKSUM] = bare[_MAC] = bytes(32)
    if hashlib.sha256(bare).digest() != checksum or not hmac.compare_digest(hmac.digest(key, bare, "sha256"), mac):
        return None
    try:
        return _decode(block[_FIELDS.size : _FIELDS.size + length])
    except MetadataError:
        return None


def read(disk: Disk, header: Header, key: bytes | None) -> Record | None:
    """The record of a secondary's journal if it counts under this header. Raises `OSError`.

    ``header`` must be verified with ``key``: without it nothing in a journal is believed.
    """
    region = header.payload.regions.get("journal")
    if region is None or key is None or not header.verified or region.length < RECORD_BYTES:
        return None
    record = judge(disk.pread(RECORD_BYTES, region.offset), key)
    return record if record is not None and record.belongs_to(header) else None


def record_of(path: str, key: bytes | None) -> Record | None:
    """The record that counts on the secondary at ``path``; None when there is none or it cannot be read."""
    try:
        with opened(path) as disk:
            found = headers.read(disk, key=key).header
            return None if found is None else read(disk, found, key)
    except (DmsoftError, OSError):
        return None


def _decode(data: bytes) -> Record:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError) as err:
        raise MetadataError(f"The record of the journal is not valid: {err}.") from err
