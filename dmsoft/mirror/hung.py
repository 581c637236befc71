# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that kept a read for longer than anybody waits, for as long as that read is under way.

Whoever asked them again would wait as long once more, and leave another thread behind that nobody can end. So who gives
up notes in /run which of its threads the disk has; while that thread is there, the disk counts as one that does not
answer. A note is a courtesy: without it each command finds out by itself.
"""

import contextlib
from pathlib import Path

from dmsoft.inventory.sysfs import BlockDevice
from dmsoft.member.files import read_small
from dmsoft.mirror.lock import RUN_DIR

# Of /proc/PID/task/TID/stat the 3rd and the 22nd field, counted behind the name, which may have spaces (proc(5)).
_STATE_FIELD, _START_FIELD = 0, 22 - 3
# Not stopped, as by a debugger, with its read done.
_WAITS = "D"


def disk_of(device: BlockDevice) -> str:
    """What hangs together: the name of the whole disk."""
    return device.parent or device.name


def note(disk: str, pid: int, tid: int) -> None:
    """The disk of that name has this thread."""
    with contextlib.suppress(OSError):
        _path(disk).write_text(f"{pid} {tid} {_stat(pid, tid)[_START_FIELD]}")


def has_thread(disk: str) -> bool:
    """Whether the disk of that name still keeps the read of somebody who has given up."""
    with contextlib.suppress(OSError, ValueError):
        pid, tid, start = read_small(_path(disk)).decode("ascii").split()
        stat = _stat(int(pid), int(tid))
        if stat[_START_FIELD] == start and stat[_STATE_FIELD] in _WAITS:
            return True
    with contextlib.suppress(OSError):
        _path(disk).unlink()
    return False


def _stat(pid: int, tid: int) -> list[str]:
    """What the thread is at, and when it began, which tells it from a later one of that number. Raises OSError when it
    is gone."""
    return Path(f"/proc/{pid}/task/{tid}/stat").read_text().rpartition(")")[2].split()


def _path(disk: str) -> Path:
    return RUN_DIR / f"{disk}.hung"
