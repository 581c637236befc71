# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of the administrator's that are told of each event: the executables in /etc/dmsoft/hooks.d, by name.

Each gets the event as JSON on its standard input and what identifies it in its environment. They run one after the
other, beside everything else, and are ended after half a minute.
"""

import os
import stat
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from dmsoft.errors import DmsoftError
from dmsoft.monitor.events import Event
from dmsoft.run import run

DIRECTORY: Final = Path("/etc/dmsoft/hooks.d")
SECONDS: Final = 30.0
_MOST_WAITING: Final = 256


class HookRun(msgspec.Struct, frozen=True):
    """``problems``: one sentence for each hook that failed, or that was not run because others could write it."""

    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class Queue:
    """Events that hooks are yet to be told of; the oldest are dropped when too many wait for a slow one."""

    waiting: deque[Event] = field(default_factory=lambda: deque(maxlen=_MOST_WAITING))

    def add(self, events: Sequence[Event], directory: Path = DIRECTORY) -> None:
        if events and any_there(directory):
            self.waiting.extend(events)

    def take(self) -> tuple[Event, ...]:
        taken = tuple(self.waiting)
        self.waiting.clear()
        return taken


def any_there(directory: Path = DIRECTORY) -> bool:
    try:
        with os.scandir(directory) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def tell(events: Sequence[Event], directory: Path = DIRECTORY, seconds: float = SECONDS) -> HookRun:
    """Run every hook for every event, in this order."""
    found, problems = hooks(directory)
    for event in events:
        data = msgspec.json.encode(event) + b"\n"
        for hook in found:
            try:
                run([str(hook)], timeout=seconds, data=data, environment=event.environment())
            except (DmsoftError, OSError) as err:
                said = err.message if isinstance(err, DmsoftError) else f"{hook} cannot be run: {err.strerror}."
                problems.append(said)
    return HookRun(tuple(problems))


def hooks(directory: Path = DIRECTORY) -> tuple[list[Path], list[str]]:
    """The programs to run, and why others are not: whoever may write one of them, or put another in its place, would be
    root. A link counts as what it leads to."""
    found, problems = [], []
    try:
        entries = sorted(directory.resolve(strict=True).iterdir())
        if entries and (whose := _others_write(entries[0].parent)) is not None:
            return [], [f"No hook in {directory} is run: others than root may write {whose}."]
    except OSError:
        return [], []
    for entry in entries:
        if entry.name.startswith(".") or entry.name.endswith(("~", ".bak", ".dpkg-old", ".dpkg-dist", ".rpmsave")):
            continue
        try:
            program = entry.resolve(strict=True)
            facts = program.stat()
            if not stat.S_ISREG(facts.st_mode) or not facts.st_mode & stat.S_IXUSR:
                continue
            whose = _others_write(program)
        except (OSError, RuntimeError):  # a link that leads nowhere, or to itself
            continue
        if whose is not None:
            problems.append(f"{entry} is not run: others than root may write {whose}.")
            continue
        found.append(program)
    return found, problems


def _others_write(path: Path) -> Path | None:
    """What on the way to a resolved ``path`` others than root may change, None if nothing. In a folder with the sticky
    bit they cannot touch what is root's. Raises OSError."""
    for each in (path, *path.parents):
        facts = each.lstat()
        shared = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if facts.st_uid != 0 or (shared and not (stat.S_ISDIR(facts.st_mode) and facts.st_mode & stat.S_ISVTX)):
            return each
    return None
