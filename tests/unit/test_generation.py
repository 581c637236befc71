# SPDX-License-Identifier: GPL-2.0-or-later
"""Direction: the older copy never wins, and two that went apart are left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.errors import DivergedError
from dmsoft.member.payload import MAX_GENERATIONS, decode, encode
from dmsoft.mirror.generation import Direction, direction, extended, parted, require_older
from tests import mirror_model

histories = st.lists(st.integers(0, 1 << 64).map(str), min_size=1, max_size=6, unique=True)


def test_the_same_history_goes_to_the_secondary() -> None:
    assert direction(("a", "b"), ("a", "b")) is Direction.TO_SECONDARY


def test_a_secondary_that_slept_while_the_primary_changed_hands() -> None:
    assert direction(("a", "b", "c"), ("a",)) is Direction.TO_SECONDARY
    assert direction(("a",), ("a", "b")) is Direction.PRIMARY_IS_OLDER


def test_both_were_writable_on_their_own() -> None:
    assert direction(("a", "b"), ("a", "c")) is Direction.DIVERGED
    assert direction(("a",), ("z",)) is Direction.DIVERGED


@given(histories, st.data())
def test_a_prefix_is_always_the_older_one(history: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(history)))
    older = history[:cut]
    assert direction(history, older) is Direction.TO_SECONDARY
    expected = Direction.TO_SECONDARY if older == history else Direction.PRIMARY_IS_OLDER
    assert direction(older, history) is expected


@given(histories, histories, histories)
def test_two_branches_are_never_copied_either_way(common: list[str], one: list[str], two: list[str]) -> None:
    left, right = [*common, *(f"l{n}" for n in one)], [*common, *(f"r{n}" for n in two)]
    assert direction(left, right) is direction(right, left) is Direction.DIVERGED


@given(histories, histories)
def test_at_most_one_side_may_be_written(one: list[str], two: list[str]) -> None:
    there, back = direction(one, two), direction(two, one)
    if there is Direction.TO_SECONDARY and back is Direction.TO_SECONDARY:
        assert one[-1] in two and two[-1] in one
    else:
        assert Direction.TO_SECONDARY not in (there, back) or Direction.DIVERGED not in (there, back)


@given(histories, st.integers(0, 1 << 64).map(str))
def test_a_secondary_that_went_on_alone_is_never_written(history: list[str], fresh: str) -> None:
    alone = extended(history, fresh)
    assert extended(alone, fresh) == alone
    if fresh in history:
        assert alone == tuple(history)
        return
    assert direction(history, alone) is Direction.PRIMARY_IS_OLDER
    # The raid slots told the primary as well.
    assert direction([*history[:-1], "other"], alone) is Direction.DIVERGED


def test_a_history_has_an_end() -> None:
    secondary = mirror_model.secondary(mirror_model.primary(), "1")
    for number in range(2 * MAX_GENERATIONS):
        fresh = f"{number:032x}"
        secondary = secondary.replace(generation=extended(secondary.generation, fresh))
        assert secondary.generation[-1] == fresh
    assert len(secondary.generation) == MAX_GENERATIONS and decode(encode(secondary)) == secondary


def test_what_is_said_of_it() -> None:
    primary = mirror_model.primary()
    secondary = mirror_model.secondary(primary, "one")
    assert parted(primary, secondary) is None
    require_older(primary, secondary)
    alone = secondary.replace(generation=extended(secondary.generation, "9" * 32))
    assert parted(primary, alone) == "it has what was written while the primary was left out"
    with pytest.raises(DivergedError, match=r"^Nothing is copied onto one of m: it has what .* left out\.$"):
        require_older(primary, alone)
    assert "each may have writes" in (parted(primary.replace(generation=("8" * 32,)), alone) or "")
