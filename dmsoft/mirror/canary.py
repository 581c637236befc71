# SPDX-License-Identifier: GPL-2.0-or-later
"""The canary: is a write through this kernel's dm-era found by our reader, in the right era, and it alone?

Before the top is offered to anyone, a little era device is built on the primary's raid slots, which no raid1 uses at
that moment. A block of it is rewritten with its own bytes, a new era begins, another block is rewritten; then the
reader has to list each in its era and nothing else. The user's data are not touched, and the mirror's own record gets
no mark. That the reader also reads the record that the top writes is told by the era, which only the kernel advances
(`reads_the_top`).

A stack that fails is not trusted: see `dmsoft.mirror.untracked`. A check that cannot be made has failed.
"""

import mmap
import os
from collections.abc import Callable
from typing import Final

from dmsoft.dm.device import Device
from dmsoft.dm.targets import EraStatus
from dmsoft.era.reader import EraReader
from dmsoft.errors import DmsoftError
from dmsoft.member.regions import slot
from dmsoft.mirror import plan
from dmsoft.mirror.execute import device, dismantle, ensure
from dmsoft.mirror.names import SLOTS_PER_SET
from dmsoft.mirror.running import Running, node_path, write
from dmsoft.units import KIB

BLOCK_BYTES: Final = 16 * KIB
METADATA_BLOCK_BYTES: Final = 4096
_WRITE_BYTES: Final = 4096
# One block for each of two eras; apart, and neither at an end.
_BLOCKS: Final = (5, 21)


def prove(running: Running, slot_set: int) -> str | None:
    """Why this stack's tracking cannot be trusted, None if it can; the head of the slots must be zero (`clear`)."""
    wanted = plan.canary(running.assembly.primary, slot_set, BLOCK_BYTES)
    region = slot(running.payload, slot_set * SLOTS_PER_SET)
    number = running.assembly.primary.number
    try:
        dismantle([each.node for each in wanted])  # of one that was killed: its eras are not this one's
        made = ensure(wanted)
        try:
            return check(
                device(wanted[-1].node),
                lambda: EraReader(
                    node_path(number), offset_bytes=region.offset, length_bytes=region.length * SLOTS_PER_SET // 2
                ),
            )
        finally:
            dismantle(made)
    except DmsoftError as err:
        return _unchecked(err)


def clear(running: Running, slot_set: int) -> None:
    """Zero where the canary's metadata begin, so that the kernel formats them. Only inside `Running.writing`."""
    offset = slot(running.payload, slot_set * SLOTS_PER_SET).offset
    write(running.primary, bytes(METADATA_BLOCK_BYTES), offset, "The primary")


def reads_the_top(running: Running) -> str | None:
    """Why what our reader reads is not what the live top writes, None if it is."""
    try:
        status = running.era_status()
        if status.failed:
            return "the kernel reports an error in the era metadata"
        with running.era_reader() as reader:
            found = reader.superblock().current_era
    except DmsoftError as err:
        return _unchecked(err)
    if found != status.era:
        return f"the kernel is at era {status.era}, and its metadata as they are read at era {found}"
    return None


def check(era: Device, reader: Callable[[], EraReader], block_bytes: int = BLOCK_BYTES) -> str | None:
    """Write, roll, look, on an era device that nobody else uses: what is wrong, None if nothing is."""
    try:
        return _check(era, reader, block_bytes)
    except DmsoftError as err:
        return _unchecked(err)
    except OSError as err:
        return f"its check could not be made ({err.strerror})"


def _check(era: Device, reader: Callable[[], EraReader], block_bytes: int) -> str | None:
    first = _era(era)
    for index, block in enumerate(_BLOCKS):
        _rewrite(era, block * block_bytes)
        if (wrong := _differs(reader, first + index, {block})) is not None:
            return wrong
        era.suspend(lockfs=False)
        era.resume()
        if _era(era) != first + index + 1:
            return "a suspend and resume did not begin the next era"
    return (
        _differs(reader, first, set(_BLOCKS))
        or _differs(reader, first + 1, {_BLOCKS[1]})
        or _differs(reader, first + 2, set())
    )


def _differs(reader: Callable[[], EraReader], since: int, wanted: set[int]) -> str | None:
    with reader() as opened:
        found = opened.written_since(since).blocks
    listed = {block for first, count in found.runs() for block in range(first, first + count)}
    if missing := wanted - listed:
        return f"a write to block {min(missing)} was not recorded"
    if extra := listed - wanted:
        return f"block {min(extra)} is recorded as written and was not"
    return None


def _era(era: Device) -> int:
    (line,) = era.status()
    status = EraStatus.parse(line.text)
    if status.failed:
        raise DmsoftError("the kernel reports an error in its metadata")
    return status.era


def _rewrite(era: Device, offset: int) -> None:
    """Write what is there once more."""
    fd = os.open(era.path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _WRITE_BYTES) as buffer:
            if os.preadv(fd, [buffer], offset) != _WRITE_BYTES or os.pwritev(fd, [buffer], offset) != _WRITE_BYTES:
                raise OSError(0, "a short read or write")
            os.fsync(fd)
    finally:
        os.close(fd)


def _unchecked(err: DmsoftError) -> str:
    return f"its check could not be made ({err.message.rstrip('.')})"
