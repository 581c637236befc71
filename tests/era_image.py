# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes dm-era metadata, and says by a naive rule what was written since an era: the reader's counterpart in tests.

It shares no code with the reader. Images can have everything the kernel makes: a digested array, undigested
writesets of any length, a current writeset, a metadata snapshot; and what it makes only of large devices: deep trees.
"""

import itertools
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

BLOCK = 4096
SUPERBLOCK_SALT, NODE_SALT, ARRAY_SALT = 146538381, 121107, 595846735
MAGIC = 2126579579

Eras = NDArray[np.uint32]
Bits = NDArray[np.bool_]
Image = NDArray[np.uint8]
Values = NDArray[np.uint32] | NDArray[np.uint64]


@dataclass
class EraModel:
    """What the metadata knows: ``eras`` has the digested era of each data block, the others one bool a block."""

    eras: Eras
    current_era: int
    writesets: dict[int, Bits] = field(default_factory=dict)
    current: Bits | None = None
    snapshot: "EraModel | None" = None
    block_sectors: int = 128

    def since(self, era: int) -> Bits:
        """The blocks written in ``era`` or later; what a writeset says of blocks beyond the device is nothing."""
        found: Bits = (self.eras >= era) & (self.eras != 0)
        sets = [bits for number, bits in self.writesets.items() if number >= era]
        if self.current is not None and self.current_era >= era:
            sets.append(self.current)
        for bits in sets:
            length = min(len(bits), len(found))
            found[:length] |= bits[:length]
        return found


def random_model(rng: random.Random, *, max_blocks: int = 9000, snapshot: bool = True) -> EraModel:
    """A model of any shape that the kernel could have made, resizes included."""
    noise = np.random.default_rng(rng.getrandbits(64))
    nr = rng.choice([1, 63, 64, 65, 1017, 1018, 1019, 8 * 1018, rng.randint(1, max_blocks)])
    current_era = rng.randint(1, 40)
    # The eras that wait are the last ones, and the eldest of them may be digested in part.
    waiting = rng.randint(0, min(5, current_era - 1))
    writesets = {current_era - age: random_bits(rng, noise, nr) for age in range(waiting, 0, -1)}
    eldest = current_era - waiting
    eras = noise.integers(0, eldest, nr, np.uint32)
    eras[noise.random(nr) < rng.random()] = 0
    if waiting:
        length = min(len(writesets[eldest]), rng.randint(0, nr))
        eras[:length][writesets[eldest][:length]] = eldest
    current = random_bits(rng, noise, nr) if rng.random() < 0.7 else None
    if current is None and rng.random() < 0.5:
        writesets[current_era] = random_bits(rng, noise, nr)  # suspended
    copy = random_model(rng, max_blocks=max_blocks, snapshot=False) if snapshot and rng.random() < 0.5 else None
    return EraModel(eras, current_era, writesets, current, copy)


def random_bits(rng: random.Random, noise: np.random.Generator, nr: int) -> Bits:
    length = rng.choice([nr, nr, nr, rng.randint(1, 2 * nr)])
    bits: Bits = noise.random(length) < rng.choice([0, 0.01, 0.5, 1])
    return bits


class ImageWriter:
    """Builds one image. ``fanout`` limits entries a node, ``shuffle`` scatters the blocks over the device."""

    def __init__(
        self, blocks: int, *, fanout: int = 252, shuffle: random.Random | None = None, image: Image | None = None
    ) -> None:
        self.image = np.zeros((blocks, BLOCK), np.uint8) if image is None else image
        self.fanout = fanout
        self.free = list(range(1, blocks))
        if shuffle:
            shuffle.shuffle(self.free)
        self.free.reverse()
        self.kinds: dict[int, int] = {}

    def alloc(self, count: int = 1) -> list[int]:
        return [self.free.pop() for _ in range(count)]

    def put(self, block: int, salt: int, data: bytes) -> None:
        """Store ``data`` (without its checksum) as a block of the kind of ``salt``."""
        self.image[block] = np.frombuffer(seal(data.ljust(BLOCK, b"\0"), salt), np.uint8)
        self.kinds[block] = salt

    def node(self, flags: int, entries: list[tuple[int, bytes]], value_size: int) -> int:
        (block,) = self.alloc()
        capacity = (BLOCK - 32) // (8 + value_size) // 3 * 3
        header = struct.pack("<IIQIIII", 0, flags, block, len(entries), capacity, value_size, 0)
        keys = b"".join(struct.pack("<Q", key) for key, _ in entries).ljust(8 * capacity, b"\0")
        self.put(block, NODE_SALT, header + keys + b"".join(value for _, value in entries))
        return block

    def btree(self, entries: list[tuple[int, bytes]], value_size: int) -> int:
        """A tree of ``entries``; returns its root."""
        flags = 2
        while True:
            step = self.fanout if flags == 1 else min(self.fanout, (BLOCK - 32) // (8 + value_size) // 3 * 3)
            # Evenly, as the kernel's balancing would have it: the shipped tools insist on it.
            count = -(-len(entries) // step) or 1
            cuts = [len(entries) * part // count for part in range(count + 1)]
            parts = [entries[begin:end] for begin, end in itertools.pairwise(cuts)]
            nodes = [self.node(flags, part, value_size) for part in parts]
            if len(nodes) == 1:
                return nodes[0]
            entries = [(part[0][0], struct.pack("<Q", node)) for part, node in zip(parts, nodes, strict=True)]
            flags, value_size = 1, 8

    def array(self, values: Values) -> int:
        return self.array_of(len(values), values.dtype.itemsize, lambda begin, end: values[begin:end])

    def array_of(self, length: int, size: int, values: Callable[[int, int], Values]) -> int:
        """An array of ``length`` values of ``size`` bytes; those from begin to end are asked for block by block."""
        per = (BLOCK - 24) // size
        entries = []
        for index, at in enumerate(range(0, length, per)):
            part = values(at, min(at + per, length))
            (block,) = self.alloc()
            self.put(block, ARRAY_SALT, struct.pack("<IIIIQ", 0, per, len(part), size, block) + part.tobytes())
            entries.append((index, struct.pack("<Q", block)))
        return self.btree(entries, 8)

    def bitset(self, bits: Bits) -> int:
        packed = np.packbits(bits, bitorder="little").tobytes()
        words = np.frombuffer(packed.ljust(-(-len(bits) // 64) * 8, b"\0"), "<u8").copy()
        if len(bits) % 64:
            # Whatever lies behind the last bit has no meaning: make sure nobody reads it.
            words[-1] |= np.uint64(((1 << 64) - 1) << (len(bits) % 64) & ((1 << 64) - 1))
        return self.array(words)

    def superblock(self, model: EraModel, *, location: int = 0, snapshot: int = 0) -> None:
        writesets = {era: (len(bits), self.bitset(bits)) for era, bits in model.writesets.items()}
        current = (len(model.current), self.bitset(model.current)) if model.current is not None else (0, 0)
        fields = (model.block_sectors, 8, len(model.eras), model.current_era)
        self.roots(fields, writesets, current, self.array(model.eras), location=location, snapshot=snapshot)

    def roots(
        self,
        fields: tuple[int, int, int, int],
        writesets: dict[int, tuple[int, int]],
        current: tuple[int, int],
        array: int,
        *,
        location: int = 0,
        snapshot: int = 0,
    ) -> None:
        """A superblock: sizes and the current era; (bits, root) of each writeset; the root of the array."""
        tree = self.btree([(era, struct.pack("<IQ", *bits)) for era, bits in sorted(writesets.items())], 12)
        head = struct.pack("<IIQ16sQI", 0, 0, location, bytes(16), MAGIC, 1)
        space_map = struct.pack("<QQQQ", len(self.image), 0, 0, 0).ljust(128, b"\0")
        tail = struct.pack("<IIII", *fields) + struct.pack("<IQQQQ", *current, tree, array, snapshot)
        self.put(location, SUPERBLOCK_SALT, head + space_map + tail)

    def patch(self, block: int, offset: int, form: str, *values: int) -> None:
        """Overwrite fields of ``block`` and make its checksum right again, as an attacker would."""
        data = bytearray(self.image[block].tobytes())
        struct.pack_into("<" + form, data, offset, *values)
        self.put(block, self.kinds[block], bytes(data))

    def write(self, model: EraModel) -> Image:
        """The whole image of ``model``."""
        snapshot = 0
        if model.snapshot:
            (snapshot,) = self.alloc()
            self.superblock(model.snapshot, location=snapshot)
        self.superblock(model, snapshot=snapshot)
        return self.image


def seal(block: bytes, salt: int) -> bytes:
    """``block`` with the right checksum for its kind in front."""
    return struct.pack("<I", crc32c(block[4:]) ^ 0xFFFFFFFF ^ salt) + block[4:]


def write_image(path: Path, model: EraModel, *, blocks: int = 1024, fanout: int = 252, seed: int | None = None) -> None:
    """Write ``model`` to ``path``; ``seed`` scatters its blocks."""
    shuffle = random.Random(seed) if seed is not None else None
    path.write_bytes(ImageWriter(blocks, fanout=fanout, shuffle=shuffle).write(model).tobytes())
