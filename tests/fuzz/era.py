# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutated era metadata: ``python -m tests.fuzz.era [--count N] [--seed S] [--jobs J]``.

Half of the mutations leave the checksums wrong: then the answer is an error, or a set that lacks nothing. The other
half makes them right again, as an attacker can: then the answer is anything, but it comes soon and in little memory,
and what fails does so with one of our errors.
"""

import argparse
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dmsoft.era import reader as reader_module
from dmsoft.era.reader import EraReader
from dmsoft.errors import BusyError, MetadataError
from tests.era_image import BLOCK, Bits, EraModel, ImageWriter, random_model, seal

_PER_IMAGE = 500
_IMAGE_BLOCKS = 256
# A reading of an image of 1 MiB takes about a millisecond; other work on the machine must not fail this.
_MOST_SECONDS = 5.0
_MOST_MEMORY_GROWTH = 64 << 20
# 64-bit and 32-bit values that formats break on.
_NASTY = (
    0,
    1,
    2,
    3,
    127,
    201,
    252,
    253,
    255,
    509,
    1018,
    4096,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 63,
    (1 << 64) - 1,
)
# Where the fields of each kind of block are: offset and size.
_SUPERBLOCK = [(4, 4), (8, 8), (32, 8), (40, 4)]
_SUPERBLOCK += [(44 + 8 * n, 8) for n in range(4)] + [(172 + 4 * n, 4) for n in range(5)]
_SUPERBLOCK += [(192 + 8 * n, 8) for n in range(4)]
_NODE = [(4, 4), (8, 8), (16, 4), (20, 4), (24, 4), *((32 + 8 * n, 8) for n in range(4)), (2048, 8), (2056, 8)]
_NODE += [(1640 + 12 * n, 4) for n in range(3)] + [(1644 + 12 * n, 8) for n in range(3)]
_ARRAY = [(4, 4), (8, 4), (12, 4), (16, 8), (24, 4), (24, 8)]
_FIELDS = {146538381: _SUPERBLOCK, 121107: _NODE, 595846735: _ARRAY}


@dataclass
class Tally:
    """How the readings ended."""

    count: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def add(self, other: "Tally") -> None:
        self.count += other.count
        self.ends += other.ends
        self.slowest = max(self.slowest, other.slowest)

    def __str__(self) -> str:
        ends = ", ".join(f"{name} {count:,}" for name, count in sorted(self.ends.items()))
        return f"{self.count:,} mutations, the slowest reading {self.slowest:.3f} s: {ends}"


class _Image:
    """One image on disk, its model, and what is true of it."""

    def __init__(self, rng: random.Random, path: Path) -> None:
        self.model: EraModel = random_model(rng, max_blocks=6000)
        shuffle = rng if rng.random() < 0.3 else None
        writer = ImageWriter(_IMAGE_BLOCKS, fanout=rng.choice([3, 4, 252]), shuffle=shuffle)
        self.blocks = [block.tobytes() for block in writer.write(self.model)]
        self.kinds = writer.kinds
        self.path = path
        path.write_bytes(b"".join(self.blocks))
        self.file = path.open("r+b", buffering=0)

    def put(self, block: int, data: bytes) -> None:
        self.file.seek(block * BLOCK)
        self.file.write(data)


def fuzz(count: int, seed: int) -> Tally:
    """Try ``count`` mutations. Raises ``AssertionError`` at the first wrong answer, with what led to it."""
    reader_module._TORN_WAIT_SECONDS = 0  # type: ignore[misc]
    rng = random.Random(seed)
    tally = Tally()
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 (a disk would be the bottleneck)
    with tempfile.TemporaryDirectory(prefix="dmsoft-fuzz-", dir=folder) as name:
        while tally.count < count:
            image = _Image(rng, Path(name) / "metadata")
            with image.file, EraReader(image.path) as reader:
                for _ in range(min(_PER_IMAGE, count - tally.count)):
                    _try_one(rng, image, reader, tally, f"seed {seed}, mutation {tally.count}")
    return tally


def _try_one(rng: random.Random, image: _Image, reader: EraReader, tally: Tally, what: str) -> None:
    sealed = rng.random() < 0.5
    changed = _mutate(rng, image, sealed)
    for block, data in changed.items():
        image.put(block, data)
    snapshot = image.model.snapshot is not None and rng.random() < 0.2
    model = image.model.snapshot if snapshot and image.model.snapshot else image.model
    era = rng.randint(0, model.current_era + 1)
    begin, memory = time.monotonic(), _peak_memory()
    try:
        blocks = reader.written_since(era, snapshot=snapshot).blocks
    except (MetadataError, BusyError) as error:
        end = error.code
    else:
        found = np.unpackbits(blocks.words.view(np.uint8), bitorder="little")[: blocks.nr_blocks].astype(np.bool_)
        wanted = _truth(model, era, snapshot)
        whole = len(found) == len(wanted) and not (wanted & ~found).any()
        end = "read"
        assert sealed or whole, f"{what}: a smaller set from damage with wrong checksums in {sorted(changed)}"
    took = time.monotonic() - begin
    assert took < _MOST_SECONDS, f"{what}: took {took:.1f} s"
    assert _peak_memory() - memory < _MOST_MEMORY_GROWTH, f"{what}: took too much memory"
    for block in changed:
        image.put(block, image.blocks[block])
    tally.count += 1
    tally.ends[f"{'sealed' if sealed else 'damaged'} {end}"] += 1
    tally.slowest = max(tally.slowest, took)


def _truth(model: EraModel, era: int, snapshot: bool) -> Bits:
    current = model.current
    if snapshot:
        model.current = None
    found = model.since(era)
    model.current = current
    return found


def _mutate(rng: random.Random, image: _Image, sealed: bool) -> dict[int, bytes]:
    """New contents for some blocks: with right checksums where ``sealed``."""
    changed: dict[int, bytes] = {}
    used = sorted(image.kinds)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        block = 0 if rng.random() < 0.15 else rng.choice(used)
        data = bytearray(changed.get(block, image.blocks[block]))
        kind = rng.choice([_change_field, _change_field, _flip_bits, _overwrite, _copy_block, _tear])
        kind(rng, image, block, data)
        if sealed:
            salt = image.kinds[block] if rng.random() < 0.95 else rng.choice(list(_FIELDS))
            if kind is _copy_block and rng.random() < 0.7:
                # As if the other block had been written here by mistake, but with this block's number.
                struct.pack_into("<Q", data, 16 if salt == 595846735 else 8, block)
            data = bytearray(seal(bytes(data), salt))
        changed[block] = bytes(data)
    return changed


def _change_field(rng: random.Random, image: _Image, block: int, data: bytearray) -> None:
    offset, size = rng.choice(_FIELDS[image.kinds[block]])
    old = int.from_bytes(data[offset : offset + size], "little")
    new = rng.choice([rng.choice(_NASTY), old + 1, old - 1, rng.choice(list(image.kinds)), rng.getrandbits(8 * size)])
    data[offset : offset + size] = (new % (1 << 8 * size)).to_bytes(size, "little")


def _flip_bits(rng: random.Random, _image: _Image, _block: int, data: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        bit = rng.randrange(BLOCK * 8)
        data[bit // 8] ^= 1 << bit % 8


def _overwrite(rng: random.Random, _image: _Image, _block: int, data: bytearray) -> None:
    """Zeroes, ones or noise over a sector, a block or anything between."""
    length = rng.choice([1, 4, 8, 512, rng.randint(1, BLOCK), BLOCK])
    offset = rng.randrange(0, BLOCK - length + 1)
    data[offset : offset + length] = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])


def _copy_block(rng: random.Random, image: _Image, _block: int, data: bytearray) -> None:
    data[:] = image.blocks[rng.choice(list(image.kinds))]


def _tear(rng: random.Random, image: _Image, _block: int, data: bytearray) -> None:
    """Some sectors of another block: a write that was cut short."""
    cut = rng.randrange(512, BLOCK, 512)
    data[cut:] = image.blocks[rng.choice(list(image.kinds))][cut:]


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.era", description="Mutate era metadata and read it.")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(argv)
    print(f"seed {options.seed}", flush=True)
    part, total, begin = min(20_000, options.count), Tally(), time.monotonic()
    seeds = range(options.seed, options.seed + -(-options.count // part))
    with ProcessPoolExecutor(options.jobs) as pool:
        for number, tally in enumerate(pool.map(fuzz, [part] * len(seeds), seeds)):
            total.add(tally)
            if number % 5 == 4 or number == len(seeds) - 1:
                print(f"{time.monotonic() - begin:.0f} s: {total}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
