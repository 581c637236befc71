# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks with volatile caches, and what a power cut leaves of them.

Every write and flush of all disks goes onto one tape, in the one order in which they came. A cut is a place on it: what
a disk was told to flush before is on its medium, and of each later write any part may be there as well or not, in any
order, because a cache writes back what it likes.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SECTOR, PAGE = 512, 4096


@dataclass(frozen=True, slots=True)
class Event:
    """A write of ``data`` to a disk, a flush of it (no data), or a ``mark`` of what happens there (no disk)."""

    disk: str = ""
    offset: int = 0
    data: bytes | None = None
    mark: str = ""


Tape = list[Event]


@dataclass(slots=True)
class Platter:
    """One disk as its user sees it, cache included; a `tests.harness.nbd.Store`."""

    name: str
    image: bytearray
    tape: Tape

    @property
    def size(self) -> int:
        return len(self.image)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.image[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.image[offset : offset + len(data)] = data
        self.tape.append(Event(self.name, offset, data))

    def flush(self) -> None:
        self.tape.append(Event(self.name))


@dataclass(frozen=True, slots=True)
class Image:
    """Bytes as a `dmsoft.member.disk.Disk` that is only read: the host looks at headers of its guest's disks."""

    name: str
    data: bytes | bytearray

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def pwrite(self, data: bytes, offset: int) -> None:
        raise PermissionError(self.name)

    def flush(self) -> None:
        pass


Piece = tuple[int, bytes]
Survival = Callable[[Sequence[Event], random.Random], Iterator[Piece]]


def _lost(_: Sequence[Event], __: random.Random) -> Iterator[Piece]:
    yield from ()


def _kept(pending: Sequence[Event], _: random.Random) -> Iterator[Piece]:
    for event in pending:
        yield event.offset, event.data or b""


def _pages(pending: Sequence[Event], chance: random.Random) -> Iterator[Piece]:
    yield from _some(pending, chance, PAGE)


def _sectors(pending: Sequence[Event], chance: random.Random) -> Iterator[Piece]:
    yield from _some(pending, chance, SECTOR)


def _some(pending: Sequence[Event], chance: random.Random, unit: int) -> Iterator[Piece]:
    share = chance.choice([0.1, 0.5, 0.9])
    for event in pending:
        data = event.data or b""
        for at in range(0, len(data), unit):
            if chance.random() < share:
                yield event.offset + at, data[at : at + unit]


def _newest(pending: Sequence[Event], chance: random.Random) -> Iterator[Piece]:
    """The cache wrote back in reverse."""
    yield from _kept(pending[chance.randrange(len(pending) + 1) :], chance)


def _oldest(pending: Sequence[Event], chance: random.Random) -> Iterator[Piece]:
    """It wrote back in order, and the last write is torn."""
    count = chance.randrange(len(pending) + 1)
    yield from _kept(pending[:count], chance)
    for event in pending[count : count + 1]:
        data = event.data or b""
        yield event.offset, data[: SECTOR * chance.randrange(len(data) // SECTOR + 1)]


SURVIVALS: dict[str, Survival] = {
    "lost": _lost, "kept": _kept, "pages": _pages, "sectors": _sectors, "newest": _newest, "oldest": _oldest,
}  # fmt: skip


@dataclass(slots=True)
class Replay:
    """Plays a tape forward on ``media``, the disks as they were when it began."""

    tape: Sequence[Event]
    media: dict[str, bytearray]
    at: int = 0
    cached: dict[str, list[Event]] = field(default_factory=dict)

    @classmethod
    def of(cls, tape: Sequence[Event], before: Mapping[str, bytes | bytearray]) -> "Replay":
        return cls(tape, {name: bytearray(image) for name, image in before.items()}, 0, {name: [] for name in before})

    def to(self, cut: int) -> None:
        """Go to just before event ``cut``, which must not lie behind."""
        for event in self.tape[self.at : cut]:
            if event.data is not None:
                self.cached[event.disk].append(event)
            elif event.disk:
                for done in self.cached[event.disk]:
                    _apply(self.media[event.disk], done.offset, done.data or b"")
                self.cached[event.disk].clear()
        self.at = max(self.at, cut)

    def after_cut(self, survival: str, chance: random.Random) -> dict[str, bytearray]:
        """The disks if the power goes here; each cache does what ``survival`` says by its own lights."""
        images = {}
        for name, medium in self.media.items():
            image = bytearray(medium)
            for offset, data in SURVIVALS[survival](self.cached[name], chance):
                _apply(image, offset, data)
            images[name] = image
        return images


def _apply(image: bytearray, offset: int, data: bytes) -> None:
    image[offset : offset + len(data)] = data
