# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading what may move: retries that end, and that tell a race with the kernel from damage."""

from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from dmsoft.era.btree import Numbers
from dmsoft.era.errors import EraBusyError, EraMetadataError

T = TypeVar("T")

# The same complaint, under the same superblock, this often in a row is damage.
_COMPLAINTS: Final = 3


class Patience:
    """Allows ``tries`` failures. ``state`` is what metadata looks like now: equal states mean it may be standing."""

    def __init__(self, state: Callable[[], object], tries: int) -> None:
        self._state = state
        self._left = tries
        self._seen: list[tuple[str, object]] = []

    def forgive(self, error: EraMetadataError) -> None:
        """Let ``error`` pass as a race, or raise it: as what it is if it stays the same, else as `EraBusyError`."""
        self._seen.append((error.message, self._state()))
        if len(self._seen) >= _COMPLAINTS and all(seen == self._seen[-1] for seen in self._seen[-_COMPLAINTS:]):
            raise error
        self.count(error)

    def count(self, error: EraMetadataError | None = None) -> None:
        """One more try is used up. Raises `EraBusyError` after the last."""
        self._left -= 1
        if self._left <= 0:
            raise EraBusyError(
                "The era metadata changes faster than it can be read.",
                hint="Try again when the mirror is less busy, or read a metadata snapshot.",
            ) from error

    def keep_trying(self, step: Callable[[], T]) -> T:
        """The result of ``step``, tried again while metadata changes under it."""
        while True:
            try:
                return step()
            except EraMetadataError as error:
                self.forgive(error)


def settle(
    locate: Callable[[], Numbers | None], read: Callable[[int, Numbers], None], unit: int, patience: Patience
) -> bool:
    """Read the blocks that ``locate`` names until each of them was at the same place before and after.

    ``read`` gets the index of the first and the blocks, in whole groups of ``unit``. False if ``locate`` says None:
    they are no more. Raises `EraMetadataError`, `EraBusyError`.
    """
    before = patience.keep_trying(locate)
    if before is None:
        return False
    unread = np.arange(len(before))
    while True:
        failed = False
        try:
            for begin, end in _groups(unread, unit):
                read(begin, before[begin:end])
        except EraMetadataError as error:
            patience.forgive(error)
            failed = True
        after = patience.keep_trying(locate)
        if after is None:
            return False
        if len(after) != len(before):
            raise EraBusyError("A writeset changed its size while it was read.")
        if not failed:
            unread = unread[before[unread] != after[unread]]
            if not len(unread):
                return True
            patience.count()
        before = after


def _groups(indices: NDArray[np.int64], unit: int) -> list[tuple[int, int]]:
    """Runs (begin, end) of whole groups of ``unit`` that cover ascending ``indices``."""
    groups = np.unique(indices // unit)
    if not len(groups):
        return []
    breaks = np.flatnonzero(np.diff(groups) != 1) + 1
    starts = groups[np.concatenate(([0], breaks))]
    ends = groups[np.concatenate((breaks - 1, [len(groups) - 1]))]
    return [(int(begin) * unit, (int(end) + 1) * unit) for begin, end in zip(starts, ends, strict=True)]
