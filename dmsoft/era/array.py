# SPDX-License-Identifier: GPL-2.0-or-later
"""Arrays of persistent-data: a btree from array block index to array block, and the blocks, verified in batches.

Source of the format: ``dm-array.c``. The length of an array is not stored: the caller knows it.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
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

# Array blocks read by one request; requests under way, so that the disk never waits for the processor; and blocks
# verified together, which stay in the processor's cache meanwhile.
READ_BLOCKS: Final = 512
_REQUESTS: Final = 3
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


class _Buffer:
    """Memory for one request, and what is handed out of it over and over again."""

    def __init__(self) -> None:
        self.memory = aligned_buffer(READ_BLOCKS)
        starts = range(0, len(self.memory), layout.BLOCK_BYTES)
        self.blocks = [self.memory[at : at + layout.BLOCK_BYTES] for at in starts]
        self.checked = [block[4:] for block in self.blocks]
        self.leaves: Leaves = np.frombuffer(self.memory, "<u4").reshape(READ_BLOCKS, -1)


class ArrayReader:
    """Reads arrays on ``device``. The next requests are under way while blocks are verified."""

    def __init__(self, device: MetadataDevice) -> None:
        self._device = device
        self._btree = BtreeReader(device)
        self._buffers = [_Buffer() for _ in range(_REQUESTS + 1)]
        self._pool = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="era-read")

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
        if len(blocks) <= READ_BLOCKS:
            self._read(blocks, 0, self._buffers[0])
            _hand_over(self._buffers[0], blocks, first, shape, consume)
            return
        coming: deque[Future[None]] = deque()
        starts = range(0, len(blocks), READ_BLOCKS)
        try:
            for number in range(len(starts) + _REQUESTS):
                if number < len(starts):
                    coming.append(self._pool.submit(self._read, blocks, starts[number], self._buffer(number)))
                if number >= _REQUESTS:
                    coming.popleft().result()
                    at = starts[number - _REQUESTS]
                    part = blocks[at : at + READ_BLOCKS]
                    _hand_over(self._buffer(number - _REQUESTS), part, first + at, shape, consume)
        finally:
            # Nothing may write into the buffers behind the back of the next scan.
            wait(coming)

    def _buffer(self, number: int) -> _Buffer:
        return self._buffers[number % len(self._buffers)]

    def _read(self, blocks: Numbers, at: int, buffer: _Buffer) -> None:
        self._device.read_blocks(blocks[at : at + READ_BLOCKS].tolist(), buffer.memory)


def _hand_over(buffer: _Buffer, blocks: Numbers, first: int, shape: ArrayShape, consume: Consumer) -> None:
    """Verify the array blocks ``blocks`` in ``buffer``, the array's blocks from ``first`` on, and pass them on."""
    for begin in range(0, len(blocks), VERIFY_BLOCKS):
        end = min(begin + VERIFY_BLOCKS, len(blocks))
        leaves = buffer.leaves[begin:end]
        good = _good(buffer.checked[begin:end], leaves, blocks[begin:end], first + begin, shape)
        if not good.all():
            bad = begin + int(np.argmin(good))
            raise EraMetadataError(int(blocks[bad]), _complaint(buffer.blocks[bad], buffer.leaves[bad], shape))
        consume(first + begin, leaves)


def _good(
    checked: list[memoryview], leaves: Leaves, blocks: Numbers, first: int, shape: ArrayShape
) -> NDArray[np.bool_]:
    """For each of some array blocks, whether checksum, number and shape are right."""
    found = np.fromiter(map(crc32c, checked), np.uint32, len(checked))
    entries = np.full(len(leaves), shape.per_block, np.uint32)
    if first + len(leaves) == shape.blocks:
        entries[-1] = shape.entries - (shape.blocks - 1) * shape.per_block
    good: NDArray[np.bool_] = (
        (found ^ np.uint32(0xFFFFFFFF ^ layout.ARRAY_SALT) == leaves[:, 0])
        & (leaves[:, 1] == shape.per_block)
        & (leaves[:, 2] == entries)
        & (leaves[:, 3] == shape.value_size)
        & (np.ascontiguousarray(leaves[:, 4:6]).view("<u8").reshape(-1) == blocks)
    )
    return good


def _complaint(block: memoryview, leaf: NDArray[np.uint32], shape: ArrayShape) -> str:
    csum, most, nr, value_size, low, high = leaf[:HEADER_WORDS].tolist()
    if csum != layout.checksum(block, layout.ARRAY_SALT):
        return layout.describe_checksum(block, layout.ARRAY_SALT)
    return (
        f"does not fit its place in an array of {shape.entries} values of {shape.value_size} bytes "
        f"(says block {low | high << 32}, {nr} of {most} values of {value_size} bytes)"
    )
