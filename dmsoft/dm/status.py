# SPDX-License-Identifier: GPL-2.0-or-later
"""What targets print in ``dmsetup status``, as values. `TargetTextError` for text that does not fit.

Formats: the status functions of the kernel's dm-era-target.c, dm-raid.c, dm-writecache.c, dm-delay.c and dm-stripe.c.
"""

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from dmsoft.dm.failures import TargetTextError
from dmsoft.units import Sectors


def whole(text: str) -> int:
    """A whole number as the kernel prints it: ASCII digits, no sign, nothing else."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"'{text}' is not a whole number")
    return int(text)


def bad_text(kind: str, text: str) -> TargetTextError:
    return TargetTextError(
        f"'{text}' is not what the {kind} target prints.", hint="Report this with the kernel version."
    )


_NONE: Final = Sectors(0)


@dataclass(frozen=True)
class EraStatus:
    """``8 19/65536 2 -``. Metadata blocks are ``metadata_block_sectors`` long (8 = 4 KiB).

    ``failed``: the target printed ``Error``, its metadata cannot be trusted any more and the numbers are 0.
    ``snapshot`` is the metadata block of a snapshot somebody took and did not drop.
    """

    kind: ClassVar[str] = "era"
    metadata_block_sectors: Sectors = _NONE
    used: int = 0
    total: int = 0
    era: int = 0
    snapshot: int | None = None
    failed: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        if text.strip() == "Error":
            return cls(failed=True)
        try:
            block, blocks, era, snapshot = text.split()
            used, total = blocks.split("/")
            return cls(
                Sectors(whole(block)),
                whole(used),
                whole(total),
                whole(era),
                None if snapshot == "-" else whole(snapshot),
            )
        except ValueError as err:
            raise bad_text(cls.kind, text) from err


@dataclass(frozen=True)
class RaidStatus:
    """``raid1 2 AA 262144/262144 idle 0 0 -``.

    ``health`` has a letter a leg: A in sync, a alive and not in sync, D failed, - absent. It says nothing about
    equality of the legs. ``done`` and ``total`` are sectors, ``mismatches`` sectors counted by the last check.
    """

    kind: ClassVar[str] = "raid"
    level: str
    devices: int
    health: str
    done: Sectors
    total: Sectors
    action: str
    mismatches: int
    data_offset: Sectors | None = None
    journal: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        try:
            level, devices, health, progress, action, mismatches, *rest = text.split()
            done, total = progress.split("/")
            if len(health) != whole(devices) or set(health) - set("AaD-"):
                raise ValueError("health")
            offset, journal, *_ = [*rest, None, None]
            return cls(
                level,
                whole(devices),
                health,
                Sectors(whole(done)),
                Sectors(whole(total)),
                action,
                whole(mismatches),
                None if offset is None else Sectors(whole(offset)),
                journal,
            )
        except ValueError as err:
            raise bad_text(cls.kind, text) from err


@dataclass(frozen=True)
class WriteCacheStatus:
    """Error flag, three counts of cache blocks and, from target 1.6 on, ten counters; None where not printed."""

    kind: ClassVar[str] = "writecache"
    error: int
    blocks: int
    free: int
    writeback: int
    reads: int | None = None
    read_hits: int | None = None
    writes: int | None = None
    write_hits_uncommitted: int | None = None
    write_hits_committed: int | None = None
    write_bypass: int | None = None
    write_allocations: int | None = None
    freelist_blocked: int | None = None
    flushes: int | None = None
    discards: int | None = None

    @property
    def dirty(self) -> int:
        """Cache blocks in use: what the origin may still lack."""
        return self.blocks - self.free

    @classmethod
    def parse(cls, text: str) -> Self:
        try:
            # The error field is a negative errno in some kernels.
            error, *counts = text.split()
            values = [whole(word) for word in counts[:13]]
            if len(values) < 3:
                raise ValueError("too few")
            return cls(int(error), *values)
        except ValueError as err:
            raise bad_text(cls.kind, text) from err


@dataclass(frozen=True)
class DelayStatus:
    """Requests held back at this moment, by class."""

    kind: ClassVar[str] = "delay"
    reads: int
    writes: int
    flushes: int

    @classmethod
    def parse(cls, text: str) -> Self:
        try:
            reads, writes, flushes = text.split()
            return cls(whole(reads), whole(writes), whole(flushes))
        except ValueError as err:
            raise bad_text(cls.kind, text) from err


@dataclass(frozen=True)
class StripedStatus:
    """``1 253:0 1 A``. ``health`` has a letter a stripe: D once a request to its device has failed, since the table was
    loaded, else A."""

    kind: ClassVar[str] = "striped"
    devices: tuple[str, ...]
    health: str

    @property
    def failed(self) -> bool:
        return "D" in self.health

    @classmethod
    def parse(cls, text: str) -> Self:
        try:
            stripes, *devices, groups, health = text.split()
            if groups != "1" or not len(devices) == len(health) == whole(stripes) or set(health) - set("AD"):
                raise ValueError("health")
            return cls(tuple(devices), health)
        except ValueError as err:
            raise bad_text(cls.kind, text) from err


Status = EraStatus | RaidStatus | WriteCacheStatus | DelayStatus | StripedStatus

_PARSERS: dict[str, type[Status]] = {
    cls.kind: cls for cls in (EraStatus, RaidStatus, WriteCacheStatus, DelayStatus, StripedStatus)
}


def parse_status(kind: str, text: str) -> Status | None:
    """The status of a target of ``kind``; None for targets that print nothing worth reading (linear, error)."""
    parser = _PARSERS.get(kind)
    return None if parser is None else parser.parse(text)
