# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory for O_DIRECT: aligned to pages, and where much is copied made of huge ones.

Every page of a buffer is pinned for every request, and is a segment of its own in what the disk is asked to do; a huge
page is one. The memory is private and not inherited by a fork, because a page that a fork shares is copied when it is
written to next, and a read under way would then end up in the other process.
"""

import contextlib
import mmap

import numpy as np

_HUGE_BYTES = 2 << 20


def aligned_buffer(size_bytes: int, *, huge: bool = False, present: bool = False) -> memoryview:
    """Freed with its last view. ``huge``: of huge pages, each of which has to be cleared as a whole; ``present``: every
    page is there at once, else each comes when it is first touched."""
    memory = mmap.mmap(
        -1, max(size_bytes, mmap.PAGESIZE) + (_HUGE_BYTES if huge else 0), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    memory.madvise(mmap.MADV_DONTFORK)
    start = 0
    if huge:
        start = -np.frombuffer(memory, np.uint8).ctypes.data % _HUGE_BYTES
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    view = memoryview(memory)[start : start + size_bytes]
    if present:
        np.frombuffer(view, np.uint8)[:: mmap.PAGESIZE] = 0
    return view
