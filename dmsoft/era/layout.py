# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the on-disk format shared by every kind of metadata block.

Sources: ``persistent-data/dm-block-manager.c`` (checksum), ``dm-btree-internal.h``, ``dm-btree-spine.c``,
``dm-array.c``, ``dm-space-map-metadata.h`` and ``dm-era-target.c`` of Linux. All integers are little-endian.
"""

import sys
from array import array
from typing import TYPE_CHECKING, Final

from crc32c import crc32c

# Keys, block numbers: 64 bits each, without an object for each of them.
if TYPE_CHECKING:
    Numbers = array[int]
else:
    Numbers = array

BLOCK_BYTES: Final = 4096

# The kernel never uses more metadata than its index block of space-map bitmaps can describe.
MAX_METADATA_BLOCKS: Final = 255 * ((1 << 14) - 64)
# The in-core bitset of dm-era takes at most this many data blocks.
MAX_DATA_BLOCKS: Final = (1 << 31) - 1

SUPERBLOCK_SALT: Final = 146538381
NODE_SALT: Final = 121107
ARRAY_SALT: Final = 595846735
INDEX_SALT: Final = 160478
BITMAP_SALT: Final = 240779

_KINDS: Final = {
    SUPERBLOCK_SALT: "an era superblock",
    NODE_SALT: "a btree node",
    ARRAY_SALT: "an array block",
    INDEX_SALT: "a space map index",
    BITMAP_SALT: "a space map bitmap",
    160774: "a thin-pool superblock",
    9031977: "a cache superblock",
}

NODE_HEADER_BYTES: Final = 32
ARRAY_HEADER_BYTES: Final = 24


def node_capacity(value_size: int) -> int:
    """Entries in a btree node for values of ``value_size`` bytes; always a multiple of three."""
    return 3 * ((BLOCK_BYTES - NODE_HEADER_BYTES) // (8 + value_size) // 3)


def array_capacity(value_size: int) -> int:
    """Entries in an array block for values of ``value_size`` bytes."""
    return (BLOCK_BYTES - ARRAY_HEADER_BYTES) // value_size


def blocks_needed(entries: int, capacity: int) -> int:
    return -(-entries // capacity)


def numbers(data: bytes | memoryview) -> Numbers:
    """The 64-bit numbers that ``data`` is made of."""
    found = array("Q", bytes(data))
    if sys.byteorder == "big":
        found.byteswap()
    return found


def checksum(block: bytes | memoryview, salt: int) -> int:
    """The checksum that belongs into the first four bytes of ``block`` (4096 bytes)."""
    # The kernel leaves out the final inversion that every library does.
    return crc32c(memoryview(block)[4:BLOCK_BYTES]) ^ 0xFFFFFFFF ^ salt


def describe_checksum(block: bytes | memoryview, salt: int) -> str:
    """Why the checksum of ``block`` is not the one of the kind that ``salt`` stands for."""
    view = memoryview(block)[:BLOCK_BYTES]
    if not any(view):
        return f"should be {_KINDS[salt]} but is all zero"
    stored = int.from_bytes(view[:4], "little")
    found = _KINDS.get(checksum(view, 0) ^ stored)
    return f"should be {_KINDS[salt]} but is {found}" if found else f"the checksum of {_KINDS[salt]} is wrong"
