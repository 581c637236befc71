# SPDX-License-Identifier: GPL-2.0-or-later
"""A dm-era that changes its metadata between any two blocks that somebody reads: the kernel at its least considerate.

It keeps the kernel's rules and no more: changed blocks go to new places, the lowest that are free both now and in
the last commit; the superblock comes last; digestion takes the lowest era, bits ascending, removes the era when done
and becomes visible with the next commit. It has no pauses: a commit begins when the last one ends.
"""

import random
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tests.era_image import ARRAY_SALT, BLOCK, MAGIC, NODE_SALT, SUPERBLOCK_SALT, seal

_MARKS = 40
_DIGESTED_BITS = 3000
_WAITING = 6


class Space:
    """Which blocks are free, by the rule that keeps the last commit readable."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.used = {0}
        self.committed = {0}

    def alloc(self) -> int:
        block = next(block for block in range(self.blocks) if block not in self.used and block not in self.committed)
        self.used.add(block)
        return block

    def commit(self) -> None:
        self.committed = set(self.used)


class Tree:
    """A btree whose entries are (key, value bytes); every change moves the blocks from the entry to the root."""

    def __init__(self, space: Space, value_size: int, fanout: int) -> None:
        self.space, self.value_size, self.fanout = space, value_size, fanout
        self.entries: dict[int, bytes] = {}
        self.nodes: dict[tuple[int, int], tuple[int, bytes]] = {}
        self.root = 0

    def write(self) -> Iterator[tuple[int, bytes]]:
        """Bring the tree in line with ``entries``: yields (block, contents) for what has to be written."""
        level, flags, size = 0, 2, self.value_size
        entries = sorted(self.entries.items())
        kept: dict[tuple[int, int], tuple[int, bytes]] = {}
        while True:
            # Fixed cuts, so that a change at one end does not move everything.
            parts: dict[int, list[tuple[int, bytes]]] = {}
            for index, entry in enumerate(entries):
                parts.setdefault((entry[0] if level == 0 else index) // self.fanout, []).append(entry)
            parts = parts or {0: []}
            above = []
            for number, part in parts.items():
                body = self._body(flags, part, size)
                old = self.nodes.get((level, number))
                if old is None or old[1] != body:
                    block = self.space.alloc()
                    if old:
                        self.space.used.discard(old[0])
                    yield block, seal(body[:8] + struct.pack("<Q", block) + body[16:], NODE_SALT)
                    old = (block, body)
                kept[level, number] = old
                above.append((part[0][0] if part else 0, struct.pack("<Q", old[0])))
            if len(above) == 1:
                break
            level, flags, size, entries = level + 1, 1, 8, above
        for place, (block, _) in self.nodes.items():
            if place not in kept:
                self.space.used.discard(block)
        self.nodes = kept
        self.root = kept[level, next(iter(parts))][0]

    def _body(self, flags: int, part: list[tuple[int, bytes]], size: int) -> bytes:
        room = (BLOCK - 32) // (8 + size) // 3 * 3
        header = struct.pack("<IIQIIII", 0, flags, 0, len(part), room, size, 0)
        keys = b"".join(struct.pack("<Q", key) for key, _ in part).ljust(8 * room, b"\0")
        return (header + keys + b"".join(value for _, value in part)).ljust(BLOCK, b"\0")

    def free(self) -> None:
        self.space.used.difference_update(block for block, _ in self.nodes.values())


class Array:
    """An array of values; `dirty` says which of its blocks have changed since they were written."""

    def __init__(self, space: Space, values: NDArray[np.uint32] | NDArray[np.uint64], fanout: int) -> None:
        self.space, self.values = space, values
        self.per = (BLOCK - 24) // values.dtype.itemsize
        self.tree = Tree(space, 8, fanout)
        self.places: dict[int, int] = {}
        self.dirty = set(range(-(-len(values) // self.per)))

    def write(self) -> Iterator[tuple[int, bytes]]:
        for leaf in sorted(self.dirty):
            block = self.space.alloc()
            self.space.used.discard(self.places.get(leaf, block) if leaf in self.places else -1)
            self.places[leaf] = block
            part = self.values[leaf * self.per : (leaf + 1) * self.per]
            header = struct.pack("<IIIIQ", 0, self.per, len(part), self.values.dtype.itemsize, block)
            yield block, seal((header + part.tobytes()).ljust(BLOCK, b"\0"), ARRAY_SALT)
            self.tree.entries[leaf] = struct.pack("<Q", block)
        self.dirty.clear()
        yield from self.tree.write()

    def free(self) -> None:
        self.space.used.difference_update(self.places.values())
        self.tree.free()


class EraKernel:
    """``image`` is the metadata device; `step` writes at most one block of it."""

    def __init__(self, rng: random.Random, nr_blocks: int, metadata_blocks: int, fanout: int) -> None:
        self.rng, self.nr_blocks, self.fanout = rng, nr_blocks, fanout
        self.image = bytearray(metadata_blocks * BLOCK)
        self.space = Space(metadata_blocks)
        self.era = 1
        self.last = np.zeros(nr_blocks, np.uint32)
        self.closed = np.zeros(nr_blocks, np.uint32)
        self.eras = Array(self.space, np.zeros(nr_blocks, np.uint32), fanout)
        self.tree = Tree(self.space, 12, fanout)
        self.writesets: dict[int, Array] = {}
        self.current = self._writeset()
        self.digested = 0
        self.commits = 0
        # What a reader that begins now must find: as of the last commit.
        self.truth = (self.era, self.last.copy(), self.closed.copy())
        self._work = self._forever()
        while not self.commits:
            self.step()

    def step(self) -> None:
        next(self._work)

    def _writeset(self) -> Array:
        return Array(self.space, np.zeros(-(-self.nr_blocks // 64), np.uint64), self.fanout)

    def _forever(self) -> Iterator[None]:
        while True:
            for block, data in self._transaction():
                self.image[block * BLOCK : (block + 1) * BLOCK] = data
                yield

    def _transaction(self) -> Iterator[tuple[int, bytes]]:
        for _ in range(self.rng.randint(0, 3)):
            self.rng.choice([self._mark, self._mark, self._digest, self._digest])()
        if self.rng.random() < 0.1 and len(self.writesets) < _WAITING:
            self._roll()
        for array in (self.current, self.eras):
            yield from array.write()
        for era, bits in self.writesets.items():
            self.tree.entries[era] = struct.pack("<IQ", self.nr_blocks, bits.tree.root)
        yield from self.tree.write()
        yield 0, self._superblock()
        self.space.commit()
        self.commits += 1
        self.truth = (self.era, self.last.copy(), self.closed.copy())

    def _mark(self) -> None:
        for _ in range(self.rng.randint(1, _MARKS)):
            block = self.rng.randrange(self.nr_blocks)
            word = block // 64
            self.current.values[word] |= np.uint64(1 << block % 64)
            self.current.dirty.add(word // self.current.per)
            self.last[block] = self.era

    def _roll(self) -> None:
        """The current writeset goes into the tree as it was last written; what is not written yet goes along."""
        if self.current.dirty:
            return
        self.writesets[self.era] = self.current
        self.current = self._writeset()
        self.closed = self.last.copy()
        self.era += 1

    def _digest(self) -> None:
        if not self.writesets:
            return
        era = min(self.writesets)
        end = min(self.digested + _DIGESTED_BITS, self.nr_blocks)
        bits = np.unpackbits(self.writesets[era].values.view(np.uint8), bitorder="little")[self.digested : end]
        marked = np.flatnonzero(bits) + self.digested
        self.eras.values[marked] = era
        self.eras.dirty.update((marked // self.eras.per).tolist())
        self.digested = end
        if end == self.nr_blocks:
            self.digested = 0
            self.tree.entries.pop(era, None)
            self.writesets.pop(era).free()

    def _superblock(self) -> bytes:
        head = struct.pack("<IIQ16sQI", 0, 0, 0, bytes(16), MAGIC, 1)
        space_map = struct.pack("<QQQQ", self.space.blocks, 0, 0, 0).ljust(128, b"\0")
        fields = struct.pack("<IIII", 128, 8, self.nr_blocks, self.era)
        roots = (self.nr_blocks, self.current.tree.root, self.tree.root, self.eras.tree.root, 0)
        return seal((head + space_map + fields + struct.pack("<IQQQQ", *roots)).ljust(BLOCK, b"\0"), SUPERBLOCK_SALT)
