# SPDX-License-Identifier: GPL-2.0-or-later
"""What the soak writes: one block after the other, each telling its number. Where a number goes follows from the seed,
so that the numbers on a disk say which moment it is of, and whether it is of one moment at all."""

import hashlib

import numpy as np
import numpy.typing as npt

from dmsoft.units import KIB

BLOCK: int = 64 * KIB
_WORDS = BLOCK // 8
_SHIFT = 16
TORN = -1

Numbers = npt.NDArray[np.int64]


class Content:
    """The writes of one seed to ``blocks`` blocks. The first number is 1; 0 stands for a block never written."""

    def __init__(self, seed: int, blocks: int) -> None:
        self._seed, self.blocks = seed, blocks
        self._moments = [np.zeros(blocks, np.int64)]

    def place(self, number: int) -> int:
        digest = hashlib.blake2b(f"{self._seed} {number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.blocks

    def at(self, number: int) -> Numbers:
        """What each block holds when that many writes are done."""
        while len(self._moments) <= number:
            after = self._moments[-1].copy()
            after[self.place(len(self._moments))] = len(self._moments)
            self._moments.append(after)
        return self._moments[number]

    def is_one_moment(self, numbers: Numbers) -> bool:
        """Whether a disk with these numbers is as the device was at one moment."""
        newest = int(numbers.max())
        return bool((numbers >= 0).all()) and np.array_equal(numbers, self.at(newest))


def fill(number: int) -> bytes:
    """The bytes of a block with that number."""
    return (np.arange(_WORDS, dtype=np.uint64) + np.uint64(number << _SHIFT)).tobytes()


def numbers_of(data: bytes) -> Numbers:
    """The number in each whole block of ``data``; `TORN` for a block of several, or of something else."""
    words = np.frombuffer(data, np.uint64, len(data) // BLOCK * _WORDS).reshape(-1, _WORDS)
    found = (words[:, 0] >> np.uint64(_SHIFT)).astype(np.int64)
    blank = ~words.any(axis=1)
    whole = (words == np.arange(_WORDS, dtype=np.uint64) + words[:, :1]).all(axis=1)
    return np.where(blank, 0, np.where(whole, found, TORN))


def newest(data: bytes) -> int:
    """The highest number in any part of ``data``, whole or torn."""
    words = np.frombuffer(data, np.uint64, len(data) // BLOCK * _WORDS)
    return int((words >> np.uint64(_SHIFT)).max(initial=0))
