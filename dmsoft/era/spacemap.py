# SPDX-License-Identifier: GPL-2.0-or-later
"""The metadata space map: which metadata blocks are in use. The kernel needs it to write; a reader of eras does not.

It is checked before the kernel is let at metadata that may be damaged: what the kernel finds out later, in the middle
of a commit, fails the user's writes. Source of the format: ``dm-space-map-common.h``, ``dm-space-map-metadata.c``.
"""

import struct
from typing import Final

from dmsoft.era import layout
from dmsoft.era.btree import BtreeReader
from dmsoft.era.device import MetadataDevice, aligned_buffer
from dmsoft.era.errors import EraMetadataError
from dmsoft.era.superblock import SpaceMapRoot

# Blocks that one bitmap block counts, at two bits each behind its header of 16 bytes.
_PER_BITMAP: Final = (layout.BLOCK_BYTES - 16) * 4
# Of an index block: csum, padding, blocknr; then an entry a bitmap: blocknr, nr_free, none_free_before.
_HEADER: Final = struct.Struct("<IIQ")
_ENTRY: Final = struct.Struct("<QII")


def check_space_map(device: MetadataDevice, root: SpaceMapRoot) -> None:
    """Verify checksum, number and bounds of every block of the space map. Raises `EraMetadataError`, `DeviceError`.

    Only for metadata that lies still.
    """
    limit, count = root.nr_blocks, layout.blocks_needed(root.nr_blocks, _PER_BITMAP)
    if not 0 < root.bitmap_root < limit or not 0 < root.ref_count_root < limit:
        raise EraMetadataError(0, "the space map's roots are outside the metadata")
    buffer = aligned_buffer(1)
    _read(device, root.bitmap_root, buffer, layout.INDEX_SALT)
    entries = [_ENTRY.unpack_from(buffer, _HEADER.size + _ENTRY.size * n) for n in range(count)]
    for block, free, _ in entries:
        if not 0 < block < limit:
            raise EraMetadataError(root.bitmap_root, f"has a bitmap at block {block}, outside the metadata")
        if free > _PER_BITMAP:  # in the last one the kernel counts blocks beyond the end as well
            raise EraMetadataError(root.bitmap_root, f"counts {free} free blocks where there are not as many")
    if len({block for block, _, _ in entries}) != count:
        raise EraMetadataError(root.bitmap_root, "has a bitmap twice")
    for block, _, _ in entries:
        _read(device, block, buffer, layout.BITMAP_SALT)
    BtreeReader(device).entries(root.ref_count_root, value_size=4, max_entries=limit, limit=limit, high=limit - 1)


def _read(device: MetadataDevice, block: int, buffer: memoryview, salt: int) -> None:
    device.read_blocks([block], buffer)
    csum, _, blocknr = _HEADER.unpack_from(buffer)
    if csum != layout.checksum(buffer, salt):
        raise EraMetadataError(block, layout.describe_checksum(buffer, salt))
    if blocknr != block:
        raise EraMetadataError(block, f"says it is block {blocknr}")
