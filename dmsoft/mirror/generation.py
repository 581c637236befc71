# SPDX-License-Identifier: GPL-2.0-or-later
"""Direction: which side is the older copy. Pure.

A generation is drawn whenever a disk becomes writable as a primary on its own; every member keeps the history, newest
last. The older copy never wins: only a secondary whose newest generation the primary knows may be written.
"""

from collections.abc import Sequence
from enum import Enum

from dmsoft.errors import DivergedError
from dmsoft.member.payload import MAX_GENERATIONS, Primary, Secondary


class Direction(Enum):
    TO_SECONDARY = "to-secondary"
    PRIMARY_IS_OLDER = "primary-is-older"
    DIVERGED = "diverged"


def direction(primary: Sequence[str], secondary: Sequence[str]) -> Direction:
    """Compare two histories (newest last, never empty)."""
    if secondary[-1] in primary:
        return Direction.TO_SECONDARY
    if primary[-1] in secondary:
        return Direction.PRIMARY_IS_OLDER
    return Direction.DIVERGED


def extended(history: Sequence[str], generation: str) -> tuple[str, ...]:
    """The history of a disk that has become writable on its own, in that generation; as it is if it was before.

    What is too long loses its beginning: a primary that is not remembered any more is told apart all the same.
    """
    if generation in history:
        return tuple(history)
    return (*history[-(MAX_GENERATIONS - 1) :], generation)


def parted(primary: Primary, secondary: Secondary) -> str | None:
    """Why the primary may not be copied onto the secondary, to follow the latter's name; None if it may."""
    match direction(primary.generation, secondary.generation):
        case Direction.TO_SECONDARY:
            return None
        case Direction.PRIMARY_IS_OLDER:
            return "it has what was written while the primary was left out"
        case Direction.DIVERGED:
            return "it and the primary went apart, and each may have writes that the other lacks"


def require_older(primary: Primary, secondary: Secondary) -> None:
    """Raise `DivergedError` unless the primary may be copied onto the secondary."""
    why = parted(primary, secondary)
    if why is not None:
        raise DivergedError(
            f"Nothing is copied onto {secondary.label} of {primary.mirror_name}: {why}.",
            hint="dmsoft(8) tells, under A SECONDARY NEWER THAN THE PRIMARY, how to get back what it has; to drop it, "
            "remove it and add it again.",
        )
