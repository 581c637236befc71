# SPDX-License-Identifier: GPL-2.0-or-later
"""The generation that the secondaries of one raid1 share, and which header is taken for theirs."""

from pathlib import Path

import pytest

from dmsoft.inventory.sysfs import BlockDevice
from dmsoft.member.payload import AnyPayload
from dmsoft.mirror import alone
from dmsoft.mirror.locate import Member
from dmsoft.mirror.names import Names
from tests import mirror_model

NAMES = Names("m", mirror_model.MIRROR)


def test_one_for_all_until_another_raid1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "RUN_DIR", tmp_path)
    alone.forget(NAMES)
    first = alone._generation(NAMES)
    assert alone._generation(NAMES) == first and len(first) == 32
    alone.forget(NAMES)
    second = alone._generation(NAMES)
    assert second != first
    (path,) = tmp_path.iterdir()
    path.write_text("nothing of ours")
    third = alone._generation(NAMES)
    assert third not in (first, second) and path.read_text() == third


def test_where_nothing_can_be_kept_there_is_one_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "RUN_DIR", tmp_path / "not" / "there")
    assert alone._generation(NAMES) != alone._generation(NAMES)


PRIMARY = mirror_model.primary(mirror_model.record("one"))
ONE = mirror_model.secondary(PRIMARY, "one")


@pytest.mark.parametrize(
    ("payload", "verified"),
    [
        (PRIMARY, True),
        (mirror_model.secondary(PRIMARY, "two"), True),
        (ONE.replace(mirror_uuid="0" * 32), True),
        (ONE, False),
        (ONE, None),
    ],
)
def test_a_header_of_another_is_not_touched(payload: AnyPayload, verified: bool | None) -> None:
    device = BlockDevice("sda", "/dev/sda", 8, 0, mirror_model.SIZE, "disk")
    assert not alone._is_its(NAMES, "one", Member(device, payload, verified))
