# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked of the record inside a barrier, which a kernel that fails has to be caught at in the same moment."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dmsoft.era.reader import EraReader
from dmsoft.mirror import barrier
from dmsoft.mirror.barrier import Barrier, BarrierLostError, EraLostError
from dmsoft.mirror.names import Names

NAMES = Names("m", "a" * 32)


def inside(*, suspended: bool = True) -> Barrier:
    top = cast(Any, SimpleNamespace(info=lambda: SimpleNamespace(suspended=suspended)))
    return Barrier(NAMES, top, top, cast(Any, None))


def reader(root: int) -> EraReader:
    superblock = SimpleNamespace(current_era=7, current_writeset=SimpleNamespace(root=root))
    return cast(EraReader, SimpleNamespace(superblock=lambda: superblock))


@pytest.mark.parametrize(
    ("root", "suspected", "suspended"), [(0, False, True), (9, False, True), (0, True, True), (0, False, False)]
)
def test_the_era_that_begins(root: int, suspected: bool, suspended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier.loss, "suspected", lambda names: suspected and names == NAMES)
    here = inside(suspended=suspended)
    if not suspended:
        with pytest.raises(BarrierLostError):
            here.next_era(reader(root))
    elif root or suspected:
        with pytest.raises(EraLostError):
            here.next_era(reader(root))
    else:
        assert here.next_era(reader(root)) == 8
