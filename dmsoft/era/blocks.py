# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets of era blocks as bitsets: one bit a block, every operation in long stretches of them."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, Self

from dmsoft.era import marks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Extents = NDArray[np.int64]

_WORD_BYTES: Final = 8
# Looked at together: bounds the temporaries of an operation to a few MiB, whatever the size of the set.
_CHUNK_WORDS: Final = 1 << 15
_CHUNK: Final = _CHUNK_WORDS * _WORD_BYTES
# A run as `marks.flips` tells it: two numbers of 64 bits.
_RUN_BYTES: Final = 16


class BlockSet:
    """A set of block numbers 0 .. ``nr_blocks`` - 1. ``bits``: block b is bit b % 8 of byte b // 8, in words of 64.

    Operations on sets of different ``nr_blocks`` raise ``ValueError``; bits past ``nr_blocks`` are always zero.
    """

    __slots__ = ("bits", "nr_blocks")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, nr_blocks: int, bits: bytearray) -> None:
        if nr_blocks < 0 or len(bits) != _bytes_for(nr_blocks):
            raise ValueError("bits do not fit the number of blocks")
        self.nr_blocks = nr_blocks
        self.bits = bits
        if nr_blocks % 64:
            last = int.from_bytes(bits[-_WORD_BYTES:], "little") & ((1 << nr_blocks % 64) - 1)
            bits[-_WORD_BYTES:] = last.to_bytes(_WORD_BYTES, "little")

    @classmethod
    def empty(cls, nr: int) -> Self:
        return cls(nr, bytearray(_bytes_for(nr)))

    @classmethod
    def full(cls, nr: int) -> Self:
        return cls(nr, bytearray(b"\xff" * _bytes_for(nr)))

    @classmethod
    def from_extents(cls, nr: int, extents: "Iterable[Iterable[int]] | Extents") -> Self:
        """The blocks of ``extents``, rows (first block, count) in any order, which may overlap."""
        blocks = cls.empty(nr)
        for first, count in extents:
            blocks.add_range(int(first), int(count))
        return blocks

    def copy(self) -> Self:
        return type(self)(self.nr_blocks, self.bits.copy())

    def window(self, first: int, count: int) -> Self:
        """The blocks ``first``, a multiple of 64, .. ``first + count - 1``, numbered from 0."""
        if first % 64 or first < 0 or count < 0 or first + count > self.nr_blocks:
            raise ValueError(f"blocks {first}..{first + count - 1} are no window of 0..{self.nr_blocks - 1}")
        return type(self)(count, self.bits[first >> 3 : (first >> 3) + _bytes_for(count)])

    def add_range(self, first: int, count: int) -> None:
        """Add the blocks ``first`` .. ``first + count - 1``."""
        end = first + count
        if first < 0 or count < 0 or end > self.nr_blocks:
            raise ValueError(f"blocks {first}..{end - 1} are outside 0..{self.nr_blocks - 1}")
        if not count:
            return
        begin_byte, last_byte = first >> 3, (end - 1) >> 3
        head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (-end & 7)
        if begin_byte == last_byte:
            self.bits[begin_byte] |= head & tail
            return
        self.bits[begin_byte] |= head
        self.bits[begin_byte + 1 : last_byte] = b"\xff" * (last_byte - begin_byte - 1)
        self.bits[last_byte] |= tail

    def count(self) -> int:
        """How many blocks are in the set."""
        return sum(number.bit_count() for number in _numbers(self.bits))

    def runs(self) -> Iterator[tuple[int, int]]:
        """The set as runs (first block, count), ascending, no two of which touch."""
        for bounds in self._bounds():
            numbers = iter(memoryview(bounds).cast("q"))
            for begin, end in zip(numbers, numbers, strict=True):
                yield begin, end - begin

    def extents(self) -> "Extents":
        """The `runs` as rows of an array, shape (n, 2)."""
        import numpy as np

        rows = np.frombuffer(b"".join(self._bounds()), np.int64).reshape(-1, 2).copy()
        rows[:, 1] -= rows[:, 0]
        return rows

    def issubset(self, other: "BlockSet") -> bool:
        self._check(other)
        return not any(mine & ~theirs for mine, theirs in zip(_numbers(self.bits), _numbers(other.bits), strict=True))

    def __or__(self, other: "BlockSet") -> "BlockSet":
        return self._with(other, lambda mine, theirs: mine | theirs)

    def __ior__(self, other: "BlockSet") -> Self:
        self.bits[:] = (self | other).bits
        return self

    def __and__(self, other: "BlockSet") -> "BlockSet":
        return self._with(other, lambda mine, theirs: mine & theirs)

    def __sub__(self, other: "BlockSet") -> "BlockSet":
        return self._with(other, lambda mine, theirs: mine & ~theirs)

    def __contains__(self, block: int) -> bool:
        return 0 <= block < self.nr_blocks and bool(self.bits[block >> 3] >> (block & 7) & 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockSet):
            return NotImplemented
        return self.nr_blocks == other.nr_blocks and self.bits == other.bits

    def __bool__(self) -> bool:
        return self.bits != bytes(len(self.bits))

    def __repr__(self) -> str:
        return f"<BlockSet of {self.count()} out of {self.nr_blocks}>"

    def _bounds(self) -> Iterator[bytes]:
        """The first block of each run and the one after its last, in parts, so that memory stays small."""
        words = len(self.bits) // _WORD_BYTES
        rest = b""
        for begin in range(0, words, _CHUNK_WORDS):
            found = rest + marks.flips(self.bits, begin, min(begin + _CHUNK_WORDS, words))
            whole = len(found) - len(found) % _RUN_BYTES
            rest = found[whole:]
            yield found[:whole]
        if rest:
            yield rest + self.nr_blocks.to_bytes(_RUN_BYTES // 2, sys.byteorder)

    def _with(self, other: "BlockSet", operation: Callable[[int, int], int]) -> "BlockSet":
        self._check(other)
        bits = bytearray()
        for mine, theirs in zip(_numbers(self.bits), _numbers(other.bits), strict=True):
            bits += operation(mine, theirs).to_bytes(min(_CHUNK, len(self.bits) - len(bits)), "little")
        return BlockSet(self.nr_blocks, bits)

    def _check(self, other: "BlockSet") -> None:
        if self.nr_blocks != other.nr_blocks:
            raise ValueError(f"a set of {self.nr_blocks} blocks and one of {other.nr_blocks} do not go together")


def _bytes_for(nr_blocks: int) -> int:
    return -(-nr_blocks // 64) * _WORD_BYTES


def _numbers(bits: bytearray) -> Iterator[int]:
    """``bits`` in chunks, each as one number."""
    return (int.from_bytes(bits[at : at + _CHUNK], "little") for at in range(0, len(bits), _CHUNK))
