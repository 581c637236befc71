# SPDX-License-Identifier: GPL-2.0-or-later
"""Which era wrote which block: a model of dm-era that needs no kernel, and random steps to try both with.

A step is what somebody does to an era device; it goes through JSON, so that a journal outlives the machine that crashed
in the middle of it. `History.apply` says what a step that ended has done, `History.recover` what one may have done
that did not end.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# What moves the era on.
_ADVANCES = ("start", "checkpoint", "take_metadata_snap", "resume", "restart", "resize", "crash", "storm")
_CHOICES = {
    "writes": 50,
    "storm": 6,
    "checkpoint": 12,
    "suspend": 8,
    "take_metadata_snap": 4,
    "restart": 4,
    "resize": 4,
    "crash": 3,
}
WAYS = ("direct", "direct", "fua", "buffered", "zero", "discard")


class Write(NamedTuple):
    """Bytes, whole sectors, and one of `WAYS`."""

    how: str
    offset: int
    length: int

    def is_discarded_by(self, other: "Write") -> bool:
        """Whether ``other``, at the same time, may throw pages of this out of the page cache, to be never written."""
        touches = self.offset < other.offset + other.length and other.offset < self.offset + self.length
        return other.how == "discard" and touches


@dataclass(frozen=True)
class Step:
    """``writes`` one after the other, or (``storm``) at the same time and beside a checkpoint; or a message's name.

    ``blocks`` is the size after a ``resize``. ``recovered`` is what was found after a crash: all three numbers.
    """

    kind: str
    writes: tuple[Write, ...] = ()
    blocks: int = 0
    era: int = 0
    snapshot: bool = False

    def to_json(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def from_json(cls, text: str) -> "Step":
        fields = json.loads(text)
        fields["writes"] = tuple(Write(*write) for write in fields.get("writes", ()))
        return cls(**fields)


class History:
    """``surely``: the last era that certainly wrote each block. ``perhaps``: the last that may be said to have.

    The two differ where a crash cut a write off, where a discard went past its first block, where a write raced with a
    checkpoint or a discard, and where a shrink cut blocks off that undigested writesets still know.
    """

    def __init__(self, most_blocks: int, block_bytes: int) -> None:
        self.surely = np.zeros(most_blocks, np.uint32)
        self.perhaps = np.zeros(most_blocks, np.uint32)
        self.block_bytes = block_bytes
        self.blocks = most_blocks
        self.era = 0
        self.suspended = False
        self.snapshot: History | None = None

    def apply(self, step: Step) -> None:
        """``step`` began and ended."""
        if step.kind == "recovered":
            self.era, self.blocks = step.era, step.blocks
            return
        before = self.era
        self.era += step.kind in _ADVANCES
        for write in step.writes:
            vanishes = step.kind == "storm" and write.how == "buffered" and any(map(write.is_discarded_by, step.writes))
            self._write(write, 0 if vanishes else before, self.era)
        if step.kind == "resize":
            self._resize(step.blocks)
        elif step.kind == "take_metadata_snap":
            self._take_snapshot()
        elif step.kind == "drop_metadata_snap":
            self.snapshot = None
        self.suspended = step.kind == "suspend"

    def recover(self, step: Step | None, era: int, blocks: int, snapshot: bool) -> Step:
        """The machine died, in the middle of ``step`` if that is not None, and this was found afterwards.

        Returns the step that says so. Raises AssertionError if it cannot be.
        """
        kind = step.kind if step else ""
        assert self.era <= era <= self.era + (kind in _ADVANCES), f"era {era} after {kind} in era {self.era}"
        assert blocks in {self.blocks, step.blocks if step and step.kind == "resize" else self.blocks}
        for write in step.writes if step else ():
            self._write(write, 0, self.era + (kind in _ADVANCES))
        self._resize(blocks)
        if snapshot != (self.snapshot is not None):
            assert kind in ("take_metadata_snap", "drop_metadata_snap"), f"a snapshot changed with {kind}"
            self.era = era
            self.snapshot = None
            if snapshot:
                self._take_snapshot()
        self.suspended = False
        found = Step("recovered", blocks=blocks, era=era, snapshot=snapshot)
        self.apply(found)
        return found

    def check(self, era: int, found: NDArray[np.bool_]) -> None:
        """``found``, one bool a block, has every block written since ``era``, and none that cannot have been."""
        assert len(found) == self.blocks
        surely, perhaps = self.surely[: self.blocks], self.perhaps[: self.blocks]
        missing = np.flatnonzero((surely >= era) & (surely != 0) & ~found)
        assert not len(missing), f"since {era}: {missing[:10]} are missing, last written in {surely[missing][:10]}"
        extra = np.flatnonzero(found & ((perhaps < era) | (perhaps == 0)))
        assert not len(extra), f"since {era}: {extra[:10]} were not written, but last in {perhaps[extra][:10]}"

    def _write(self, write: Write, surely: int, perhaps: int) -> None:
        first, last = write.offset // self.block_bytes, (write.offset + write.length - 1) // self.block_bytes
        # The target marks the first block of a discard; whether more is marked is not ours to say.
        certain = first if write.how == "discard" else last
        touched = self.surely[first : certain + 1]
        np.maximum(touched, surely, out=touched)
        self.perhaps[first : last + 1] = perhaps

    def _resize(self, blocks: int) -> None:
        self.surely[min(blocks, self.blocks) :] = 0
        self.blocks = blocks

    def _take_snapshot(self) -> None:
        copy = History(len(self.surely), self.block_bytes)
        copy.surely, copy.perhaps = self.surely.copy(), self.perhaps.copy()
        copy.blocks, copy.era = self.blocks, self.era
        self.snapshot = copy


def random_step(rng: random.Random, history: History, *, leave_out: Sequence[str] = ()) -> Step:
    """What to do next. ``leave_out`` names kinds of steps and ways to write that shall not be."""
    if history.suspended and rng.random() < 0.6:
        return Step("resume")
    names = [name for name in _CHOICES if name not in leave_out]
    if history.suspended:
        names = [name for name in names if name in ("resize", "crash")]
    kind = rng.choices(names, [_CHOICES[name] for name in names])[0] if names else "resume"
    most = len(history.surely)
    if kind in ("writes", "storm"):
        count = rng.choice([1, 1, 5, 20]) if kind == "writes" else 8
        ways = [way for way in WAYS if way not in leave_out]
        return Step(kind, tuple(_random_write(rng, history, ways) for _ in range(count)))
    if kind == "take_metadata_snap" and history.snapshot is not None:
        return Step("drop_metadata_snap")
    if kind == "resize":
        return Step(kind, blocks=rng.choice([most, most // 2, rng.randint(most // 4, most)]))
    return Step(kind)


def _random_write(rng: random.Random, history: History, ways: Sequence[str]) -> Write:
    how = rng.choice(ways)
    # A kernel splits a discard where its start is not aligned to the disk's unit.
    unit = 4096 if how == "discard" else 512
    length = rng.choice([1, 8, rng.randint(1, 64), rng.randint(1, 2048)]) * unit
    offset = rng.randrange(0, history.blocks * history.block_bytes - length, unit)
    if rng.random() < 0.3:
        offset -= offset % history.block_bytes
    return Write(how, offset, length)
