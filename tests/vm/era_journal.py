# SPDX-License-Identifier: GPL-2.0-or-later
"""What was begun and what was done, on a disk of its own: it outlives the machine, whatever it dies of."""

import mmap
import os
from pathlib import Path

from tests.era_history import History, Step

_SLOT = 4096
# The last sector of a slot says that its step has ended; it is written on its own.
_DONE = _SLOT - 512


class Journal:
    """Steps in slots of 4096 bytes, past every cache of the guest. The disk is zero where nothing was written.

    The host may look into the file behind the disk when the guest is gone.
    """

    def __init__(self, disk: Path) -> None:
        direct = os.O_DIRECT if disk.is_block_device() else 0
        self._fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC | direct)
        self._memory = mmap.mmap(-1, _SLOT)
        # Each step, and whether it came to its end.
        self.entries: list[tuple[Step, bool]] = []
        while os.preadv(self._fd, [self._memory], len(self.entries) * _SLOT) == _SLOT and self._memory[0]:
            step = Step.from_json(self._memory[:_DONE].rstrip(b"\0").decode())
            self.entries.append((step, bool(self._memory[_DONE])))

    def close(self) -> None:
        os.close(self._fd)

    def begin(self, step: Step) -> None:
        self._memory[:] = step.to_json().encode().ljust(_SLOT, b"\0")
        os.pwrite(self._fd, self._memory, len(self.entries) * _SLOT)
        self.entries.append((step, False))

    def end(self) -> None:
        """The step begun last has ended."""
        step, _ = self.entries[-1]
        self._memory[:512] = b"\1" * 512
        with memoryview(self._memory) as view, view[:512] as sector:
            os.pwrite(self._fd, sector, (len(self.entries) - 1) * _SLOT + _DONE)
        self.entries[-1] = (step, True)

    def replay(self, history: History) -> Step | None:
        """Tell ``history`` everything; returns the step at the end that was begun alone, if there is one."""
        pending: Step | None = None
        for step, ended in self.entries:
            if not ended:
                assert pending is None, "two steps did not end"
                pending = step
            elif step.kind == "recovered":
                history.recover(pending, step.era, step.blocks, step.snapshot)
                pending = None
            else:
                assert pending is None, f"{step.kind} follows a step that did not end"
                history.apply(step)
        return pending
