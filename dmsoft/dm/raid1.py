# SPDX-License-Identifier: GPL-2.0-or-later
"""dm-raid's raid1 as a value. Source of the grammar: Documentation/admin-guide/device-mapper/dm-raid.rst."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Self

from dmsoft.dm.base import BaseTarget, device_word
from dmsoft.dm.status import whole
from dmsoft.units import Sectors

MAX_RAID_LEGS: Final = 253

# struct dm_raid_superblock, drivers/md/dm-raid.c: magic, features, legs, position, events, failed legs, how far this
# leg is written anew.
_SUPERBLOCK: Final = struct.Struct("<4sIIIQQQ")
_ALL: Final = (1 << 64) - 1


@dataclass(frozen=True)
class RaidLeg:
    """Slot and data device of one leg: both None is an absent leg, ``metadata`` alone None a leg without a slot."""

    metadata: str | None
    data: str | None

    def __post_init__(self) -> None:
        if self.metadata is not None:
            device_word(self.metadata)
        if self.data is not None:
            device_word(self.data)
        elif self.metadata is not None:
            raise ValueError("a raid leg with metadata and no data is refused by the kernel")

    def __str__(self) -> str:
        return f"{self.metadata or '-'} {self.data or '-'}"


@dataclass(frozen=True)
class Superblock:
    """What the kernel notes at the start of each leg's slot; ``failed`` has a bit for each of the ``legs``.
    ``rebuilt``: this leg, at ``position``, is written anew from the others, and that has not come to its end."""

    legs: int
    failed: int
    position: int = 0
    rebuilt: bool = False

    @classmethod
    def parse(cls, block: bytes) -> Self | None:
        """None if there is none of a raid with at most 64 legs."""
        magic, _, legs, position, _, failed, recovered = _SUPERBLOCK.unpack_from(block)
        found = cls(legs, failed, position, recovered != _ALL)
        return found if magic == b"DmRd" and 0 < legs <= 64 else None

    def lacks(self, leg: int) -> bool:
        """Whether the others go on without that leg, or it is not in sync with them again."""
        return bool(self.failed >> leg & 1) or (self.rebuilt and self.position == leg)


Sync = Literal["sync", "nosync"]


@dataclass(frozen=True)
class Raid1(BaseTarget):
    """dm-raid's raid1, with the parameters a write-behind mirror needs.

    Two fields are not what the kernel shows later. ``max_write_behind`` is halved when the table is loaded and may be
    overridden by a bitmap that exists, and ``dmsetup table`` prints the halved value: `parse` returns what it reads,
    so a table read from the kernel must never be loaded again. ``rebuild`` and ``sync`` stay in the printed table for
    ever although they were acted on once. `shows_as` allows for all of it.
    """

    kind: ClassVar[str] = "raid"
    legs: tuple[RaidLeg, ...]
    write_mostly: tuple[int, ...] = ()
    max_write_behind: int | None = None
    region: Sectors | None = None
    sync: Sync | None = None
    rebuild: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.legs) <= MAX_RAID_LEGS:
            raise ValueError(f"raid1 has 1 to {MAX_RAID_LEGS} legs, not {len(self.legs)}")
        for index in (*self.write_mostly, *self.rebuild):
            if not 0 <= index < len(self.legs):
                raise ValueError(f"there is no leg {index}")
        if len(set(self.write_mostly)) != len(self.write_mostly) or len(self.write_mostly) == len(self.legs):
            raise ValueError("write_mostly names each leg once and leaves at least one for reads")
        if self.rebuild and self.sync is not None:
            raise ValueError("sync, nosync and rebuild exclude each other")

    def params(self) -> str:
        words = ["0", *([self.sync] if self.sync else [])]
        for index in self.rebuild:
            words += ["rebuild", str(index)]
        if self.max_write_behind is not None:
            words += ["max_write_behind", str(self.max_write_behind)]
        if self.region is not None:
            words += ["region_size", str(self.region)]
        for index in self.write_mostly:
            words += ["write_mostly", str(index)]
        legs = " ".join(map(str, self.legs))
        return f"raid1 {len(words)} {' '.join(words)} {len(self.legs)} {legs}"

    @classmethod
    def _parse(cls, text: str) -> Self:
        level, count_text, *words = text.split()
        count = whole(count_text)
        if level != "raid1" or count < 1 or len(words) <= count:
            raise ValueError("not a raid1 table")
        devices = words[count + 1 :]
        if len(devices) != 2 * whole(words[count]):
            raise ValueError("wrong number of legs")
        names = [None if word == "-" else word for word in devices]
        flags, single, many = _raid_words(iter(words[1:count]))
        region = single.get("region_size")
        return cls(
            legs=tuple(map(RaidLeg, names[::2], names[1::2])),
            write_mostly=tuple(many["write_mostly"]),
            max_write_behind=single.get("max_write_behind"),
            region=None if region is None else Sectors(region),
            sync=flags[0] if flags else None,
            rebuild=tuple(many["rebuild"]),
        )

    def shows_as(self, shown: BaseTarget) -> bool:
        return (
            isinstance(shown, Raid1)
            and shown.legs == self.legs
            and sorted(shown.write_mostly) == sorted(self.write_mostly)
            and (self.max_write_behind is None) == (shown.max_write_behind is None)
            and self.region in (None, shown.region)
        )


def _raid_words(words: Iterator[str]) -> tuple[list[Sync], dict[str, int], dict[str, list[int]]]:
    """The flag, the numbers and the leg indexes among a raid table's parameters, which come in any order."""
    flags: list[Sync] = []
    single: dict[str, int] = {}
    many: dict[str, list[int]] = {"rebuild": [], "write_mostly": []}
    for word in words:
        match word:
            case "sync" | "nosync" if not flags:
                flags.append(word)
            case "rebuild" | "write_mostly":
                position = next(words, "")
                if position != "-1":  # shown for a leg that md has dropped, which has no position any more
                    many[word].append(whole(position))
            case "max_write_behind" | "region_size" if word not in single:
                single[word] = whole(next(words, ""))
            case _:
                raise ValueError(f"'{word}' is not a raid parameter of ours")
    return flags, single, many
