# SPDX-License-Identifier: GPL-2.0-or-later
"""Device-mapper targets as values that print the kernel's table text and read it back.

Devices are written as the caller names them: ``MAJ:MIN`` (what the kernel prints, and the only form that needs no
path lookup while something is suspended) or a path. For every target, ``parse(params(t)) == t``. Lengths and offsets
are sectors, writecache blocks are bytes, delays are milliseconds. `TargetTextError` for text that does not fit.

Sources of the grammar: Documentation/admin-guide/device-mapper and the constructors of the kernel's targets.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Final, Literal, Self, get_args

from dmsoft.dm.base import BaseTarget, device_word
from dmsoft.dm.raid1 import Raid1, RaidLeg
from dmsoft.dm.status import (
    DelayStatus,
    EraStatus,
    RaidStatus,
    Status,
    StripedStatus,
    WriteCacheStatus,
    bad_text,
    parse_status,
    whole,
)
from dmsoft.errors import DmsoftError
from dmsoft.units import SECTOR, Sectors

__all__ = [
    "Delay",
    "DelayClass",
    "DelayStatus",
    "Era",
    "EraStatus",
    "Error",
    "Linear",
    "Raid1",
    "RaidLeg",
    "RaidStatus",
    "Segment",
    "SnapshotOrigin",
    "Status",
    "Striped",
    "StripedStatus",
    "Table",
    "Target",
    "WriteCache",
    "WriteCacheOptions",
    "WriteCacheStatus",
    "Zero",
    "format_table",
    "parse_status",
    "parse_table",
    "parse_target",
    "single",
]

ERA_BLOCK_UNIT: Final = 8


@dataclass(frozen=True)
class Linear(BaseTarget):
    kind: ClassVar[str] = "linear"
    device: str
    offset: Sectors

    def __post_init__(self) -> None:
        device_word(self.device)

    def params(self) -> str:
        return f"{self.device} {self.offset}"

    @classmethod
    def _parse(cls, text: str) -> Self:
        device, offset = text.split()
        return cls(device, Sectors(whole(offset)))


@dataclass(frozen=True)
class Striped(BaseTarget):
    """One stripe: a linear device whose status says whether a request to it has ever failed. Its length is a multiple
    of ``chunk`` sectors; requests are cut at their borders."""

    kind: ClassVar[str] = "striped"
    device: str
    offset: Sectors
    chunk: Sectors

    def __post_init__(self) -> None:
        device_word(self.device)
        if self.chunk <= 0:
            raise ValueError(f"a chunk of {self.chunk} sectors")

    def params(self) -> str:
        return f"1 {self.chunk} {self.device} {self.offset}"

    @classmethod
    def _parse(cls, text: str) -> Self:
        stripes, chunk, device, offset = text.split()
        if stripes != "1":
            raise ValueError("more than one stripe")
        return cls(device, Sectors(whole(offset)), Sectors(whole(chunk)))


@dataclass(frozen=True)
class Era(BaseTarget):
    """``block`` is the tracking unit, a multiple of 8 sectors. The origin is used from its sector 0."""

    kind: ClassVar[str] = "era"
    metadata: str
    origin: str
    block: Sectors

    def __post_init__(self) -> None:
        device_word(self.metadata)
        device_word(self.origin)
        if self.block <= 0 or self.block % ERA_BLOCK_UNIT:
            raise ValueError(f"an era block of {self.block} sectors is not a multiple of {ERA_BLOCK_UNIT}")

    def params(self) -> str:
        return f"{self.metadata} {self.origin} {self.block}"

    @classmethod
    def _parse(cls, text: str) -> Self:
        metadata, origin, block = text.split()
        return cls(metadata, origin, Sectors(whole(block)))


@dataclass(frozen=True)
class WriteCacheOptions:
    """None and False leave the kernel's default. Watermarks: percents; times: milliseconds; others: blocks, jobs."""

    start_sector: int | None = None
    high_watermark: int | None = None
    low_watermark: int | None = None
    writeback_jobs: int | None = None
    autocommit_blocks: int | None = None
    autocommit_time: int | None = None
    max_age: int | None = None
    cleaner: bool = False
    fua: bool = False
    nofua: bool = False
    metadata_only: bool = False
    pause_writeback: int | None = None

    def words(self) -> list[str]:
        found: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is True:
                found.append(field.name)
            elif value is not None and value is not False:
                found += [field.name, str(value)]
        return found

    @classmethod
    def parse_words(cls, words: list[str]) -> Self:
        flags = {field.name for field in fields(cls) if field.type in (bool, "bool")}
        names = {field.name for field in fields(cls)}
        found: dict[str, int | bool] = {}
        rest = iter(words)
        for word in rest:
            if word not in names or word in found:
                raise ValueError(f"'{word}' is not a writecache option")
            found[word] = True if word in flags else whole(next(rest, ""))
        return cls(**found)  # type: ignore[arg-type]  # flags are bool, the others int: decided two lines above


CacheMode = Literal["s", "p"]


@dataclass(frozen=True)
class WriteCache(BaseTarget):
    """``mode`` s caches on a block device, p on persistent memory. ``block_bytes`` becomes the logical block size."""

    kind: ClassVar[str] = "writecache"
    origin: str
    cache: str
    block_bytes: int
    options: WriteCacheOptions = WriteCacheOptions()
    mode: CacheMode = "s"

    def __post_init__(self) -> None:
        device_word(self.origin)
        device_word(self.cache)
        if self.block_bytes < SECTOR or self.block_bytes & (self.block_bytes - 1):
            raise ValueError(f"a writecache block of {self.block_bytes} bytes is not a power of two from {SECTOR} up")

    def params(self) -> str:
        words = self.options.words()
        return " ".join([self.mode, self.origin, self.cache, str(self.block_bytes), str(len(words)), *words])

    @classmethod
    def _parse(cls, text: str) -> Self:
        mode, origin, cache, block, count, *words = text.split()
        if mode not in get_args(CacheMode) or len(words) != whole(count):
            raise ValueError("not a writecache table")
        options = WriteCacheOptions.parse_words(words)
        return cls(origin, cache, whole(block), options, "s" if mode == "s" else "p")


@dataclass(frozen=True)
class DelayClass:
    device: str
    offset: Sectors
    delay_ms: int

    def __post_init__(self) -> None:
        device_word(self.device)

    def __str__(self) -> str:
        return f"{self.device} {self.offset} {self.delay_ms}"


@dataclass(frozen=True)
class Delay(BaseTarget):
    """Reads wait ``read_ms``. Writes and flushes have a class of their own, or follow the one named before them."""

    kind: ClassVar[str] = "delay"
    device: str
    offset: Sectors
    read_ms: int
    write: DelayClass | None = None
    flush: DelayClass | None = None

    def __post_init__(self) -> None:
        device_word(self.device)
        if self.flush is not None and self.write is None:
            raise ValueError("a flush class of its own needs a write class")

    def params(self) -> str:
        classes = [c for c in (self.write, self.flush) if c is not None]
        return " ".join([f"{self.device} {self.offset} {self.read_ms}", *map(str, classes)])

    @classmethod
    def _parse(cls, text: str) -> Self:
        words = text.split()
        if len(words) not in (3, 6, 9):
            raise ValueError("3, 6 or 9 words")
        first, *rest = [
            DelayClass(words[at], Sectors(whole(words[at + 1])), whole(words[at + 2])) for at in range(0, len(words), 3)
        ]
        return cls(first.device, first.offset, first.delay_ms, *rest)


@dataclass(frozen=True)
class Error(BaseTarget):
    """Every read and write fails; flushes are not even sent to it, so fsync succeeds."""

    kind: ClassVar[str] = "error"

    def params(self) -> str:
        return ""

    @classmethod
    def _parse(cls, text: str) -> Self:
        if text.strip():
            raise ValueError("no parameters")
        return cls()


@dataclass(frozen=True)
class SnapshotOrigin(BaseTarget):
    """Passes everything on but discards, as long as nobody makes a snapshot of ``device``."""

    kind: ClassVar[str] = "snapshot-origin"
    device: str

    def __post_init__(self) -> None:
        device_word(self.device)

    def params(self) -> str:
        return self.device

    @classmethod
    def _parse(cls, text: str) -> Self:
        (device,) = text.split()
        return cls(device)


@dataclass(frozen=True)
class Zero(Error):
    """Reads zeroes, forgets writes."""

    kind: ClassVar[str] = "zero"


Target = Linear | Striped | Era | Raid1 | WriteCache | Delay | Error | Zero | SnapshotOrigin

_TARGETS: Final[dict[str, type[Target]]] = {
    cls.kind: cls for cls in (Linear, Striped, Era, Raid1, WriteCache, Delay, Error, Zero, SnapshotOrigin)
}


def parse_target(kind: str, params: str) -> Target:
    target = _TARGETS.get(kind)
    if target is None:
        raise bad_text(kind, params)
    return target.parse(params)


@dataclass(frozen=True)
class Segment:
    """``length`` sectors of a device from ``start``, served by one target. Prints as a line for dmsetup."""

    start: Sectors
    length: Sectors
    target: Target

    def __post_init__(self) -> None:
        if self.start < 0 or self.length <= 0:
            raise ValueError(f"a segment from {self.start}, {self.length} sectors long")

    def __str__(self) -> str:
        return f"{self.start} {self.length} {self.target.kind} {self.target.params()}".rstrip()

    @classmethod
    def parse(cls, line: str) -> Self:
        try:
            start, length, kind, *params = line.split(maxsplit=3)
            return cls(Sectors(whole(start)), Sectors(whole(length)), parse_target(kind, *(params or [""])))
        except DmsoftError:
            raise
        except ValueError as err:
            raise bad_text("device-mapper", line) from err


Table = tuple[Segment, ...]


def single(length: Sectors, target: Target) -> Table:
    """The table of a device that one target serves from its first sector to its last."""
    return (Segment(Sectors(0), length, target),)


def format_table(table: Table) -> str:
    return "\n".join(map(str, table))


def parse_table(text: str) -> Table:
    return tuple(Segment.parse(line) for line in text.splitlines() if line.strip())
