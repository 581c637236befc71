# SPDX-License-Identifier: GPL-2.0-or-later
"""The model that the kernel is compared with: it must neither overlook a lost mark nor demand one that never was."""

import random

import numpy as np
import pytest

from tests.era_history import History, Step, Write, random_step

BLOCK = 4096


def bits(*blocks: int, of: int = 16) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    found = np.zeros(of, np.bool_)
    found[list(blocks)] = True
    return found


def history(*steps: Step) -> History:
    made = History(16, BLOCK)
    for step in (Step("start"), *steps):
        made.apply(step)
    return made


def write(how: str, first: int, count: int) -> Step:
    return Step("writes", (Write(how, first * BLOCK, count * BLOCK),))


def refuses(model: History, era: int, *found: int) -> None:
    with pytest.raises(AssertionError, match=r"missing|not written"):
        model.check(era, bits(*found))


def test_a_write_is_in_its_era_and_in_no_later_one() -> None:
    model = history(write("direct", 3, 2), Step("checkpoint"), write("fua", 4, 1))
    model.check(1, bits(3, 4))
    model.check(2, bits(4))
    refuses(model, 1, 3)
    refuses(model, 2, 3, 4)
    refuses(model, 2)


def test_of_a_discard_the_first_block_is_certain() -> None:
    model = history(write("discard", 2, 3))
    for found in ([2], [2, 3], [2, 3, 4]):
        model.check(1, bits(*found))
    refuses(model, 1, 3, 4)
    refuses(model, 1, 2, 5)


def test_a_storm_may_be_in_either_era() -> None:
    model = history(Step("storm", (Write("direct", 0, BLOCK),)))
    assert model.era == 2
    model.check(1, bits(0))
    model.check(2, bits())
    model.check(2, bits(0))
    refuses(model, 1)


def test_a_discard_throws_away_what_is_in_the_page_cache() -> None:
    """The kernel drops the pages before it discards, so that a write through them may never happen."""
    for how in ("buffered", "direct"):
        storm = Step("storm", (Write(how, BLOCK, 2 * BLOCK), Write("discard", 0, 2 * BLOCK)))
        model = history(storm)
        model.check(1, bits(0, 1, 2))
        if how == "buffered":
            model.check(1, bits(0))
        else:
            refuses(model, 1, 0)
        model = history(Step("writes", storm.writes))
        refuses(model, 1, 0)


def test_what_a_crash_cut_off_is_in_doubt_and_what_came_before_is_not() -> None:
    model = history(write("direct", 1, 1))
    model.recover(write("direct", 1, 3), 1, 16, snapshot=False)
    for found in ([1], [1, 2, 3]):
        model.check(1, bits(*found))
    refuses(model, 1, 2)
    model.apply(Step("start"))
    model.check(2, bits())
    refuses(model, 2, 1)


def test_a_crash_explains_one_step_and_no_more() -> None:
    for step, era, blocks, snapshot in (
        (None, 2, 16, False),
        (write("direct", 1, 1), 2, 16, False),
        (Step("checkpoint"), 3, 16, False),
        (Step("checkpoint"), 2, 8, False),
        (Step("resize", blocks=8), 2, 9, False),
        (Step("checkpoint"), 2, 16, True),
    ):
        with pytest.raises(AssertionError):
            history().recover(step, era, blocks, snapshot)
    model = history()
    model.recover(Step("take_metadata_snap"), 2, 16, snapshot=True)
    assert model.snapshot is not None
    assert model.snapshot.era == 2


def test_what_a_shrink_cut_off_may_come_back() -> None:
    model = history(write("direct", 9, 1), Step("resize", blocks=8), Step("resize", blocks=16))
    model.check(1, bits())
    model.check(1, bits(9))
    refuses(model, 1, 10)


def test_random_steps_survive_json_and_fit(seed: int) -> None:
    model, rng = History(64, 16 * BLOCK), random.Random(seed)
    model.apply(Step("start"))
    for _ in range(300):
        step = random_step(rng, model, leave_out=("crash", "discard"))
        assert Step.from_json(step.to_json()) == step
        assert len(step.to_json()) < 3584
        assert step.kind != "crash"
        assert all(
            w.how != "discard" and 0 <= w.offset <= w.offset + w.length <= model.blocks * 16 * BLOCK
            for w in step.writes
        )
        assert not model.suspended or step.kind in ("resume", "resize")
        model.apply(step)
