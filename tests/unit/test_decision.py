# SPDX-License-Identifier: GPL-2.0-or-later
"""How much a secondary needs: every branch, and that doubt never ends in a smaller answer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsoft.era.blocks import BlockSet
from dmsoft.member.payload import MemberRecord, Partial, Primary, Secondary, Sync
from dmsoft.mirror.decision import KINDS, Decision, decide, from_record, go_on
from tests.mirror_model import TOKEN, TRACKER, primary, record, secondary

OTHER = "8" * 32
ERA = 7
SYNCED = Sync(era=5, tracker=TRACKER, token=TOKEN, consistent=True)


def of(
    sync: Sync, *, noted: Sync | None = None, pending: str | None = None, confirmed: str | None = TOKEN,
    era: int | None = ERA,
) -> Decision:  # fmt: skip
    mine = record("s1", sync=noted or sync).replace(token_pending=pending, token_confirmed=confirmed)
    return decide(primary(mine), mine, secondary(primary(mine), "s1", sync=sync), era)


def test_what_fits_is_incremental() -> None:
    assert of(SYNCED) == Decision("incremental", "it holds everything written before era 5", 5)


@pytest.mark.parametrize("era", [5, 6, 1 << 31])
def test_an_era_that_the_primary_has_reached(era: int) -> None:
    assert of(SYNCED, era=era).since == 5


def test_never_copied_is_full() -> None:
    assert of(Sync()).kind == "full"
    assert of(Sync(), noted=SYNCED).kind == "full"
    assert of(Sync(tracker=TRACKER, token=TOKEN)).kind == "full"


def test_a_run_that_was_cut_off_is_gone_on_with() -> None:
    found = of(SYNCED.replace(partial=Partial(6, 10)))
    assert (found.kind, found.since, found.partial) == ("incremental", 5, Partial(6, 10))
    first = of(Sync(tracker=TRACKER, token=TOKEN, partial=Partial(6, 10)))
    assert (first.kind, first.since, first.partial) == ("full", None, Partial(6, 10))


@pytest.mark.parametrize(
    ("sync", "changes"),
    [
        ({"tracker": OTHER}, {}),
        ({"token": None}, {}),
        ({}, {"confirmed": OTHER}),
        ({"partial": Partial(ERA + 1, 10)}, {}),
        ({}, {"era": None}),
    ],
)
def test_what_a_run_has_done_counts_only_as_s_does(sync: dict[str, object], changes: dict[str, object]) -> None:
    """For a first copy as well, which starts over then."""
    for era in (5, None):
        found = of(SYNCED.replace(**({"era": era, "partial": Partial(6, 10)} | sync)), **changes)
        assert found.partial is None and found.since is None
        assert found.kind == ("compare" if era else "full")


def test_what_a_compare_has_done_counts_for_the_doubt_that_asked_for_it() -> None:
    left = SYNCED.replace(era=None, doubt="x", partial=Partial(6, 10))
    assert (of(left).kind, of(left).since, of(left).partial) == ("compare", None, Partial(6, 10))
    nothing: list[tuple[dict[str, object], dict[str, object]]] = [
        ({"tracker": OTHER}, {}), ({"token": None}, {}), ({"era": 5}, {}), ({}, {"confirmed": OTHER}),
        ({"partial": Partial(ERA + 1, 10)}, {}), ({}, {"era": None}),
    ]  # fmt: skip
    for sync, changes in nothing:
        found = of(left.replace(**sync), **changes)
        assert (found.kind, found.partial) == ("compare", None)
    assert of(left.doubted("y")).partial is None
    assert of(left.replace(doubt=None), noted=left).kind == "compare"
    assert of(left.replace(doubt=None), noted=left).partial is None


def test_a_journal_is_gone_on_with_only_if_its_run_is_the_last_that_the_primary_began() -> None:
    staged = SYNCED.replace(token=OTHER, partial=Partial(6, 10))

    def found(pending: str | None, most: int | None = None, sync: Sync = staged) -> Decision | None:
        mine = record("s1", sync=SYNCED)
        mine = mine.replace(token_pending=pending, token_confirmed=TOKEN, pending_most=most)
        return go_on(primary(mine), mine, secondary(primary(mine), "s1", sync=SYNCED), sync, ERA)

    kept = found(OTHER)
    assert kept is not None and (kept.since, kept.partial) == (5, Partial(6, 10)) and "journal" in kept.reason
    assert found(OTHER, 6) is not None
    assert found(None) is None and found("9" * 32) is None
    assert found(OTHER, 5) is None
    assert found(OTHER, None, staged.replace(tracker=OTHER)) is None


@given(
    st.none() | st.integers(1, 9), st.none() | st.tuples(st.integers(1, 9), st.integers(0, 50)),
    st.lists(st.integers(0, 9), min_size=40, max_size=40),
)  # fmt: skip
def test_what_is_owed_is_what_was_not_done(
    since: int | None, partial: tuple[int, int] | None, written: list[int]
) -> None:
    """``written``: the era in which each block was written last. What is done holds all writes before some era."""
    decision = Decision("full", "", since, None if partial is None else Partial(*partial))

    def written_since(era: int) -> BlockSet:
        return BlockSet.from_extents(len(written), [(b, 1) for b, last in enumerate(written) if last >= era])

    owed = decision.owed(written_since, len(written))
    for block, last in enumerate(written):
        stale = since is None or last >= since
        done = partial is not None and block < partial[1] and last < partial[0]
        assert (block in owed) == ((stale and not done) or (partial is not None and last >= partial[0]))


def test_the_pending_token_is_as_good_as_the_confirmed_one() -> None:
    assert of(SYNCED, pending=TOKEN, confirmed=None).since == 5
    assert of(SYNCED, pending=TOKEN, confirmed=OTHER).since == 5
    assert of(SYNCED, pending=OTHER, confirmed=TOKEN).since == 5


def test_a_primary_put_back_to_the_middle_of_a_run() -> None:
    """It knows the token, and after a while its era is beyond S again: nothing of what was written in between is."""
    mine = record("s1").replace(token_pending=TOKEN, token_confirmed=OTHER, pending_most=4)
    found = decide(primary(mine), mine, secondary(primary(mine), "s1", sync=SYNCED), 1000)
    assert found.kind == "compare" and "put back" in found.reason
    cut_off = mine.replace(pending_most=5)
    assert decide(primary(cut_off), cut_off, secondary(primary(cut_off), "s1", sync=SYNCED), 1000).since == 5


@pytest.mark.parametrize(
    ("sync", "changes", "why"),
    [
        (SYNCED.replace(doubt="the disk hummed"), {}, "the disk hummed"),
        (SYNCED.replace(doubt=""), {}, "nothing is known"),
        (SYNCED, {"noted": SYNCED.replace(doubt="")}, "nothing is known"),
        (SYNCED.replace(doubt="the disk hummed"), {"pending": TOKEN}, "the disk hummed"),
        (SYNCED.replace(era=None, doubt="the disk hummed"), {}, "the disk hummed"),
        (SYNCED, {"noted": SYNCED.replace(doubt="zeroed")}, "zeroed"),
        (SYNCED.replace(tracker=OTHER), {}, "began anew"),
        (SYNCED.replace(tracker=None), {}, "began anew"),
        (SYNCED.replace(token=None), {}, "older copy"),
        (SYNCED.replace(token=None), {"pending": None, "confirmed": None}, "older copy"),
        (SYNCED, {"confirmed": OTHER}, "older copy"),
        (SYNCED, {"confirmed": None}, "older copy"),
        (SYNCED, {"era": None}, "not known"),
        (SYNCED, {"era": 4}, "has not reached"),
    ],
)
def test_every_doubt_compares_every_block(sync: Sync, changes: dict[str, object], why: str) -> None:
    found = of(sync, **changes)
    assert found.kind == "compare" and found.since is None
    assert why in found.reason


def test_a_disk_that_is_away_is_judged_by_what_the_primary_noted() -> None:
    def away(sync: Sync) -> Decision:
        mine = record("s1", sync=sync)
        return from_record(primary(mine), mine)

    assert away(SYNCED) == Decision("incremental", "it holds everything written before era 5", 5)
    assert away(Sync()).kind == "full"
    assert away(SYNCED.replace(tracker=OTHER)).kind == "compare"
    assert away(SYNCED.replace(doubt="zeroed")).kind == "compare"
    assert away(Sync(doubt="zeroed")).kind == "compare"


trackers, tokens = st.sampled_from([TRACKER, TRACKER, OTHER, None]), st.sampled_from([TOKEN, TOKEN, OTHER, None])
eras = st.sampled_from([5, ERA, None, 12])
doubts = st.sampled_from([None, None, "", "x"])
partials = st.none() | st.builds(Partial, until=st.integers(0, 12), below=st.integers(0, 100))
syncs = st.builds(
    Sync, era=eras, tracker=trackers, token=tokens, consistent=st.booleans(), doubt=doubts, partial=partials
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Primary, MemberRecord, Secondary, int | None]:
    mine = record("s1", sync=draw(syncs)).replace(token_pending=draw(tokens), token_confirmed=draw(tokens))
    top = primary(mine)
    return top, mine, secondary(top, "s1", sync=draw(syncs)), draw(eras)


@settings(max_examples=300)
@given(cases())
def test_an_incremental_answer_stands_on_every_witness(
    case: tuple[Primary, MemberRecord, Secondary, int | None],
) -> None:
    top, mine, disk, era = case
    found = decide(top, mine, disk, era)
    assert found.kind in KINDS and found.kind != "none" and found.reason
    assert (found.since is not None) == (found.kind == "incremental")
    if found.partial is not None:
        assert found.partial == disk.sync.partial and era is not None and found.partial.until <= era
        assert disk.sync.tracker == top.tracker.id
        assert (disk.sync.doubt is not None) == (found.kind == "compare")
        assert disk.sync.token is not None and disk.sync.token in (mine.token_pending, mine.token_confirmed)
    if found.kind == "incremental":
        assert disk.sync.doubt is None
        assert found.since == disk.sync.era and era is not None and disk.sync.era is not None and disk.sync.era <= era
        assert disk.sync.tracker == top.tracker.id
        assert disk.sync.token is not None and disk.sync.token in (mine.token_pending, mine.token_confirmed)
        # Only a run that the primary itself began may outlive a doubt that the primary noted.
        assert mine.sync.doubt is None or disk.sync.token == mine.token_pending


@settings(max_examples=300)
@given(cases(), st.text(max_size=3))
def test_a_new_doubt_never_makes_the_answer_smaller(
    case: tuple[Primary, MemberRecord, Secondary, int | None], reason: str
) -> None:
    top, mine, disk, era = case
    doubted = disk.replace(sync=disk.sync.doubted(reason))
    before, after = decide(top, mine, disk, era), decide(top, mine, doubted, era)
    assert after.since is None
    assert after.kind == "compare" or KINDS.index(after.kind) >= KINDS.index(before.kind)


@given(syncs)
def test_a_disk_that_is_away_is_never_better_off_than_its_record(sync: Sync) -> None:
    mine = record("s1", sync=sync)
    found = from_record(primary(mine), mine)
    if found.since is not None:
        assert sync.doubt is None and sync.tracker == TRACKER and found.since == sync.era


def test_without_tracking_every_copied_secondary_is_compared() -> None:
    """Whatever its token, tracker and era say, here and away; one that was never copied is copied."""
    mine = record("s1", sync=SYNCED).replace(token_confirmed=TOKEN)
    off = primary(mine)
    off = off.replace(tracker=off.tracker.replace(doubt="the metadata failed"))
    for found in (decide(off, mine, secondary(off, "s1", sync=SYNCED), ERA), from_record(off, mine)):
        assert (found.kind, found.since) == ("compare", None) and "the metadata failed" in found.reason
    fresh = record("s1")
    assert decide(off, fresh, secondary(off, "s1"), ERA).kind == from_record(off, fresh).kind == "full"
