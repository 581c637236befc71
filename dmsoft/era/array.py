# SPDX-License-Identifier: GPL-2.0-or-later
"""Arrays of persistent-data: a btree from array block index to array block, and the blocks, verified in batches.

Source of the format: ``dm-array.c``. The length of an array is not stored: the caller knows it.
"""

import struct
from array import array
from collections.abc import Callable
from contextlib import closing
from typing import Final, NamedTuple

from crc32c import crc32c

from dmsoft.era import layout
from dmsoft.era.ahead import Buffer, ReadAhead
from dmsoft.era.btree import MAX_KEY, BtreeReader
from dmsoft.era.device import MetadataDevice
from dmsoft.era.errors import EraMetadataError
from dmsoft.era.layout import Numbers

# Called with the index of the first array block of a batch, and its blocks, verified.
Consumer = Callable[[int, memoryview], None]

# Blocks verified together, which stay in the processor's cache until they are consumed.
_VERIFY_BLOCKS: Final = 64
# csum, room for entries, number of entries, bytes of a value, blocknr
_HEADER: Final = struct.Struct("<IIIIQ")


class ArrayShape(NamedTuple):
    """An array of ``entries`` values of ``value_size`` bytes."""

    entries: int
    value_size: int

    @property
    def per_block(self) -> int:
        return layout.array_capacity(self.value_size)

    @property
    def blocks(self) -> int:
        return layout.blocks_needed(self.entries, self.per_block)

    def entries_in(self, index: int) -> int:
        """Entries of the array's block ``index``: all are full, but for the last."""
        return min(self.per_block, self.entries - index * self.per_block)


class ArrayReader:
    """Reads arrays on ``device``. The next requests are under way while blocks are verified."""

    def __init__(self, device: MetadataDevice) -> None:
        self._btree = BtreeReader(device)
        self._ahead = ReadAhead(device)

    def close(self) -> None:
        self._ahead.close()

    def index(self, root: int, shape: ArrayShape, limit: int, first: int = 0, count: int | None = None) -> Numbers:
        """The metadata blocks that hold the array's blocks ``first`` .. ``first + count - 1`` (default: all).

        Raises `EraMetadataError` unless every one of them is there, once; with ``count`` None, and no other.
        """
        end = shape.blocks if count is None else first + count
        high = MAX_KEY if end == shape.blocks else end - 1
        # Its own sub-range bounds the walk, but nodes at its edges have entries on either side.
        most = end - first + 2 * layout.node_capacity(8)
        found = self._btree.entries(root, value_size=8, max_entries=most, limit=limit, low=first, high=high)
        if found.keys != array("Q", range(first, end)):
            raise EraMetadataError(
                root,
                f"the array of {shape.entries} values below it lacks blocks of {first}..{end - 1}, or has others",
            )
        blocks = found.numbers()
        used = bytearray(limit)
        for block in blocks:
            if not 0 < block < limit:
                raise EraMetadataError(block, f"is an array block by the tree at {root}, but outside the metadata")
            used[block] = 1
        if used.count(1) != len(blocks):
            raise EraMetadataError(root, "the array below it has one block twice")
        return blocks

    def scan(self, blocks: Numbers, first: int, shape: ArrayShape, consume: Consumer) -> None:
        """Read and verify ``blocks``, the array's blocks from ``first`` on, and hand them to ``consume``."""
        with closing(self._ahead.read(blocks)) as parts:
            for at, part, buffer in parts:
                for begin in range(0, len(part), _VERIFY_BLOCKS):
                    wanted = part[begin : begin + _VERIFY_BLOCKS]
                    _verify(buffer, begin, wanted, first + at + begin, shape)
                    end = begin + len(wanted)
                    consume(first + at + begin, buffer.memory[begin * layout.BLOCK_BYTES : end * layout.BLOCK_BYTES])


def _verify(buffer: Buffer, begin: int, blocks: Numbers, first: int, shape: ArrayShape) -> None:
    """Raise `EraMetadataError` unless ``blocks`` are in ``buffer`` from its block ``begin`` on, each as it must be.

    That is: checksum, number and shape of the array's blocks from ``first`` on.
    """
    end = begin + len(blocks)
    mask = 0xFFFFFFFF ^ layout.ARRAY_SALT
    per_block, size = shape.per_block, shape.value_size
    entries = [per_block] * (len(blocks) - 1) + [shape.entries_in(first + len(blocks) - 1)]
    wanted = [
        _HEADER.pack(csum ^ mask, per_block, count, size, block)
        for csum, count, block in zip(map(crc32c, buffer.summed[begin:end]), entries, blocks, strict=True)
    ]
    found = buffer.headers[begin:end]
    if b"".join(wanted) != b"".join(found):
        bad = next(index for index, header in enumerate(found) if header != wanted[index])
        raise EraMetadataError(blocks[bad], _complaint(buffer.blocks[begin + bad], shape))


def _complaint(block: memoryview, shape: ArrayShape) -> str:
    csum, most, nr, value_size, blocknr = _HEADER.unpack_from(block)
    if csum != layout.checksum(block, layout.ARRAY_SALT):
        return layout.describe_checksum(block, layout.ARRAY_SALT)
    return (
        f"does not fit its place in an array of {shape.entries} values of {shape.value_size} bytes "
        f"(says block {blocknr}, {nr} of {most} values of {value_size} bytes)"
    )
