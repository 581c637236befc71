# SPDX-License-Identifier: GPL-2.0-or-later
"""Which plug-in of a disk was let go of, so that dmsoft itself does not take it back while it waits for a hand: a
secondary that was ejected, and the primary of a mirror that was stopped. And which mirrors this boot has started.

The kernel numbers every appearance of a disk (``diskseq``, since 5.15). The note in /run is a courtesy: without it a
disk that was let go of counts as returned, and the header's word that it is away stands until the next resync.
"""

import contextlib
from pathlib import Path

from dmsoft.member.files import read_small
from dmsoft.mirror.lock import RUN_DIR
from dmsoft.mirror.names import Names

PRIMARY = "primary"
"""Stands for a label, which no secondary can have."""


def note(names: Names, label: str, number: str) -> bool:
    """Remember that the disk ``number`` was let go of; returns whether that will be known."""
    with contextlib.suppress(OSError):
        _path(names, label).write_text(appearance(number))
    return waits(names, label, number)


def waits(names: Names, label: str, number: str) -> bool:
    """Whether the disk ``number`` was let go of and has not been unplugged since."""
    try:
        return read_small(_path(names, label)) == appearance(number).encode()
    except OSError:
        return False


def forget(names: Names, label: str) -> None:
    with contextlib.suppress(OSError):
        _path(names, label).unlink()


def begin(names: Names) -> None:
    """Remember that the mirror was started: whatever takes it down, its record is ours to close."""
    with contextlib.suppress(OSError):
        _begun(names.mirror_uuid).touch()


def has_begun(mirror_uuid: str) -> bool:
    return _begun(mirror_uuid).exists()


def end(names: Names) -> None:
    with contextlib.suppress(OSError):
        _begun(names.mirror_uuid).unlink()


def _begun(mirror_uuid: str) -> Path:
    return RUN_DIR / f"{mirror_uuid}.begun"


def _path(names: Names, label: str) -> Path:
    return RUN_DIR / f"{names.mirror_uuid}.{label}.ejected"


def appearance(number: str) -> str:
    """This plug-in of the disk ``number``, told apart from every other one. OSError where the kernel does not count."""
    folder = Path(f"/sys/dev/block/{number}").resolve(strict=True)
    whole = folder.parent if (folder / "partition").exists() else folder
    return f"{number} {(whole / 'diskseq').read_text().strip()}"
