# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the record of written blocks may lack some: a request of dm-era to it has failed, if only for a moment.

dm-era forgets that, and goes on with what lay on the disk before. The stripe below it does not, for as long as it
stands; what takes it down notes in /run what it said, until the header of the primary says so.
"""

import contextlib
from pathlib import Path

from dmsoft.dm.device import devices
from dmsoft.dm.targets import StripedStatus
from dmsoft.errors import DmsoftError
from dmsoft.mirror.execute import device
from dmsoft.mirror.lock import RUN_DIR
from dmsoft.mirror.names import PREFIX, Names


def suspected(names: Names) -> bool:
    """Whether marks may be missing from the record. It waits for nothing, whatever is suspended."""
    return _note(names.mirror_uuid).exists() or _failed(names)


def remember(names: Names, *, if_alive: bool = False) -> bool:
    """Before the stripe is taken down, or dmsoft ends: keep what it says; returns `suspected`.

    ``if_alive``: only if its disk is still plugged in. One that was unplugged meanwhile has no later state than that of
    the last commit that succeeded, which is whole.
    """
    if _failed(names) and not (if_alive and not can_be_asked(names)):
        with contextlib.suppress(OSError):  # of a full /run the caller knows what is returned
            _note(names.mirror_uuid).touch()
        return True
    return _note(names.mirror_uuid).exists()


def remember_all() -> None:
    """`remember` for every mirror that runs."""
    for info in devices(PREFIX):
        uuid = info.uuid.removeprefix(PREFIX).removesuffix("-top")
        if info.uuid.endswith("-top"):
            with contextlib.suppress(DmsoftError):
                remember(Names(info.name, uuid))


def forget(names: Names) -> None:
    """The header says it, or a new record is about to begin."""
    with contextlib.suppress(OSError):
        _note(names.mirror_uuid).unlink()


def can_be_asked(names: Names) -> bool:
    """Whether the disk of the record is still plugged in. A status of the era writes to it."""
    numbers = device(names.metadata_disk).deps() if device(names.metadata_disk).info() is not None else ()
    return all(Path(f"/sys/dev/block/{major}:{minor}").exists() for major, minor in numbers)


def _failed(names: Names) -> bool:
    watch = device(names.metadata_watch)
    if watch.info() is None:
        return False
    lines = [line for line in watch.status(asleep=True) if line.kind == "striped"]
    return any(StripedStatus.parse(line.text).failed for line in lines)


def _note(mirror_uuid: str) -> Path:
    return RUN_DIR / f"{mirror_uuid}.lost"
