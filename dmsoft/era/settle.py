# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading what may move: retries that end, and that tell a race with the kernel from damage."""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from dmsoft.era.errors import EraBusyError, EraMetadataError
from dmsoft.era.layout import Numbers

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
    unread: Sequence[int] = range(len(before))
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
            unread = [] if before == after else [index for index in unread if before[index] != after[index]]
            if not unread:
                return True
            patience.count()
        before = after


def _groups(indices: Sequence[int], unit: int) -> list[tuple[int, int]]:
    """Runs (begin, end) of whole groups of ``unit`` that cover ascending ``indices``."""
    if isinstance(indices, range):
        return [(0, -(-len(indices) // unit) * unit)] if indices else []
    runs: list[tuple[int, int]] = []
    for group in sorted({index // unit for index in indices}):
        begin, end = group * unit, (group + 1) * unit
        if runs and runs[-1][1] == begin:
            begin = runs.pop()[0]
        runs.append((begin, end))
    return runs
