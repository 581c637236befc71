# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads that either run or cannot be had.

Python's own `start` waits until the new thread says that it runs. One that finds no memory for its first frame never
says so, and whoever started it waits for ever, with every lock that it holds.
"""

import mmap
import threading

# What the interpreter asks for until a thread runs: a chunk for its frames, perhaps an arena for its objects.
_ROOM_BYTES = 4 << 20


def launch(thread: threading.Thread) -> None:
    """Raises RuntimeError, as `Thread.start` does, if there is no room for one more thread."""
    require_room()
    thread.start()


def require_room() -> None:
    """For who has threads started by others. Raises RuntimeError."""
    try:
        mmap.mmap(-1, _ROOM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as err:
        raise RuntimeError("can't start new thread") from err
