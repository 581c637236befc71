# SPDX-License-Identifier: GPL-2.0-or-later
"""One copy of a member's header as bytes: a 4096-byte binary prefix, then the JSON payload.

All integers are little-endian. Offsets are bytes from the start of the copy:

====== ====== =====================================================================================
offset length field
====== ====== =====================================================================================
0      8      magic: 89 "DMSOFT" 0a
8      4      format version, 1
12     4      length of this prefix, 4096
16     8      sequence number; the valid copy with the higher one is the header
24     4      slot: 0 for the copy at byte 0 of the device, 1 for the one at 512 KiB
28     4      length of the payload, 1 to 256 KiB
32     32     checksum: SHA-256 of the prefix with this field zero, then the payload
64     32     mac: HMAC-SHA256 of the prefix with checksum and mac zero, then the payload; zero: unsigned
96     4000   zero
4096   -      payload, then zero up to a multiple of 4096
====== ====== =====================================================================================

Every later version keeps these offsets, the checksum rule and the limits, so that an older dmsoft can tell "newer"
from "torn". All that is not zero in the prefix lies in its first 512 bytes: the prefix is written whole or not at
all, on any disk.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from dmsoft.errors import MetadataError
from dmsoft.member import payload as payloads
from dmsoft.member.payload import AnyPayload
from dmsoft.units import KIB, align_up

MAGIC: Final = b"\x89DMSOFT\n"
VERSION: Final = 1
PREFIX_BYTES: Final = 4096
MAX_PAYLOAD_BYTES: Final = 256 * KIB
MAX_SEQUENCE: Final = (1 << 64) - 1

_FIELDS: Final = struct.Struct("<8sIIQII32s32s")
_CHECKSUM: Final = slice(32, 64)
_MAC: Final = slice(64, 96)
_UNSIGNED: Final = bytes(32)

Key = bytes | Callable[[str], bytes | None] | None
"""The key to verify with, or what finds it by the mirror's uuid (`dmsoft.member.keys.load`); None: not verified."""

Status = Literal[
    "ok",
    "blank",  # the first 4096 bytes are zero
    "foreign",  # something that is not a dmsoft header
    "absent",  # the device ends before it
    "unreadable",  # a medium error
    "torn",  # ours, and its checksum is wrong: an interrupted write, or damage
    "newer-version",  # whole, but of a format that this dmsoft does not know
    "misplaced",  # whole, but it is the other slot's
    "invalid",  # whole, and its payload is not one that dmsoft writes
]


@dataclass(frozen=True, slots=True)
class Copy:
    """What is in one slot. ``sequence`` is None where no magic was found, and not to be believed unless ok.

    ``verified`` is None when no key was given. ``reason`` is one sentence, None for ``ok``.
    """

    slot: int
    status: Status
    sequence: int | None = None
    reason: str | None = None
    payload: AnyPayload | None = None
    verified: bool | None = None

    @property
    def ours(self) -> bool:
        """A dmsoft header is or was here."""
        return self.status in ("ok", "torn", "newer-version", "misplaced", "invalid")


@dataclass(frozen=True, slots=True)
class Prefix:
    """The fields of a prefix that has the magic; nothing in it is checked yet."""

    version: int
    prefix_length: int
    sequence: int
    slot: int
    payload_length: int
    checksum: bytes
    mac: bytes

    @property
    def bounded(self) -> bool:
        """The lengths are ones that a header can have, so the payload may be read."""
        return self.prefix_length == PREFIX_BYTES and 0 < self.payload_length <= MAX_PAYLOAD_BYTES


def unpack(block: bytes) -> Prefix | None:
    """The fields of ``block``, or None if it is shorter than a prefix or lacks the magic."""
    if len(block) < PREFIX_BYTES or not block.startswith(MAGIC):
        return None
    return Prefix(*_FIELDS.unpack_from(block)[1:])


def build(payload: AnyPayload, *, slot: int, sequence: int, key: bytes | None) -> bytes:
    """The bytes of one copy, a multiple of 4096. Raises `MetadataError` for a payload that could not be read again."""
    data = payloads.encode(payload)
    payloads.decode(data)  # values are checked on the way in only; what does not pass must never reach a disk
    if len(data) > MAX_PAYLOAD_BYTES:
        raise MetadataError(
            f"The header would take {len(data)} bytes, and {MAX_PAYLOAD_BYTES} is the most.",
            hint="Remove a secondary from this mirror.",
        )
    block = bytearray(PREFIX_BYTES)
    _FIELDS.pack_into(block, 0, MAGIC, VERSION, PREFIX_BYTES, sequence, slot, len(data), _UNSIGNED, _UNSIGNED)
    if key is not None:
        block[_MAC] = _mac(block, data, key)
    block[_CHECKSUM] = _checksum(block, data)
    return bytes(block) + data.ljust(align_up(len(data), PREFIX_BYTES), b"\0")


def judge(slot: int, block: bytes, data: bytes, key: Key) -> Copy:
    """What the copy made of the prefix ``block`` and the payload ``data`` (as long as the prefix says) is."""
    prefix = unpack(block)
    if prefix is None:
        return _without_magic(slot, block)
    if not prefix.bounded or len(data) != prefix.payload_length or _checksum(block, data) != prefix.checksum:
        return Copy(slot, "torn", prefix.sequence, "The checksum is wrong: a write was interrupted, or it is damaged.")
    if prefix.version != VERSION:
        reason = f"It has format version {prefix.version}; this dmsoft knows version {VERSION}."
        return Copy(slot, "newer-version", prefix.sequence, reason)
    if prefix.slot != slot:
        return Copy(slot, "misplaced", prefix.sequence, "It was written for another place on the disk.")
    try:
        payload = payloads.decode(data)
    except MetadataError as err:
        return Copy(slot, "invalid", prefix.sequence, _printable(err.message))
    secret = key(payload.mirror_uuid) if callable(key) else key
    verified = None if secret is None else hmac.compare_digest(_mac(block, data, secret), prefix.mac)
    return Copy(slot, "ok", prefix.sequence, None, payload, verified)


def _without_magic(slot: int, block: bytes) -> Copy:
    if len(block) < PREFIX_BYTES:
        return Copy(slot, "absent", reason="The device ends before it.")
    if not any(block):
        return Copy(slot, "blank", reason="There are only zeros.")
    return Copy(slot, "foreign", reason="There is something that dmsoft did not write.")


def _checksum(block: bytes | bytearray, data: bytes) -> bytes:
    zeroed = bytearray(block)
    zeroed[_CHECKSUM] = _UNSIGNED
    return hashlib.sha256(zeroed + data).digest()


def _mac(block: bytes | bytearray, data: bytes, key: bytes) -> bytes:
    zeroed = bytearray(block)
    zeroed[_CHECKSUM] = _UNSIGNED
    zeroed[_MAC] = _UNSIGNED
    return hmac.digest(key, zeroed + data, "sha256")


def _printable(text: str) -> str:
    """The text may quote the disk: no escape sequence of it reaches a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text[:200])
