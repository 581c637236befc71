# SPDX-License-Identifier: GPL-2.0-or-later
"""Does dm-era do here what dmsoft relies on?"""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dmsoft.dm.device import Device
from dmsoft.dm.kernel import require_targets
from dmsoft.dm.status import EraStatus
from dmsoft.dm.targets import Delay, DelayClass, Era, Linear, SnapshotOrigin
from dmsoft.doctor import io
from dmsoft.doctor.bed import Bed
from dmsoft.doctor.finding import Finding
from dmsoft.era.reader import EraReader
from dmsoft.mirror import canary
from dmsoft.mirror.running import node_path
from dmsoft.units import KIB, MIB, Sectors, sectors

_DATA_BYTES: Final = 4 * MIB
_METADATA_BYTES: Final = MIB
_BLOCK_BYTES: Final = canary.BLOCK_BYTES
_LANDS_AFTER_MS: Final = 1500
_DISCARDED: Final = 8


def findings(bed: Bed) -> Iterator[Finding]:
    yield sound(bed)
    yield from boundaries(bed)
    yield discards(bed)


def _era(bed: Bed, layer: str, origin: str) -> tuple[Device, str]:
    """An era device on fresh metadata, and the number of the device of those."""
    metadata = bed.ram(_METADATA_BYTES)
    era = bed.make(layer, _DATA_BYTES, Era(node_path(metadata), origin, sectors(_BLOCK_BYTES)))
    return era, metadata


def _marked(metadata: str, since: int) -> set[int]:
    with EraReader(node_path(metadata)) as reader:
        runs = list(reader.written_since(since).blocks.runs())
    return {block for first, count in runs for block in range(first, first + count)}


def _status(era: Device) -> EraStatus:
    (line,) = era.status()
    return EraStatus.parse(line.text)


def sound(bed: Bed) -> Finding:
    """The canary."""
    era, metadata = _era(bed, "canary", node_path(bed.ram(_DATA_BYTES)))
    wrong = canary.check(era, lambda: EraReader(node_path(metadata)), _BLOCK_BYTES)
    era.remove()
    if wrong is None:
        return Finding(
            "era-tracking",
            "ok",
            "each write is listed in its era, and nothing else is",
            "A secondary gets all that it misses, and only that.",
        )
    return Finding(
        "era-tracking", "fail", wrong, "Mirrors start without tracking here: every resync compares every block."
    )


def boundaries(bed: Bed) -> Iterator[Finding]:
    """A write on its way when an era ends: which of the two ways to end one waits for it?"""
    ram = bed.ram(_DATA_BYTES)
    slow = DelayClass(ram, Sectors(0), _LANDS_AFTER_MS)
    delay = bed.make("landing", _DATA_BYTES, Delay(ram, Sectors(0), 0, slow, DelayClass(ram, Sectors(0), 0)))
    era, _ = _era(bed, "boundary", str(delay.path))
    with io.opened(era) as fd:
        writing = io.Started(lambda: io.write(fd, 0, 0x5A))
        io.wait_until(lambda: io.held(delay).writes > 0 or writing.done)
        before = _status(era).era
        era.message("checkpoint")
        rolled, late = _status(era).era == before + 1, io.held(delay).writes > 0
        era.suspend(lockfs=False)
        landed = io.read(ram, 0) == b"\x5a" * io.WRITE_BYTES
        era.resume()
        writing.wait()
    era.remove()
    delay.remove()
    yield Finding(
        "suspend-drains",
        "ok" if landed else "fail",
        f"a suspend {'waits' if landed else 'does not wait'} for writes on their way",
        "A barrier is a clean line between two eras."
        if landed
        else "A block could be copied before its last write: do not use dmsoft on this kernel.",
    )
    how = "does not wait" if late and rolled else "waits"
    yield Finding(
        "checkpoint", "ok", f"a checkpoint {how} for writes on their way", "dmsoft ends an era by a suspend only."
    )


def discards(bed: Bed) -> Finding:
    ram = bed.ram(_DATA_BYTES)
    open_era, metadata = _era(bed, "discards", node_path(ram))
    try:
        with io.opened(open_era) as fd:
            io.discard(fd, _BLOCK_BYTES, _DISCARDED * _BLOCK_BYTES)
        found = f"marks {len(_marked(metadata, 1))} of the {_DISCARDED} blocks of a discard"
    except OSError as err:
        if err.errno != errno.EOPNOTSUPP:
            raise
        found = "discards do not get as far as dm-era"
    open_era.remove()
    lower = bed.make("no-discards", _DATA_BYTES, Linear(ram, Sectors(0)))
    Path(f"/sys/dev/block/{lower.number}/queue/discard_max_bytes").write_text("0")
    if _refuses_discards(bed, str(lower.path)):
        return Finding("discards", "ok", f"{found}; they can be turned off", "Mirrors refuse discards.")
    require_targets(["snapshot-origin"])
    shield = bed.make("shield", _DATA_BYTES, SnapshotOrigin(str(lower.path)))
    if _refuses_discards(bed, str(shield.path)):
        return Finding("discards", "ok", f"{found}; a layer more keeps them off", "Mirrors refuse discards.")
    return Finding(
        "discards",
        "fail",
        f"{found}; they cannot be turned off",
        "No mirror starts: a discard would change blocks that are not marked.",
    )


def _refuses_discards(bed: Bed, origin: str) -> bool:
    """Whether an era device on ``origin`` does, by trying."""
    era, _ = _era(bed, "without-discards", origin)
    try:
        with io.opened(era) as fd:
            io.discard(fd, 0, 64 * KIB)
    except OSError:
        return True
    finally:
        era.remove()
    return False
