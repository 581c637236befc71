# SPDX-License-Identifier: GPL-2.0-or-later
"""Direction: which side is the older copy. Pure.

A generation is drawn whenever a disk becomes writable as a primary on its own; every member keeps the history, newest
last. The older copy never wins: only a secondary whose newest generation the primary knows may be written.
"""

from collections.abc import Sequence
from enum import Enum


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
