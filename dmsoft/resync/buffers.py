# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory for O_DIRECT: aligned to pages, and where much is copied made of huge ones.

Every page of a buffer is pinned for every request, and is a segment of its own in what the disk is asked to do; a huge
page is one. The memory is private and not inherited by a fork, because a page that a fork shares is copied when it is
written to next, and a read under way would then end up in the other process.
"""

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Sequence
from pathlib import Path

from dmsoft.units import GIB, MIB

_HUGE_BYTES = 2 << 20
_SLAB_BYTES = 16 * MIB
_MOST_KEPT_BYTES, _SHARE_OF_OTHERS = GIB, 0.5


def aligned_buffer(size_bytes: int, *, huge: bool = False, present: bool = False) -> memoryview:
    """Freed with its last view. ``huge``: of huge pages, each of which has to be cleared as a whole; ``present``: every
    page is there at once, else each comes when it is first touched."""
    memory = mmap.mmap(
        -1, max(size_bytes, mmap.PAGESIZE) + (_HUGE_BYTES if huge else 0), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    memory.madvise(mmap.MADV_DONTFORK)
    start = 0
    if huge:
        start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _HUGE_BYTES
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    view = memoryview(memory)[start : start + size_bytes]
    if present:
        touched = view[:: mmap.PAGESIZE]
        touched[:] = bytes(len(touched))
    return view


class Keeper:
    """Keeps copies of data that are wanted again soon: at most ``most_bytes``, and only while half of the machine's
    memory is there for others. Used by several threads; what is kept is freed with its last view."""

    def __init__(self, most_bytes: int = _MOST_KEPT_BYTES) -> None:
        self._left = most_bytes
        self._slab = memoryview(b"")
        self._lock = threading.Lock()

    def keep(self, views: Sequence[memoryview]) -> list[memoryview] | None:
        """Copies of them, aligned as long as all their sizes are multiples of 512; None if there is no room."""
        import numpy as np

        size = sum(map(len, views))
        with self._lock:
            if size > len(self._slab) and not self._grow(size):
                return None
            memory, self._slab = self._slab[:size], self._slab[size:]
        kept = []
        for view in views:
            kept.append(memory[: len(view)])
            memory = memory[len(view) :]
            # numpy copies without the interpreter's lock.
            np.copyto(np.frombuffer(kept[-1], np.uint8), np.frombuffer(view, np.uint8))
        return kept

    def _grow(self, size_bytes: int) -> bool:
        """A new slab with room for so many bytes; what the old one had left is lost."""
        if size_bytes > _SLAB_BYTES or self._left < _SLAB_BYTES:
            return False
        try:
            if _available_share() < _SHARE_OF_OTHERS:
                return False
            self._slab = aligned_buffer(_SLAB_BYTES, huge=True)
        except OSError:  # whoever asks can do without
            return False
        self._left -= _SLAB_BYTES
        return True


def _available_share() -> float:
    """Which part of the machine's memory is free or can be freed (Documentation/filesystems/proc.rst)."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = {words[0]: int(words[1]) for words in lines}
    return sizes["MemAvailable:"] / sizes["MemTotal:"]
