# SPDX-License-Identifier: GPL-2.0-or-later
"""Two locks a mirror, both ``flock`` on files in /run/dmsoft: they vanish with their holder, however it dies.

``operation`` is held by a verb from its first decision to its last write, hours in a resync. ``kernel`` is held around
each short sequence of device-mapper calls, because a ``status`` or ``message`` to a suspended era device blocks for
good; `status` needs only this one.

Who holds a lock has written into its file who that is. The file outlives a holder that was killed, so its words count
only while the lock is held and the process they name is alive.

The daemon's catch-ups hold ``operation`` as well, and yield it to whoever asks: a resync that is cut off goes on later.
"""

import contextlib
import errno
import fcntl
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from dmsoft.errors import BusyError, DeviceError
from dmsoft.member.files import decoded
from dmsoft.mirror.times import stamp

RUN_DIR = Path("/run/dmsoft")
_POLL_SECONDS = 0.02
# Whoever only looks whether a lock is held takes it for a moment, shared: that is not what makes a command give up.
_LEAST_SECONDS = 0.1
_WORDS_BYTES = 4096
# How long a holder that yields may take for it.
_YIELD_SECONDS = 30.0
_yielding = False

Kind = Literal["operation", "kernel"]


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock: its process, the verb it runs ("" if not told), and since when, in seconds of the clock;
    ``yields``: it lets go of it when it is sent a SIGTERM."""

    pid: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
    verb: str
    since: Annotated[float, Meta(ge=0, le=1e11)]
    yields: bool = False


def yield_on_sigterm() -> None:
    """From here on this process is sent a SIGTERM when another command wants an operation lock that it holds, and lets
    go of it soon after that."""
    global _yielding  # noqa: PLW0603  # a fact about the process
    _yielding = True


@contextlib.contextmanager
def locked(
    mirror_uuid: str, kind: Kind, *, timeout: float = 0, name: str | None = None, verb: str = ""
) -> Iterator[None]:
    """Hold the mirror's lock of that kind, for ``verb``; raises `BusyError` naming the holder after ``timeout``
    seconds, and `DeviceError`."""
    fd, asked = opened(mirror_uuid, kind), False
    try:
        deadline = time.monotonic() + max(timeout, _LEAST_SECONDS)
        while not _try(fd):
            if kind == "operation" and not asked and _ask(fd):
                asked, deadline = True, max(deadline, time.monotonic() + _YIELD_SECONDS)
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"The mirror {name or mirror_uuid} is busy with {_described(_words(fd))}.",
                    hint="Wait for it to end, or stop it with Ctrl-C; a resync can be cancelled at any time.",
                )
            time.sleep(_POLL_SECONDS)
        with contextlib.suppress(OSError):  # a full /run: only the next one's message lacks who we are
            yields = _yielding and kind == "operation"
            os.ftruncate(fd, 0)
            os.pwrite(fd, msgspec.json.encode(Holder(os.getpid(), verb, time.time(), yields)), 0)
        yield
    finally:
        os.close(fd)


def holder(mirror_uuid: str, kind: Kind = "operation") -> Holder | None:
    """Who holds the lock at this moment, None when nobody does or it has not said yet."""
    try:
        fd = os.open(_path(mirror_uuid, kind), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return None if _try(fd, fcntl.LOCK_SH) else _words(fd)
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
    """A descriptor of the lock's file, not locked: for who cannot open files when it is needed.

    Raises `DeviceError`.
    """
    return open_lock(_path(mirror_uuid, kind))


def open_lock(path: Path) -> int:
    """A descriptor of a file to be locked in `RUN_DIR`, made if need be. Raises `DeviceError`."""
    try:
        RUN_DIR.mkdir(mode=0o755, exist_ok=True)
        facts = RUN_DIR.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            raise DeviceError(
                f"{RUN_DIR} is no folder that only root may write, so a lock in it could be anybody's.",
                hint=f"Nothing was done. Find out who made {RUN_DIR}, and remove it.",
            )
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as err:
        raise DeviceError(
            f"The lock {path} cannot be made: {err.strerror}.", hint="Nothing was done; see what fills or blocks /run."
        ) from err


def _path(mirror_uuid: str, kind: Kind) -> Path:
    return RUN_DIR / f"{mirror_uuid}.{kind}.lock"


def _try(fd: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _words(fd: int) -> Holder | None:
    """What the holder wrote; None for what a holder left that is dead."""
    try:
        said = decoded(os.pread(fd, _WORDS_BYTES, 0), Holder)
        if said is not None:
            os.kill(said.pid, 0)
    except OSError:
        return None
    return said


def _ask(fd: int) -> bool:
    """Have the holder yield, if it does; returns whether it was asked. A number that was left behind by a process that
    was killed may be another's by now, which does not have the file open."""
    said = _words(fd)
    if said is None or not said.yields:
        return False
    mine = os.fstat(fd)
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{said.pid}/fd"):
            with contextlib.suppress(OSError):
                theirs = os.stat(entry.path)
                if (theirs.st_dev, theirs.st_ino) == (mine.st_dev, mine.st_ino):
                    os.kill(said.pid, signal.SIGTERM)
                    return True
    return False


def _described(held: Holder | None) -> str:
    if held is None:
        return "another dmsoft command"
    what = f"`dmsoft {held.verb}`" if held.verb else "another dmsoft command"
    return f"{what} (process {held.pid}, since {stamp(held.since).replace('T', ' ').removesuffix('Z')} UTC)"
