# SPDX-License-Identifier: GPL-2.0-or-later
"""The superblock of dm-era metadata, parsed without trust (``struct superblock_disk`` in ``dm-era-target.c``)."""

import struct
from typing import Final, NamedTuple

from dmsoft.era import layout
from dmsoft.era.errors import EraMetadataError
from dmsoft.units import SECTOR

MAGIC: Final = 2126579579
VERSION: Final = 1

# csum, flags, blocknr, uuid, magic, version, space map root (its 32 used bytes of 128), data block size, metadata
# block size, nr_blocks, current era, current writeset (nr_bits, root), writeset tree root, era array root, snapshot
_FORMAT: Final = struct.Struct("<IIQ16sQI QQQQ 96x II II IQ QQQ")


class SpaceMapRoot(NamedTuple):
    """The metadata space map: sizes in metadata blocks, roots as metadata block numbers."""

    nr_blocks: int
    nr_allocated: int
    bitmap_root: int
    ref_count_root: int


class WritesetRoot(NamedTuple):
    """A bitset of the data blocks written in one era. ``root`` 0: there is none."""

    nr_bits: int
    root: int


class Superblock(NamedTuple):
    """One superblock. Block sizes are in sectors, ``nr_blocks`` counts data blocks, roots are metadata blocks."""

    csum: int
    flags: int
    blocknr: int
    uuid: bytes
    magic: int
    version: int
    space_map: SpaceMapRoot
    data_block_size: int
    metadata_block_size: int
    nr_blocks: int
    current_era: int
    current_writeset: WritesetRoot
    writeset_tree_root: int
    era_array_root: int
    metadata_snap: int

    @property
    def block_bytes(self) -> int:
        """Bytes of one data block, the unit in which writes are tracked."""
        return self.data_block_size * SECTOR


def parse_superblock(block: bytes | memoryview, *, location: int, device_blocks: int) -> Superblock:
    """The superblock read from metadata block ``location`` of a device of ``device_blocks`` metadata blocks.

    Raises `EraMetadataError` if anything in it cannot be so.
    """
    view = memoryview(block)
    fields = _FORMAT.unpack_from(view)
    csum, flags, blocknr, uuid, magic, version = fields[:6]
    if csum != layout.checksum(view, layout.SUPERBLOCK_SALT):
        raise EraMetadataError(location, layout.describe_checksum(view, layout.SUPERBLOCK_SALT))
    data_block_size, metadata_block_size, nr_blocks, current_era = fields[10:14]
    superblock = Superblock(
        csum=csum,
        flags=flags,
        blocknr=blocknr,
        uuid=uuid,
        magic=magic,
        version=version,
        space_map=SpaceMapRoot(*fields[6:10]),
        data_block_size=data_block_size,
        metadata_block_size=metadata_block_size,
        nr_blocks=nr_blocks,
        current_era=current_era,
        current_writeset=WritesetRoot(*fields[14:16]),
        writeset_tree_root=fields[16],
        era_array_root=fields[17],
        metadata_snap=fields[18],
    )
    problem = _problem(superblock, location, device_blocks)
    if problem:
        raise EraMetadataError(location, problem)
    return superblock


def _problem(sb: Superblock, location: int, device_blocks: int) -> str | None:
    """What in ``sb`` contradicts the format, the device or itself."""
    array_blocks = layout.blocks_needed(sb.nr_blocks, layout.array_capacity(4))
    checks = (
        (sb.blocknr == location, f"says it is block {sb.blocknr}"),
        (sb.magic == MAGIC, f"the magic number is {sb.magic:#x}"),
        (sb.version == VERSION, f"the format's version is {sb.version}, not {VERSION}"),
        (sb.metadata_block_size * SECTOR == layout.BLOCK_BYTES, "the metadata block size is not 4096 bytes"),
        (sb.data_block_size > 0, "the data block size is zero"),
        (sb.data_block_size % 8 == 0, f"the data block size of {sb.data_block_size} sectors is not whole 4 KiB"),
        (sb.space_map.nr_blocks <= layout.MAX_METADATA_BLOCKS, "more metadata blocks than the format can have"),
        (
            sb.space_map.nr_blocks <= device_blocks,
            f"the metadata has {sb.space_map.nr_blocks} blocks, its device only {device_blocks}",
        ),
        (sb.space_map.nr_allocated <= sb.space_map.nr_blocks, "more metadata blocks in use than there are"),
        (sb.nr_blocks <= layout.MAX_DATA_BLOCKS, f"{sb.nr_blocks} data blocks are more than dm-era can have"),
        (array_blocks < sb.space_map.nr_blocks, f"{sb.nr_blocks} data blocks do not fit into the metadata"),
        (
            0 < sb.writeset_tree_root < sb.space_map.nr_blocks,
            f"writeset tree root {sb.writeset_tree_root} is outside",
        ),
        (0 < sb.era_array_root < sb.space_map.nr_blocks, f"era array root {sb.era_array_root} is outside"),
        (sb.current_writeset.root < sb.space_map.nr_blocks, f"writeset root {sb.current_writeset.root} is outside"),
        (sb.metadata_snap < sb.space_map.nr_blocks, f"metadata snapshot {sb.metadata_snap} is outside"),
    )
    return next((what for holds, what in checks if not holds), None)
