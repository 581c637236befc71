# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon last said of the mirrors in its care, for `status`: a file in /run.

A courtesy, and nothing is decided by it but what `status` says. The daemon holds the lock file beside it as long as it
lives, and takes the file away when it ends as it should; so a file without a holder of the lock tells that it died.
"""

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dmsoft.member.files import read_json
from dmsoft.mirror.lock import RUN_DIR

PATH = RUN_DIR / "monitor.json"
LOCK = RUN_DIR / "monitor.lock"


class Held(msgspec.Struct, frozen=True):
    """A secondary with this ``token`` in its header held all that was written up to ``until``, in seconds of the epoch.

    Its header tells a moment too, but an earlier one: nothing is copied to it, and nothing said there, while nothing is
    written to the mirror.
    """

    token: str
    until: float


class Said(msgspec.Struct, frozen=True):
    """Of one mirror: ``held`` by label, ``alerts`` as (code, summary)."""

    held: dict[str, Held] = {}
    alerts: tuple[tuple[str, str], ...] = ()


class Bulletin(msgspec.Struct, frozen=True):
    """``mirrors`` by uuid."""

    pid: int
    mirrors: dict[str, Said] = {}


@dataclass(frozen=True, slots=True)
class Word:
    """The bulletin as found; ``alive`` False: the daemon that wrote it died."""

    bulletin: Bulletin
    alive: bool

    def of(self, mirror_uuid: str) -> Said:
        return self.bulletin.mirrors.get(mirror_uuid, Said())


def publish(bulletin: Bulletin) -> None:
    """Replace the file; a full /run does not matter."""
    beside = PATH.with_suffix(".tmp")
    with contextlib.suppress(OSError):
        RUN_DIR.mkdir(mode=0o755, exist_ok=True)
        beside.write_bytes(msgspec.json.encode(bulletin))
        beside.replace(PATH)


def withdraw() -> None:
    """The daemon ends as it should: from here on nobody has promised anything."""
    with contextlib.suppress(OSError):
        PATH.unlink()


def read(path: Path = PATH, lock: Path = LOCK) -> Word | None:
    """What a daemon said; None if there is none, and none died since the last that ended as it should."""
    bulletin = read_json(path, Bulletin)
    return None if bulletin is None else Word(bulletin, _held(lock))


def _held(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(fd)
