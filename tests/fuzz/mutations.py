# SPDX-License-Identifier: GPL-2.0-or-later
"""Damage to era metadata: what a failing disk, a torn write, a wild program or an attacker can make of it."""

import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.era_image import ARRAY_SALT, BLOCK, NODE_SALT, SUPERBLOCK_SALT, seal
from tests.fuzz.images import BITMAP_SALT, INDEX_SALT, SALTS, Image

# 64-bit and 32-bit values that formats break on.
_NASTY = (0, 1, 2, 3, 127, 201, 252, 253, 255, 509, 1018, 4096, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
# Where the fields of each kind of block are: offset and size.
_SUPERBLOCK = [(4, 4), (8, 8), (32, 8), (40, 4)]
_SUPERBLOCK += [(44 + 8 * n, 8) for n in range(4)] + [(172 + 4 * n, 4) for n in range(5)]
_SUPERBLOCK += [(192 + 8 * n, 8) for n in range(4)]
_NODE = [(4, 4), (8, 8), (16, 4), (20, 4), (24, 4), *((32 + 8 * n, 8) for n in range(4)), (2048, 8), (2056, 8)]
_NODE += [(1640 + 12 * n, 4) for n in range(3)] + [(1644 + 12 * n, 8) for n in range(3)]
_ARRAY = [(4, 4), (8, 4), (12, 4), (16, 8), (24, 4), (24, 8)]
_INDEX = [(8, 8), *((16 + 16 * n, 8) for n in range(3)), *((24 + 16 * n, 4) for n in range(3))]
_FIELDS = {
    SUPERBLOCK_SALT: _SUPERBLOCK, NODE_SALT: _NODE, ARRAY_SALT: _ARRAY, INDEX_SALT: _INDEX, BITMAP_SALT: [(8, 8)],
}  # fmt: skip


@dataclass
class Damage:
    """New contents of some blocks, and where the device ends now (None: where it did)."""

    changed: dict[int, bytes]
    end: int | None = None

    def touches(self, image: Image, blocks: Iterable[int]) -> bool:
        """Whether any of ``blocks`` is not what it was."""
        gone = len(image.blocks) if self.end is None else self.end
        return any(
            block >= gone or self.changed.get(block, image.blocks[block]) != image.blocks[block] for block in blocks
        )

    def explains(self, block: int) -> bool:
        """Whether a complaint about ``block`` is about this damage. A superblock tells of a device cut short."""
        return block in self.changed or (self.end is not None and (block == 0 or block >= self.end))


def mutate(rng: random.Random, image: Image, sealed: bool) -> Damage:
    """Damage of one to five kinds; with right checksums where ``sealed``."""
    changed: dict[int, bytes] = {}
    used = list(image.kinds)
    if rng.random() < 0.02:
        return Damage({}, rng.randrange(len(image.blocks)))
    if rng.random() < 0.03:
        return Damage(_swap(rng, image, sealed))
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        block = 0 if rng.random() < 0.15 else rng.choice(used)
        data = bytearray(changed.get(block, image.blocks[block]))
        kind = rng.choice(_KINDS)
        kind(rng, image, block, data)
        if sealed:
            salt = image.kinds[block] if rng.random() < 0.95 else rng.choice(SALTS)
            if kind is _copy_block and rng.random() < 0.7:
                _renumber(data, salt, block)
            data = bytearray(seal(bytes(data), salt))
        changed[block] = bytes(data)
    return Damage(changed)


def _swap(rng: random.Random, image: Image, sealed: bool) -> dict[int, bytes]:
    """Two blocks in each other's place; where ``sealed``, each says that this is its own."""
    pair = rng.sample(list(image.kinds), 2)
    changed = {}
    for block, other in (pair, pair[::-1]):
        data = bytearray(image.blocks[other])
        if sealed:
            _renumber(data, image.kinds[other], block)
            data = bytearray(seal(bytes(data), image.kinds[other]))
        changed[block] = bytes(data)
    return changed


def _renumber(data: bytearray, salt: int, block: int) -> None:
    struct.pack_into("<Q", data, 16 if salt == ARRAY_SALT else 8, block)


def _change_field(rng: random.Random, image: Image, block: int, data: bytearray) -> None:
    offset, size = rng.choice(_FIELDS[image.kinds[block]])
    _change(rng, image, data, offset, size)


def _change_pointer(rng: random.Random, image: Image, block: int, data: bytearray) -> None:
    """An entry of a tree leads somewhere else: to its parent, its brother, itself."""
    nr, room, size = struct.unpack_from("<III", data, 16)
    if image.kinds[block] != NODE_SALT or not 0 < nr <= room <= 252 or size not in (8, 12):
        _change_field(rng, image, block, data)
        return
    offset = 32 + 8 * room + size * rng.randrange(nr) + size - 8
    if rng.random() < 0.8:
        struct.pack_into("<Q", data, offset, rng.choice([block, *rng.choices(list(image.kinds), k=4)]))
    else:
        _change(rng, image, data, offset, 8)


def _change(rng: random.Random, image: Image, data: bytearray, offset: int, size: int) -> None:
    old = int.from_bytes(data[offset : offset + size], "little")
    new = rng.choice([rng.choice(_NASTY), old + 1, old - 1, rng.choice(list(image.kinds)), rng.getrandbits(8 * size)])
    data[offset : offset + size] = (new % (1 << 8 * size)).to_bytes(size, "little")


def _flip_bits(rng: random.Random, _image: Image, _block: int, data: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        bit = rng.randrange(BLOCK * 8)
        data[bit // 8] ^= 1 << bit % 8


def _overwrite(rng: random.Random, _image: Image, _block: int, data: bytearray) -> None:
    """Zeroes, ones or noise over a sector, a block or anything between."""
    length = rng.choice([1, 4, 8, 512, rng.randint(1, BLOCK), BLOCK])
    offset = rng.randrange(0, BLOCK - length + 1)
    data[offset : offset + length] = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])


def _copy_block(rng: random.Random, image: Image, _block: int, data: bytearray) -> None:
    """A write that went to the wrong place."""
    data[:] = image.blocks[rng.choice(list(image.kinds))]


def _tear(rng: random.Random, image: Image, _block: int, data: bytearray) -> None:
    """Some sectors of another block: a write that was cut short."""
    cut = rng.randrange(512, BLOCK, 512)
    data[cut:] = image.blocks[rng.choice(list(image.kinds))][cut:]


_Kind = Callable[[random.Random, Image, int, bytearray], None]
_KINDS: list[_Kind] = [
    _change_field, _change_field, _change_pointer, _flip_bits, _overwrite, _copy_block, _tear,
]  # fmt: skip
