# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes metadata of any size as a busy device has it: FILE and the number of data blocks.

Most blocks were written long ago. The last eras wrote short runs: some are digested, two wait in writesets. No
current writeset and eras that begin below the first writeset, so that every tool must read the array and agree.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from tests.era_image import BLOCK, Bits, ImageWriter

SINCE = 45
CURRENT_ERA = 50
_WRITESETS = (47, 49)
_LEAF = 1018
_RUN = 64


def build(path: str, nr_blocks: int) -> None:
    noise = np.random.default_rng(nr_blocks)
    blocks = (nr_blocks // _LEAF + 2 * nr_blocks // 32576) * 102 // 100 + 1024
    with open(path, "wb") as file:
        file.truncate(blocks * BLOCK)
    image = np.memmap(path, np.uint8, "r+", shape=(blocks, BLOCK))
    writer = ImageWriter(blocks, image=image)
    old = noise.integers(0, 40, 1 << 16, np.uint32)

    def eras(begin: int, end: int) -> NDArray[np.uint32]:
        at = int(noise.integers(0, len(old) - _LEAF))
        part = old[at : at + end - begin].copy()
        if noise.random() < 0.3:
            run = int(noise.integers(0, len(part)))
            part[run : run + int(noise.integers(1, _RUN))] = noise.integers(44, 47)
        return part

    def bits() -> Bits:
        found = np.zeros(nr_blocks, np.bool_)
        for run in noise.integers(0, nr_blocks - _RUN, nr_blocks >> 14).tolist():
            found[run : run + int(noise.integers(1, _RUN))] = True
        return found

    array = writer.array_of(nr_blocks, 4, eras)
    writesets = {era: (nr_blocks, writer.bitset(bits())) for era in _WRITESETS}
    writer.roots((128, 8, nr_blocks, CURRENT_ERA), writesets, (0, 0), array)
    image.flush()


if __name__ == "__main__":
    build(sys.argv[1], int(sys.argv[2]))
