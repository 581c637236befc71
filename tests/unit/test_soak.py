# SPDX-License-Identifier: GPL-2.0-or-later
"""The soak's own eyes: what it would not see, it could not find."""

from pathlib import Path

import numpy as np
import pytest

from dmsoft.member.header import Copy, Scan
from dmsoft.member.payload import Sync
from tests import mirror_model
from tests.soak import campaigns
from tests.soak.claims import Seen, whole
from tests.soak.content import BLOCK, TORN, Content, Numbers, fill, newest, numbers_of

BLOCKS = 40


def test_a_moment_and_what_is_none(seed: int) -> None:
    content = Content(seed, BLOCKS)
    for moment in (0, 1, 30, 500):
        assert content.is_one_moment(content.at(moment))
    now, before = content.at(500), content.at(499)
    assert np.flatnonzero(now != before).tolist() == [content.place(500)]
    late = now.copy()
    oldest = int(now.argmin())
    late[oldest] = content.at(int(now[oldest]) - 1)[oldest]  # one write that is missing
    assert not content.is_one_moment(late)
    torn = now.copy()
    torn[3] = TORN
    assert not content.is_one_moment(torn)


def test_numbers_are_read_back() -> None:
    data = b"".join([fill(7), bytes(BLOCK), fill(1 << 40), fill(3)[:4096] + fill(4)[4096:]])
    assert numbers_of(data + b"\1" * 512).tolist() == [7, 0, 1 << 40, TORN]
    assert newest(data) == 1 << 40 and newest(data[-BLOCK:]) == 4
    broken = bytearray(fill(9))
    broken[-1] ^= 1
    assert numbers_of(bytes(broken)).tolist() == [TORN]


def test_a_disk_that_is_not_what_it_says(seed: int) -> None:
    content = Content(seed, BLOCKS)
    now = content.at(300)
    other = now.copy()
    other[content.place(300)] = content.at(299)[content.place(300)]
    other[content.place(298)] = 0

    def seen(numbers: Numbers, *, consistent: bool = True, committed: bool = False) -> Seen:
        data = b"".join(fill(int(number)) if number else bytes(BLOCK) for number in numbers)
        sync = Sync(era=5, consistent=consistent)
        payload = mirror_model.secondary(mirror_model.primary(), "a", sync=sync)
        return Seen(Scan(None, (Copy(0, "ok"), Copy(1, "ok")), True), payload, data, committed)

    assert whole("a", seen(now), content, 300) == []
    assert "promised" in whole("a", seen(now), content, 301)[0]
    assert "newest" in whole("a", seen(other), content, 0)[0]
    assert whole("a", seen(other, consistent=False), content, 301) == []
    assert whole("a", seen(other, committed=True), content, 301) == []


def test_campaigns_take_turns_until_the_time_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, quick = (campaigns.Campaign(name, "platform", (), takes_seed=False) for name in ("fine", "quick"))
    monkeypatch.setattr(campaigns, "CAMPAIGNS", (fine, quick))
    assert campaigns.soak(1e-5, ["fine", "quick"], 7, tmp_path) == 0
    said = capsys.readouterr().out
    assert said.startswith("fine, seed 7, ") and "without a divergence: fine 1" in said
    assert not list(tmp_path.iterdir())


def test_a_campaign_that_fails_ends_the_soak_and_leaves_what_it_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaigns, "CAMPAIGNS", (campaigns.Campaign("bad", "platform.nothing", ()),))
    assert campaigns.soak(1, ["bad"], 7, tmp_path) == 1
    (log,) = tmp_path.iterdir()
    assert log.name == "bad-7.log" and log.read_text()
    assert str(log) in capsys.readouterr().err


def test_what_takes_long_is_in_a_campaign() -> None:
    root = Path(__file__).parents[2]
    files = [path for folder in ("tests/vm", "tests/crash") for path in (root / folder).glob("test_*.py")]
    long = {str(path.relative_to(root)) for path in files if "pytest.mark.long" in path.read_text()}
    # The module of a campaign does what these tests do for a while.
    done = {word.partition("::")[0] for campaign in campaigns.CAMPAIGNS for word in campaign.words}
    assert len(long) > 5 and long - done == {"tests/crash/test_soak.py"}
