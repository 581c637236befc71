# SPDX-License-Identifier: GPL-2.0-or-later
"""The barrier: suspend and resume of the top, the only clean line between two eras.

Suspending drains every write that was on its way and archives the era's writeset; resuming begins the next era. (A
``checkpoint`` message begins one too, but writes of the old era may land after it.) In between nothing forks, nothing
logs and nothing faults: libdevmapper is called in process with all memory locked, and a guard process stands by.
"""

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from dmsoft.dm import memory
from dmsoft.dm.cookie import Cookie
from dmsoft.dm.device import Device
from dmsoft.era.reader import EraReader
from dmsoft.errors import DeviceError, MetadataError
from dmsoft.inventory.usage import Usage
from dmsoft.mirror import loss
from dmsoft.mirror.execute import device
from dmsoft.mirror.guard import Guard, resume_top, resume_watched
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names
from dmsoft.mirror.wayout import TrackingLostError

# From the suspend's return; a guard resumes at this age whatever its owner is doing.
DEADLINE_SECONDS = 10.0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syncfs(-1)  # resolved and touched now: inside a barrier nothing is looked up


class BarrierLostError(DeviceError):
    """The mirror had to be resumed before the work on it was done.

    A command held it still for too long, so its guard let writers go on. Nothing was promised to the secondary. Run the
    command again; if it happens often, the machine or a disk is very slow: see the kernel log.
    """

    code = "barrier-lost"


class EraLostError(MetadataError):
    """The record of which blocks were written may lack some.

    A write to the device of that record failed, if only for a moment, and the kernel's era target goes on as if nothing
    were. So tracking is given up, and begun anew by the next resync, which compares every block. Look at the health of
    that disk.
    """

    code = "era-lost"


@dataclass(slots=True)
class Barrier:
    """One barrier, as seen from inside: what happened, and (afterwards) how long the top stood still."""

    names: Names
    top: Device
    lower: Device
    guard: Guard
    stall_seconds: float = 0.0
    lower_suspended: bool = False

    def owes(self, cookie: Cookie) -> None:
        """Wait for that cookie when everything is resumed."""
        self.guard.owes(cookie)

    def next_era(self, reader: EraReader) -> int:
        """The era that the resume begins: the superblock on the disk is final now. Raises `BarrierLostError`, and
        `EraLostError` if the record has failed, or if the suspend has not archived what was written in the era that
        ends: era_postsuspend in drivers/md/dm-era-target.c tells the kernel's log and nobody else."""
        superblock = reader.superblock()
        lost = loss.suspected(self.names)
        self.check()
        if lost or superblock.current_writeset.root != 0:
            raise EraLostError(
                f"The record of what was written in era {superblock.current_era} may lack some: its device failed.",
                hint="Run `dmsoft resync`: it begins the tracking anew. Look at that disk's health.",
            )
        return superblock.current_era + 1

    def check(self) -> None:
        """Raise `BarrierLostError` unless the top is still suspended."""
        info = self.top.info()
        if info is None or not info.suspended:
            raise BarrierLostError(
                "The mirror was resumed by its guard before the work under the barrier was done.",
                hint="Nothing was promised to the secondary; run the command again.",
            )


@contextlib.contextmanager
def barrier(
    names: Names, guard: Guard, *, freeze: bool, await_udev: bool = True, lock_timeout: float = 30,
    deadline: float = DEADLINE_SECONDS,
) -> Iterator[Barrier]:  # fmt: skip
    """Suspend the top, run the block, resume the top; ``freeze`` also freezes the file system on it.

    The block must be short and must not fork or log. If it raises, the top is resumed and the exception goes on. Raises
    `BarrierLostError` when the guard had to resume first, and `TrackingLostError` when no new era could begin, so that
    the mirror goes on without tracking. ``stall_seconds`` of the yielded barrier is final afterwards.

    What udev does about the resume is waited for, or with ``await_udev`` false no sooner than the next barrier of this
    guard or its end: good where the top was resumed as it was, and nothing comes after it that needs a new link.
    """
    import numpy  # noqa: F401 - what is done inside may need it, and can then not have it read from a disk

    guard.settle()
    top, lower = device(names.top, inner=False), device(names.lower)
    state = Barrier(names, top, lower, guard)
    if freeze:
        _sync_filesystems(names.top.path)
    with locked(names.mirror_uuid, "kernel", timeout=lock_timeout, name=names.name), memory.locked():
        guard.arm()
        gc.disable()
        start = time.monotonic()
        try:
            top.suspend(lockfs=freeze)
            guard.deadline(deadline)
            yield state
            state.check()
        finally:
            try:
                _resume(state)
                guard.disarm()  # not if the resume failed: then it is the guard's turn
            except TrackingLostError:
                guard.disarm()  # it is resumed, in another way
                raise
            finally:
                state.stall_seconds = time.monotonic() - start
                gc.enable()
        if await_udev:
            guard.settle()


def _resume(state: Barrier) -> None:
    """Resume bottom-up; the udev part of it is waited for later. A lower that its block left suspended gets the plain
    linear table first: the swap it was suspended for did not work out."""
    try:
        if state.lower_suspended:
            info = state.lower.info()
            if info is not None and info.suspended:
                state.lower.load(state.guard.fallback)
                state.owes(resume_watched(state.guard.helper, state.lower))
    finally:
        cookie = resume_top(state.top, state.guard.way_out)
        if cookie is not None:
            state.owes(cookie)


def _sync_filesystems(path: str) -> None:
    """Write back what is dirty before the freeze, which would otherwise do it while every writer stands still."""
    status = os.stat(path)
    number = (os.major(status.st_rdev), os.minor(status.st_rdev))
    for mountpoint in Usage.read().mounts.get(number, ()):
        with contextlib.suppress(OSError):
            fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _libc.syncfs(fd)
            finally:
                os.close(fd)
