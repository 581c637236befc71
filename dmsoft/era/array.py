# SPDX-License-Identifier: GPL-2.0-or-later
"""Arrays of persistent-data: a btree from array block index to array block, and the blocks, verified in batches.

Source of the format: ``dm-array.c``. The length of an array is not stored: the caller knows it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from dmsoft.era import layout
from dmsoft.era.btree import MAX_KEY, BtreeReader, Numbers
from dmsoft.era.device import MetadataDevice, aligned_buffer
from dmsoft.era.errors import EraMetadataError

Leaves = NDArray[np.uint32]
# Called with the index of the first array block of a batch, and the batch: shape (blocks, 1024) of 32-bit words.
Consumer = Callable[[int, Leaves], None]

# Array blocks read by one request, and verified together (they stay in the processor's cache meanwhile).
READ_BLOCKS: Final = 1024
VERIFY_BLOCKS: Final = 64
# 32-bit words of an array block's header.
HEADER_WORDS: Final = layout.ARRAY_HEADER_BYTES // 4


@dataclass(frozen=True, slots=True)
class ArrayShape:
    """An array of ``entries`` values of ``value_size`` bytes."""

    entries: int
    value_size: int

    @property
    def per_block(self) -> int:
        return layout.array_capacity(self.value_size)

    @property
    def blocks(self) -> int:
        return layout.blocks_needed(self.entries, self.per_block)


class ArrayReader:
    """Reads arrays on ``device``. The next batch is being read while one is verified."""

    def __init__(self, device: MetadataDevice) -> None:
        self._device = device
        self._btree = BtreeReader(device)
        self._buffers = (aligned_buffer(READ_BLOCKS), aligned_buffer(READ_BLOCKS))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="era-read")

    def close(self) -> None:
        self._pool.shutdown()

    def index(self, root: int, shape: ArrayShape, limit: int, first: int = 0, count: int | None = None) -> Numbers:
        """The metadata blocks that hold the array's blocks ``first`` .. ``first + count - 1`` (default: all).

        Raises `EraMetadataError` unless every one of them is there, once; with ``count`` None, and no other.
        """
        end = shape.blocks if count is None else first + count
        high = MAX_KEY if end == shape.blocks else end - 1
        # Its own sub-range bounds the walk, but nodes at its edges have entries on either side.
        most = end - first + 2 * layout.node_capacity(8)
        found = self._btree.entries(root, value_size=8, max_entries=most, limit=limit, low=first, high=high)
        if len(found.keys) != end - first or (found.keys != np.arange(first, end, dtype=np.uint64)).any():
            raise EraMetadataError(
                root,
                f"the array of {shape.entries} values below it lacks blocks of {first}..{end - 1}, or has others",
            )
        blocks = found.numbers()
        used = np.zeros(limit, np.bool_)
        if len(blocks):
            if int(blocks.max()) >= limit or not blocks.all():
                bad = int(blocks[(blocks >= limit) | (blocks == 0)][0])
                raise EraMetadataError(bad, f"is an array block by the tree at {root}, but outside the metadata")
            used[blocks] = True
            if np.count_nonzero(used) != len(blocks):
                raise EraMetadataError(root, "the array below it has one block twice")
        return blocks

    def scan(self, blocks: Numbers, first: int, shape: ArrayShape, consume: Consumer) -> None:
        """Read and verify ``blocks``, the array's blocks from ``first`` on, and hand them to ``consume``."""
        for at, view in self._read_ahead(blocks.tolist()):
            for offset in range(0, len(view) // layout.BLOCK_BYTES, VERIFY_BLOCKS):
                part = view[offset * layout.BLOCK_BYTES : (offset + VERIFY_BLOCKS) * layout.BLOCK_BYTES]
                leaves = np.frombuffer(part, "<u4").reshape(-1, layout.BLOCK_BYTES // 4)
                start = at + offset
                _verify(part, leaves, blocks[start : start + len(leaves)], first + start, shape)
                consume(first + start, leaves)

    def _read_ahead(self, blocks: list[int]) -> Iterator[tuple[int, memoryview]]:
        """Parts of ``blocks``: place of the first, and their bytes, valid until the next part is asked for."""
        at = number = 0
        coming: Future[memoryview] | None = None
        while at < len(blocks):
            view = coming.result() if coming else self._read(blocks[:READ_BLOCKS], 0)
            number += 1
            following = blocks[at + READ_BLOCKS : at + 2 * READ_BLOCKS]
            coming = self._pool.submit(self._read, following, number % 2) if following else None
            try:
                yield at, view
            except BaseException:
                if coming:
                    coming.exception()
                raise
            at += READ_BLOCKS

    def _read(self, blocks: list[int], buffer: int) -> memoryview:
        view = self._buffers[buffer][: len(blocks) * layout.BLOCK_BYTES]
        self._device.read_blocks(blocks, view)
        return view


def _verify(part: memoryview, leaves: Leaves, blocks: Numbers, first: int, shape: ArrayShape) -> None:
    """Checksum, number and shape of a batch of array blocks, the first being the array's block ``first``."""
    view, size = part, layout.BLOCK_BYTES
    found = np.array([crc32c(view[at + 4 : at + size]) for at in range(0, len(view), size)], np.uint32)
    entries = np.full(len(leaves), shape.per_block, np.uint32)
    if first + len(leaves) == shape.blocks:
        entries[-1] = shape.entries - (shape.blocks - 1) * shape.per_block
    good = (
        (found ^ np.uint32(0xFFFFFFFF ^ layout.ARRAY_SALT) == leaves[:, 0])
        & (leaves[:, 1] == shape.per_block)
        & (leaves[:, 2] == entries)
        & (leaves[:, 3] == shape.value_size)
        & (np.ascontiguousarray(leaves[:, 4:6]).view("<u8").reshape(-1) == blocks)
    )
    if not good.all():
        bad = int(np.argmin(good))
        raise EraMetadataError(int(blocks[bad]), _complaint(view[bad * size :][:size], leaves[bad], shape))


def _complaint(block: memoryview, leaf: NDArray[np.uint32], shape: ArrayShape) -> str:
    csum, most, nr, value_size, low, high = leaf[:HEADER_WORDS].tolist()
    if csum != layout.checksum(block, layout.ARRAY_SALT):
        return layout.describe_checksum(block, layout.ARRAY_SALT)
    return (
        f"does not fit its place in an array of {shape.entries} values of {shape.value_size} bytes "
        f"(says block {low | high << 32}, {nr} of {most} values of {value_size} bytes)"
    )
