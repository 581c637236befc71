# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole images of era metadata to be damaged, and what is true of them.

Some come from the tests' own writer, with trees of any depth; the others lie in ``kernel/`` as kernels made them, xz
each, their names telling which: ``python -m tests.vm.era_program`` printed them while their target was running.
"""

import lzma
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from dmsoft.era.blocks import BlockSet
from dmsoft.era.reader import EraReader
from tests.era_image import ARRAY_SALT, BLOCK, NODE_SALT, SUPERBLOCK_SALT, Bits, ImageWriter, random_model, seal

INDEX_SALT, BITMAP_SALT = 160478, 240779
SALTS = (SUPERBLOCK_SALT, NODE_SALT, ARRAY_SALT, INDEX_SALT, BITMAP_SALT)
KERNEL_IMAGES = sorted((Path(__file__).parent / "kernel").glob("*.xz"))
_WRITTEN_BLOCKS = 256


def bits_of(blocks: BlockSet) -> Bits:
    """One bool a data block."""
    return np.unpackbits(np.frombuffer(blocks.bits, np.uint8), bitorder="little")[: blocks.nr_blocks].astype(np.bool_)


class Image:
    """``blocks`` of 4096 bytes; ``kinds`` has the checksum salt of those that hold something the reader may want.

    ``space_map``: the blocks of that, where there is one.
    """

    space_map: frozenset[int] = frozenset()

    def __init__(self, blocks: list[bytes], kinds: dict[int, int], current_era: int, snapshot_era: int | None) -> None:
        self.blocks = blocks
        self.kinds = kinds
        self.current_era = current_era
        self.snapshot_era = snapshot_era

    def truth(self, era: int, snapshot: bool) -> Bits:
        """What was written in ``era`` or later, one bool a data block."""
        raise NotImplementedError


class WrittenImage(Image):
    """An image of the tests' own writer, whose model says what is true."""

    def __init__(self, rng: random.Random) -> None:
        self._model = model = random_model(rng, max_blocks=6000)
        shuffle = rng if rng.random() < 0.3 else None
        writer = ImageWriter(_WRITTEN_BLOCKS, fanout=rng.choice([3, 4, 252]), shuffle=shuffle)
        blocks = [block.tobytes() for block in writer.write(model)]
        snapshot_era = model.snapshot.current_era if model.snapshot else None
        super().__init__(blocks, writer.kinds, model.current_era, snapshot_era)
        if model.snapshot:
            # A reading of a snapshot leaves its current writeset out.
            model.snapshot.current = None

    def truth(self, era: int, snapshot: bool) -> Bits:
        model = self._model.snapshot if snapshot and self._model.snapshot else self._model
        return model.since(era)


class KernelImage(Image):
    """An image of a kernel; what the reader finds in it unharmed is true, which other tests prove."""

    def __init__(self, path: Path) -> None:
        data = lzma.decompress(path.read_bytes())
        blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
        self._truths: dict[tuple[int, bool], Bits] = {}
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            with EraReader(file.name) as reader:
                visited = _watch(reader)
                reader.check_space_map()
                self.space_map = frozenset(visited - {0})
                newest, snapshot = reader.superblock().current_era, reader.superblock().metadata_snap
                old = reader.written_since(1, snapshot=True).superblock.current_era if snapshot else None
                for era in range(newest + 2):
                    self._truths[era, False] = bits_of(reader.written_since(era).blocks)
                for era in range(old + 2 if old else 0):
                    self._truths[era, True] = bits_of(reader.written_since(era, snapshot=True).blocks)
        # All else is free: old copies, which nobody looks at.
        kinds = {
            number: next(salt for salt in SALTS if seal(blocks[number], salt) == blocks[number])
            for number in sorted(visited)
        }
        super().__init__(blocks, kinds, newest, old)

    def truth(self, era: int, snapshot: bool) -> Bits:
        return self._truths[era, snapshot]


def _watch(reader: EraReader) -> set[int]:
    """The blocks that ``reader`` reads from now on."""
    device, visited = reader._device, set[int]()
    read = device.read_blocks

    def watched(blocks: Sequence[int], buffer: memoryview) -> None:
        visited.update(blocks)
        read(blocks, buffer)

    device.read_blocks = watched  # type: ignore[method-assign]
    return visited


kernel_image = cache(KernelImage)


def random_image(rng: random.Random) -> Image:
    """One image in three is a kernel's."""
    if KERNEL_IMAGES and rng.random() < 1 / 3:
        return kernel_image(rng.choice(KERNEL_IMAGES))
    return WrittenImage(rng)
