# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets of era blocks as bitsets: one bit a block, every operation in whole words."""

from collections.abc import Iterable, Iterator
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Extents = NDArray[np.int64]

# Words looked at together: bounds the temporaries of an operation to a few MiB, whatever the size of the set.
_CHUNK: Final = 1 << 15
_ONES: Final = np.uint64(0xFFFFFFFFFFFFFFFF)
_WORD: Final = np.dtype("<u8")


class BlockSet:
    """A set of block numbers 0 .. ``nr_blocks`` - 1. ``words``: block b is bit b % 64 of word b // 64.

    Operations on sets of different ``nr_blocks`` raise ``ValueError``; bits past ``nr_blocks`` are always zero.
    """

    __slots__ = ("nr_blocks", "words")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, nr_blocks: int, words: Words) -> None:
        if nr_blocks < 0 or words.shape != (-(-nr_blocks // 64),) or words.dtype != _WORD:
            raise ValueError("words do not fit the number of blocks")
        self.nr_blocks = nr_blocks
        self.words = words
        if nr_blocks % 64:
            words[-1] &= np.uint64((1 << nr_blocks % 64) - 1)

    @classmethod
    def empty(cls, nr: int) -> Self:
        return cls(nr, np.zeros(-(-nr // 64), _WORD))

    @classmethod
    def full(cls, nr: int) -> Self:
        return cls(nr, np.full(-(-nr // 64), _ONES, _WORD))

    @classmethod
    def from_extents(cls, nr: int, extents: Iterable[Iterable[int]] | Extents) -> Self:
        """The blocks of ``extents``, rows (first block, count) in any order, which may overlap."""
        rows = extents if isinstance(extents, np.ndarray) else np.array([tuple(row) for row in extents], np.int64)
        rows = rows.reshape(-1, 2).astype(np.int64, copy=False)
        if len(rows) and (rows.min() < 0 or (rows[:, 0] > nr - rows[:, 1]).any()):
            raise ValueError(f"an extent is outside 0..{nr - 1}")
        blocks = cls.empty(nr)
        rows = rows[rows[:, 1] > 0]
        first, last = rows[:, 0], rows[:, 0] + rows[:, 1] - 1
        head = np.left_shift(_ONES, (first & 63).astype(np.uint64))
        tail = np.right_shift(_ONES, (63 - (last & 63)).astype(np.uint64))
        begin, end = first >> 6, last >> 6
        one = begin == end
        np.bitwise_or.at(blocks.words, begin[one], head[one] & tail[one])
        np.bitwise_or.at(blocks.words, begin[~one], head[~one])
        np.bitwise_or.at(blocks.words, end[~one], tail[~one])
        _fill_between(blocks.words, begin[~one] + 1, end[~one])
        return blocks

    def copy(self) -> Self:
        return type(self)(self.nr_blocks, self.words.copy())

    def add_range(self, first: int, count: int) -> None:
        """Add the blocks ``first`` .. ``first + count - 1``."""
        if first < 0 or count < 0 or first + count > self.nr_blocks:
            raise ValueError(f"blocks {first}..{first + count - 1} are outside 0..{self.nr_blocks - 1}")
        if not count:
            return
        last = first + count - 1
        begin, end = first >> 6, last >> 6
        head, tail = np.uint64(((1 << 64) - 1) << (first & 63) & int(_ONES)), np.uint64((2 << (last & 63)) - 1)
        if begin == end:
            self.words[begin] |= head & tail
            return
        self.words[begin] |= head
        self.words[begin + 1 : end] = _ONES
        self.words[end] |= tail

    def count(self) -> int:
        """How many blocks are in the set."""
        chunks = range(0, len(self.words), _CHUNK)
        return sum(int(np.bitwise_count(self.words[at : at + _CHUNK]).sum(dtype=np.int64)) for at in chunks)

    def extents(self) -> Extents:
        """The set as rows (first block, count), ascending, no two of which touch; shape (n, 2)."""
        parts = list(self.iter_extents())
        return np.concatenate(parts) if parts else np.empty((0, 2), np.int64)

    def split(self, max_blocks: int) -> Extents:
        """As `extents`, but no row has more than ``max_blocks`` blocks."""
        if max_blocks < 1:
            raise ValueError("max_blocks must be at least 1")
        rows = self.extents()
        pieces = -(-rows[:, 1] // max_blocks)
        row = np.repeat(np.arange(len(rows)), pieces)
        piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        first = rows[row, 0] + piece * max_blocks
        count = np.minimum(rows[row, 1] - piece * max_blocks, max_blocks)
        return np.column_stack((first, count)).astype(np.int64, copy=False)

    def iter_extents(self) -> Iterator[Extents]:
        """The rows of `extents` in parts, so that memory stays small whatever the set looks like."""
        carry = np.uint64(0)
        open_run = np.empty(0, np.int64)
        for at in range(0, len(self.words), _CHUNK):
            words = self.words[at : at + _CHUNK]
            before = words << np.uint64(1)
            before[1:] |= words[:-1] >> np.uint64(63)
            before[0] |= carry
            carry = words[-1] >> np.uint64(63)
            starts = np.concatenate((open_run, _positions(words & ~before, at)))
            ends = _positions(before & ~words, at)
            open_run = starts[len(ends) :]
            if len(ends):
                yield np.column_stack((starts[: len(ends)], ends - starts[: len(ends)]))
        if len(open_run):
            yield np.column_stack((open_run, self.nr_blocks - open_run))

    def issubset(self, other: "BlockSet") -> bool:
        self._check(other)
        chunks = range(0, len(self.words), _CHUNK)
        return not any((self.words[at : at + _CHUNK] & ~other.words[at : at + _CHUNK]).any() for at in chunks)

    def __or__(self, other: "BlockSet") -> "BlockSet":
        self._check(other)
        return BlockSet(self.nr_blocks, self.words | other.words)

    def __ior__(self, other: "BlockSet") -> Self:
        self._check(other)
        self.words |= other.words
        return self

    def __and__(self, other: "BlockSet") -> "BlockSet":
        self._check(other)
        return BlockSet(self.nr_blocks, self.words & other.words)

    def __sub__(self, other: "BlockSet") -> "BlockSet":
        self._check(other)
        words = ~other.words
        words &= self.words
        return BlockSet(self.nr_blocks, words)

    def __contains__(self, block: int) -> bool:
        return 0 <= block < self.nr_blocks and bool(int(self.words[block >> 6]) >> (block & 63) & 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockSet):
            return NotImplemented
        return self.nr_blocks == other.nr_blocks and bool(np.array_equal(self.words, other.words))

    def __bool__(self) -> bool:
        return bool(self.words.any())

    def __repr__(self) -> str:
        return f"<BlockSet of {self.count()} out of {self.nr_blocks}>"

    def _check(self, other: "BlockSet") -> None:
        if self.nr_blocks != other.nr_blocks:
            raise ValueError(f"a set of {self.nr_blocks} blocks and one of {other.nr_blocks} do not go together")


def _fill_between(words: Words, begin: Extents, end: Extents) -> None:
    """Set every word of each range ``begin[i]`` .. ``end[i]`` - 1."""
    if not len(begin):
        return
    depth = np.zeros(len(words) + 1, np.int32)
    np.add.at(depth, begin, 1)
    np.add.at(depth, end, -1)
    np.cumsum(depth, out=depth)
    words[depth[:-1] > 0] = _ONES


def _positions(words: Words, at: int) -> Extents:
    """The numbers of the bits that are set, ``words`` being those from word ``at`` on."""
    used = np.flatnonzero(words)
    bits = np.flatnonzero(np.unpackbits(words[used].view(np.uint8), bitorder="little"))
    numbers: Extents = (used[bits >> 6] + at) * 64 + (bits & 63)
    return numbers
