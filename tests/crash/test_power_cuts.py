# SPDX-License-Identifier: GPL-2.0-or-later
"""Power cuts anywhere in the life of a mirror, on disks that really lose what was not flushed. ``./dev cuts`` makes
them by the thousand."""

import random
from pathlib import Path

import pytest

from tests.crash import desk
from tests.crash.campaign import Campaign
from tests.crash.judge import Divergence
from tests.crash.life import STORIES
from tests.crash.recording import Places

# What every life with all of its deeds goes through, so that it is cut there.
PHASES = {
    "create", "add", "first copy", "running", "resync", "killed resync", "eject", "attach", "stop", "stopped", "start",
    "destroy", "destroyed",
}  # fmt: skip
PARTS = {"barrier", "pass", "copy", "final", "data-flush", "super-write"}
JOURNAL = {"journal-begin", "stage", "journal-flush", "commit-write", "commit-flush", "data-write", "apply"}


def test_a_few_power_cuts(tmp_path: Path, seed: int) -> None:
    with Campaign(seed, tmp_path) as campaign:
        life = campaign.live("apart", deeds=1)
        campaign.cut(life, 4)
        print(campaign.figures)
        assert sum(campaign.figures.cuts.values()) >= 4
    chance = random.Random(seed)
    found = desk.cut_at(life, Places.of(life.tape).turns(), chance)
    found += desk.cut(life, 4, chance)
    while not found["whole"] and found["cuts"] < 600:  # a short life has few places at which a secondary says so
        found += desk.cut(life, 10, chance)
    print(dict(found))
    assert found["cuts"] >= 78 and found["whole"]


@pytest.mark.slow
@pytest.mark.parametrize("story", ["drawn", *(pytest.param(story, marks=pytest.mark.long) for story in STORIES)])
def test_many_power_cuts(story: str, tmp_path: Path, seed: int) -> None:
    story = random.Random(seed).choice(STORIES) if story == "drawn" else story
    with Campaign(seed, tmp_path) as campaign:
        life = campaign.live(story, deeds=8)
        places = Places.of(life.tape)
        assert set(places.phases) >= PHASES
        assert set(places.inner) >= (PARTS if story == "behind" else PARTS | JOURNAL)
        campaign.cut(life, 2)
        print(campaign.figures)
    found = desk.cut(life, 60, random.Random(seed))
    print(dict(found))
    assert found["cuts"] == 360 and found["whole"] and found["incremental"]


@pytest.mark.long
@pytest.mark.parametrize("care", ["flush_primary", "stale"])
def test_the_lab_sees_it_when_a_care_is_left_out(care: str, tmp_path: Path, seed: int) -> None:
    """Without its flush of the primary, or with what one barrier closed forgotten, dmsoft is found out."""
    with Campaign(seed, tmp_path) as campaign, pytest.raises(Divergence):
        for _ in range(4):
            desk.cut(campaign.live("apart", careless=care), 200, random.Random(seed))
