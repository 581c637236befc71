# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutated era metadata, for ``./dev fuzz era``.

Half of the mutations leave the checksums wrong: then the answer is an error that names a damaged block, or a set that
lacks nothing. The other half makes them right again, as an attacker can: then the answer is anything, but it comes
soon and in little memory, and what fails does so with one of our errors.
"""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from dmsoft.era.errors import EraMetadataError
from dmsoft.era.reader import EraReader
from dmsoft.errors import BusyError, MetadataError
from tests.era_image import BLOCK
from tests.fuzz.images import Image, bits_of, random_image
from tests.fuzz.mutations import Damage, mutate
from tests.fuzz.tally import Tally

_PER_IMAGE = 500


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
    with tally.bounded(what):
        try:
            whole = question(victim.reader, damage)
        except (MetadataError, BusyError) as error:
            end = error.code
            named = error.block if isinstance(error, EraMetadataError) and f"block {error.block}:" in str(error) else -1
            assert sealed or damage.explains(named), f"{error} for damage in {_places(damage)}"
        else:
            end = "read"
            assert sealed or whole, f"too good an answer from damage with wrong checksums in {_places(damage)}"
    victim.heal(damage)
    if shorter:
        victim.reopen()
    tally.ends[f"{'sealed' if sealed else 'damaged'} {end}"] += 1


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
