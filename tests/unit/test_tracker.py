# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the era metadata on the disk is still ours: one test a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.era.superblock import MAGIC, SpaceMapRoot, Superblock, WritesetRoot
from dmsoft.member.payload import Sync, Tracker
from dmsoft.mirror.tracker import Found, bounded, doubt, revoked
from tests import mirror_model

ID = "c" * 32
DIGEST, OTHER = "1" * 64, "2" * 64
BLOCK, BLOCKS = 2048, 1000
CLEAN = Tracker(ID, formatted=True, era_floor=9, clean_digest=DIGEST)
CRASHED = CLEAN.replace(clean_digest=None)
UNFINISHED = Tracker(ID)
SUPERBLOCK = Superblock(
    csum=0, flags=0, blocknr=0, uuid=bytes(16), magic=MAGIC, version=1, space_map=SpaceMapRoot(1024, 10, 1, 2),
    data_block_size=BLOCK, metadata_block_size=8, nr_blocks=BLOCKS, current_era=9,
    current_writeset=WritesetRoot(0, 0), writeset_tree_root=3, era_array_root=4, metadata_snap=0,
)  # fmt: skip
FRESH = SUPERBLOCK._replace(nr_blocks=0, current_era=0)


def seen(superblock: Superblock | None = SUPERBLOCK, *, digest: str = DIGEST, problem: str | None = None) -> Found:
    return Found(zero=False, digest=digest, superblock=superblock, problem=problem)


ZERO = Found(zero=True, digest=OTHER, superblock=None)


def judge(tracker: Tracker, found: Found) -> str | None:
    return doubt(tracker, found, block_sectors=BLOCK, nr_blocks=BLOCKS)


@pytest.mark.parametrize(
    ("tracker", "found"),
    [
        (CLEAN, seen()),
        (CRASHED, seen()),
        (CRASHED, seen(digest=OTHER)),  # after a crash the digest of the clean stop says nothing
        (CRASHED, seen(SUPERBLOCK._replace(current_era=10))),
        (UNFINISHED, ZERO),
        (UNFINISHED, seen(FRESH)),
        (UNFINISHED, seen()),
    ],
)
def test_what_is_still_ours(tracker: Tracker, found: Found) -> None:
    assert judge(tracker, found) is None


@pytest.mark.parametrize(
    ("tracker", "found", "why"),
    [
        (CLEAN.replace(doubt="given up"), seen(), "given up"),  # however well it looks
        (UNFINISHED.replace(doubt="given up"), ZERO, "given up"),
        (CLEAN, ZERO, "zeroed"),
        (CRASHED, ZERO, "zeroed"),
        (CLEAN, seen(None, problem="block 7 is torn"), "block 7 is torn"),
        (UNFINISHED, seen(None, problem="block 0 is torn"), "block 0 is torn"),
        (CRASHED, seen(SUPERBLOCK._replace(data_block_size=128)), "another block size"),
        (UNFINISHED, seen(FRESH._replace(data_block_size=128)), "another block size"),
        (CRASHED, seen(SUPERBLOCK._replace(nr_blocks=BLOCKS - 1)), "another size"),
        (CLEAN, seen(digest=OTHER), "changed while"),
        (CRASHED, seen(SUPERBLOCK._replace(current_era=8)), "went back from 9 to 8"),
        (CRASHED, seen(FRESH), "went back from 9 to 0"),
    ],
)
def test_what_is_not(tracker: Tracker, found: Found, why: str) -> None:
    assert why in (judge(tracker, found) or "")


@given(
    st.builds(Tracker, st.just(ID), st.booleans(), st.integers(0, 12), st.sampled_from([None, DIGEST, OTHER])),
    st.integers(0, 12),
    st.sampled_from([DIGEST, OTHER]),
    st.sampled_from([0, BLOCKS, BLOCKS + 1]),
)
def test_formatted_metadata_is_believed_only_if_nothing_contradicts(
    tracker: Tracker, era: int, digest: str, blocks: int
) -> None:
    found = seen(SUPERBLOCK._replace(current_era=era, nr_blocks=blocks), digest=digest)
    sound = blocks in (0, BLOCKS) and tracker.clean_digest in (None, digest)
    sound = sound and not (tracker.formatted and era < tracker.era_floor)
    assert (judge(tracker, found) is None) == sound


@pytest.mark.parametrize("tracked", [True, False])
def test_what_is_revoked(tracked: bool) -> None:
    synced = mirror_model.record("a", sync=Sync(era=5, tracker=ID, token="7" * 32))
    synced = synced.replace(token_pending="7" * 32, token_confirmed="8" * 32)
    before = mirror_model.primary(synced, mirror_model.record("b"))
    now = revoked(before, "r" * 300, tracked=tracked)
    assert now.tracker.id != before.tracker.id and now.tracker.clean_digest is None and now.tracker.era_floor == 0
    assert (now.tracker.doubt is None) == tracked
    assert now.tracker.formatted, "a create that has ended has ended"
    unfinished = before.replace(tracker=Tracker(ID))
    assert revoked(unfinished, "r", tracked=tracked).tracker.formatted != tracked
    copied, fresh = now.members
    assert (copied.sync.doubt, copied.token_pending, copied.token_confirmed) == ("r" * 200, "7" * 32, None)
    assert fresh.sync == Sync(), "one never copied has nothing to doubt"
    assert now.replace(tracker=before.tracker, members=before.members) == before


def test_a_pending_token_is_bounded_once() -> None:
    pending = mirror_model.record("a").replace(token_pending="7" * 32)
    assert bounded(pending, 4).pending_most == 4
    assert bounded(bounded(pending, 4), 9).pending_most == 4
    assert bounded(mirror_model.record("a"), 4).pending_most is None
