# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutated era metadata: ``python -m tests.fuzz.era [--count N] [--seed S] [--jobs J]``.

Half of the mutations leave the checksums wrong: then the answer is an error that names a damaged block, or a set that
lacks nothing. The other half makes them right again, as an attacker can: then the answer is anything, but it comes
soon and in little memory, and what fails does so with one of our errors.
"""

import argparse
import faulthandler
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from dmsoft.era.errors import EraMetadataError
from dmsoft.era.reader import EraReader
from dmsoft.errors import BusyError, MetadataError
from tests.era_image import BLOCK
from tests.fuzz.images import Image, bits_of, random_image
from tests.fuzz.mutations import Damage, mutate

_PER_IMAGE = 500
# Processor seconds, so that other work on the machine does not fail this. A reading takes about a millisecond.
_MOST_SECONDS = 1.0
_MOST_MEMORY_GROWTH = 64 << 20
# Whoever waits for ever uses no processor: a part that takes this long is ended, and `faulthandler` says where it was.
_HANG_SECONDS = 3600


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


def fuzz(count: int, seed: int) -> Tally:
    """Try ``count`` mutations. Raises ``AssertionError`` at the first wrong answer, with what led to it."""
    rng = random.Random(seed)
    tally = Tally()
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 (a disk would be the bottleneck)
    # Nobody writes to these images: what looks torn stays so, and waiting for it is in vain.
    awake = mock.patch("dmsoft.era.reader.time.sleep", lambda _: None)
    with awake, tempfile.TemporaryDirectory(prefix="dmsoft-fuzz-", dir=folder) as name:
        while tally.count < count:
            with _Victim(random_image(rng), Path(name) / "metadata") as victim:
                for _ in range(min(_PER_IMAGE, count - tally.count)):
                    _try_one(rng, victim, tally, f"seed {seed}, mutation {tally.count}")
    return tally


class _Victim:
    """An image in a file, and a reader that has it open."""

    def __init__(self, image: Image, path: Path) -> None:
        self.image = image
        self._path = path
        path.write_bytes(b"".join(image.blocks))
        self._file = path.open("r+b", buffering=0)
        self.reader = EraReader(path)

    def __enter__(self) -> "_Victim":
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self._file.close()

    def reopen(self) -> None:
        self.reader.close()
        self.reader = EraReader(self._path)

    def apply(self, damage: Damage) -> None:
        for block, data in damage.changed.items():
            self._put(block, data)
        if damage.end is not None:
            self._file.truncate(damage.end * BLOCK)

    def heal(self, damage: Damage) -> None:
        for block in damage.changed:
            self._put(block, self.image.blocks[block])
        if damage.end is not None:
            self._put(damage.end, b"".join(self.image.blocks[damage.end :]))

    def _put(self, block: int, data: bytes) -> None:
        self._file.seek(block * BLOCK)
        self._file.write(data)


def _try_one(rng: random.Random, victim: _Victim, tally: Tally, what: str) -> None:
    image, sealed = victim.image, rng.random() < 0.5
    damage = mutate(rng, image, sealed)
    question = _random_question(rng, image)
    victim.apply(damage)
    # A device may be short when it is opened, or end while it is read.
    shorter = damage.end is not None and rng.random() < 0.5
    if shorter:
        victim.reopen()
    begin, memory = time.process_time(), _peak_memory()
    try:
        whole = question(victim.reader, damage)
    except (MetadataError, BusyError) as error:
        end = error.code
        named = error.block if isinstance(error, EraMetadataError) and f"block {error.block}:" in str(error) else -1
        assert sealed or damage.explains(named), f"{what}: {error} for damage in {_places(damage)}"
    else:
        end = "read"
        assert sealed or whole, f"{what}: too good an answer from damage with wrong checksums in {_places(damage)}"
    took = time.process_time() - begin
    assert took < _MOST_SECONDS, f"{what}: took {took:.1f} s"
    assert _peak_memory() - memory < _MOST_MEMORY_GROWTH, f"{what}: took too much memory"
    victim.heal(damage)
    if shorter:
        victim.reopen()
    tally.count += 1
    tally.ends[f"{'sealed' if sealed else 'damaged'} {end}"] += 1
    tally.slowest = max(tally.slowest, took)


# Asks a reader something about an image with that damage; False if the answer lacks something.
_Question = Callable[[EraReader, Damage], bool]


def _random_question(rng: random.Random, image: Image) -> _Question:
    snapshot = image.snapshot_era is not None and rng.random() < 0.2
    era = rng.randint(0, (image.snapshot_era or 0 if snapshot else image.current_era) + 1)

    def ask_for_blocks(reader: EraReader, _damage: Damage) -> bool:
        found = bits_of(reader.written_since(era, snapshot=snapshot).blocks)
        wanted = image.truth(era, snapshot)
        return len(found) == len(wanted) and not (wanted & ~found).any()

    def ask_for_space_map(reader: EraReader, damage: Damage) -> bool:
        reader.check_space_map()
        return not damage.touches(image, image.space_map)

    return ask_for_space_map if image.space_map and rng.random() < 0.15 else ask_for_blocks


def _places(damage: Damage) -> str:
    return f"{sorted(damage.changed)}, end {damage.end}"


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _part(count: int, seed: int) -> Tally:
    faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
    return fuzz(count, seed)


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
        for number, tally in enumerate(pool.map(_part, [part] * len(seeds), seeds)):
            total.add(tally)
            if number % 5 == 4 or number == len(seeds) - 1:
                print(f"{time.monotonic() - begin:.0f} s: {total}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
