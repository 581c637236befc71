# SPDX-License-Identifier: GPL-2.0-or-later
"""Does write-behind run behind here, and what does a flush wait for?

A raid1 of a fast leg and one whose writes and flushes are held back, in both orders: on some kernels writes go behind
only if the slow leg comes first, and on some a write waits for the one right before it.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dmsoft.dm.device import Device
from dmsoft.dm.targets import Delay, DelayClass, Linear, Raid1, RaidLeg
from dmsoft.doctor import io
from dmsoft.doctor.bed import Bed
from dmsoft.doctor.finding import Finding
from dmsoft.errors import KernelError
from dmsoft.mirror import attach
from dmsoft.mirror.plan import MAX_WRITE_BEHIND
from dmsoft.mirror.running import node_path
from dmsoft.units import KIB, MIB, Sectors, sectors

_DATA_BYTES: Final = 16 * MIB
_SLOT_BYTES: Final = 256 * KIB
_REGION_BYTES: Final = 4 * MIB
_HELD_MS: Final = 1500
_ATTEMPTS: Final = 2
_SCATTERED: Final = (1 * MIB, 5 * MIB)
_SEQUENTIAL: Final = (9 * MIB, 9 * MIB + io.WRITE_BYTES)


@dataclass(frozen=True, slots=True)
class Measured:
    """With the slow leg at ``slot``: what ran behind, whether all of it arrived, and whether a flush waited."""

    slot: int
    scattered: bool
    sequential: bool
    arrived: bool
    flush_waits: bool


def findings(bed: Bed) -> Iterator[Finding]:
    try:
        attach.check_raid1()
    except KernelError as err:
        yield Finding("write-behind", "warning", err.message.rstrip("."), "Only periodic mode can be used.")
        return
    first, second = measure(bed, 0), measure(bed, 1)
    yield _arrival(first)
    yield _scattered(first, second)
    yield _sequential(first, second)
    if first.flush_waits:
        yield Finding(
            "fsync",
            "warning",
            "every fsync waits for the secondary",
            "In write-behind mode a program that calls fsync goes at the secondary's pace, unless a "
            "writecache takes its flushes.",
        )
    else:
        yield Finding("fsync", "ok", "an fsync does not wait for the secondary", "It costs what the primary costs.")


def measure(bed: Bed, slot: int) -> Measured:
    fast, slow = bed.ram(_DATA_BYTES), bed.ram(_DATA_BYTES)
    held = DelayClass(slow, Sectors(0), _HELD_MS)
    leg = bed.make(f"leg{slot}", _DATA_BYTES, Delay(slow, Sectors(0), 0, held, held))
    slots = bed.ram(2 * _SLOT_BYTES)
    metadata = [
        bed.make(f"slot{slot}{at}", _SLOT_BYTES, Linear(slots, sectors(at * _SLOT_BYTES))) for at in range(2)
    ]  # fmt: skip
    data = [str(leg.path), node_path(fast)] if slot == 0 else [node_path(fast), str(leg.path)]
    legs = tuple(RaidLeg(str(meta.path), path) for meta, path in zip(metadata, data, strict=True))
    raid = bed.make(f"raid{slot}", _DATA_BYTES, Raid1(
        legs=legs, write_mostly=(slot,), max_write_behind=MAX_WRITE_BEHIND, region=sectors(_REGION_BYTES),
        sync="nosync",
    ))  # fmt: skip
    with io.opened(raid) as fd:
        scattered = _runs_behind(fd, leg, _SCATTERED)
        sequential = _runs_behind(fd, leg, _SEQUENTIAL)
        io.drained(leg)
        arrived = all(io.read(slow, at) == io.read(fast, at) != bytes(io.WRITE_BYTES) for at in _places())
        flush_waits = _flush_waits(fd, leg)
    for device in (raid, *metadata, leg):
        device.remove()
    return Measured(slot, scattered, sequential, arrived, flush_waits)


def _places() -> Sequence[int]:
    return (*_SCATTERED, *_SEQUENTIAL)


def _runs_behind(fd: int, leg: Device, offsets: Sequence[int]) -> bool:
    """Whether all of these writes, one after the other, return while the leg still holds every one of them back."""
    for attempt in range(1, _ATTEMPTS + 1):
        io.drained(leg)
        for offset in offsets:
            io.write(fd, offset, attempt)
        if io.held(leg).writes >= len(offsets):
            return True
    return False


def _flush_waits(fd: int, leg: Device) -> bool:
    io.drained(leg)
    flushing = io.Started(lambda: os.fsync(fd))
    io.wait_until(lambda: io.held(leg).flushes > 0 or flushing.done)
    waits = not flushing.done
    with contextlib.suppress(OSError):
        flushing.wait()
    return waits


def _arrival(first: Measured) -> Finding:
    if first.arrived:
        return Finding("behind-arrives", "ok", "what is written behind arrives", "The secondary gets every write.")
    return Finding(
        "behind-arrives", "fail", "writes that go behind get lost", "Do not use write-behind mode on this kernel."
    )


def _scattered(first: Measured, second: Measured) -> Finding:
    found = f"the secondary as first leg: {_word(first.scattered)}; as second: {_word(second.scattered)}"
    if first.scattered:
        return Finding("behind-scattered", "ok", found, "dmsoft puts secondaries first: writes do not wait for them.")
    return Finding("behind-scattered", "warning", found, "In write-behind mode every write waits for the secondary.")


def _sequential(first: Measured, second: Measured) -> Finding:
    found = f"the secondary as first leg: {_word(first.sequential)}; as second: {_word(second.sequential)}"
    if first.sequential:
        return Finding("behind-sequential", "ok", found, "A sequential writer does not wait for the secondary.")
    return Finding(
        "behind-sequential",
        "warning",
        found,
        "In write-behind mode a write waits for one that touches it: a sequential writer that does one "
        "request at a time goes at the secondary's pace.",
    )


def _word(behind: bool) -> str:
    return "behind" if behind else "waits"
