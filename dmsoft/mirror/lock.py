# SPDX-License-Identifier: GPL-2.0-or-later
"""Two locks a mirror, both ``flock`` on files in /run/dmsoft: they vanish with their holder, however it dies.

``operation`` is held by a verb from its first decision to its last write, hours in a resync. ``kernel`` is held around
each short sequence of device-mapper calls, because a ``status`` or ``message`` to a suspended era device blocks for
good; `status` needs only this one.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from dmsoft.errors import BusyError

RUN_DIR = Path("/run/dmsoft")
_POLL_SECONDS = 0.02

Kind = Literal["operation", "kernel"]


@contextlib.contextmanager
def locked(mirror_uuid: str, kind: Kind, *, timeout: float = 0, name: str | None = None) -> Iterator[None]:
    """Hold the mirror's lock of that kind; raises `BusyError` naming the holder after ``timeout`` seconds."""
    fd = opened(mirror_uuid, kind)
    try:
        deadline = time.monotonic() + timeout
        while not _try(fd):
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"The mirror {name or mirror_uuid} is busy with another dmsoft command{_holder(fd)}.",
                    hint="Wait for it to end, or stop it with Ctrl-C; a resync can be cancelled at any time.",
                )
            time.sleep(_POLL_SECONDS)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def tried(fd: int) -> Iterator[bool]:
    """Hold the lock of an `opened` file for the block, if nobody else holds it; yields whether that is so."""
    held = _try(fd)
    try:
        yield held
    finally:
        if held:
            fcntl.flock(fd, fcntl.LOCK_UN)


def opened(mirror_uuid: str, kind: Kind) -> int:
    """A descriptor of the lock's file, not locked: for who cannot open files when it is needed."""
    RUN_DIR.mkdir(mode=0o755, exist_ok=True)
    return os.open(RUN_DIR / f"{mirror_uuid}.{kind}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _holder(fd: int) -> str:
    pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
    return f" (process {pid})" if pid.isdigit() else ""
