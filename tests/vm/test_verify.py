# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify: what should be equal is compared, what is stale is no news, and a fault is named by block."""

import itertools

import pytest

from dmsoft.era.blocks import BlockSet
from dmsoft.mirror import sample, verify
from dmsoft.resync.copy import CancelledError
from dmsoft.units import KIB, MIB
from tests.vm.rig import NAME, Rig, dmsoft, ok, suspended

pytest_plugins = ("tests.vm.rig",)

SIZE = 40 * MIB
BLOCKS = 31


@pytest.fixture
def small(rig: Rig) -> Rig:
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE), two=rig.cut("s1", SIZE))
    rig.write(1, 2, 3)
    rig.resync()
    return rig


def test_a_fault_is_found_named_and_repaired(small: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under load, which changes clean blocks all the time: those are stale by then, and no fault."""
    # The sample that each opening compares may be first to find one; then there is nothing left to verify.
    monkeypatch.setattr(sample, "differing", lambda *_, **__: None)
    small.write(4)  # stale: differs, and is no news
    with small.writing(span=2 * MIB, pause_ms=1):
        done = ok("verify", NAME, "--json").json
    parts = {part["label"]: part for part in done["secondaries"]}
    for part in parts.values():
        assert part["complete"] and part["mismatches"] == [] and BLOCKS - 5 <= part["blocks"] <= BLOCKS - 1
        assert part["bytes"] == part["blocks"] * MIB
    assert small.secondary("one")["verified_at"]

    for block in (9, 10, 20):
        small.write_to_medium("one", block * MIB + 300 * KIB, b"\x99" * 4 * KIB)
    ran = dmsoft("verify", NAME, "--json")
    assert ran.code == 6 and '"mismatch"' in ran.err, ran
    parts = {part["label"]: part for part in ran.json["secondaries"]}
    assert parts["one"]["mismatches"] == [[9, 2], [20, 1]]
    assert parts["two"]["mismatches"] == []
    assert not suspended()
    one = small.secondary("one", code=9)
    assert one["state"] == "unknown" and small.stale("one") == set(range(BLOCKS))
    assert small.resync("one")["kind"] == "compare"
    small.equal("one")
    assert small.secondary("one")["state"] == "current"

    small.write_to_medium("two", 15 * MIB, b"\x77" * 4 * KIB)
    ran = dmsoft("verify", NAME, "two", "--repair", "--json")
    assert ran.code == 0 and ran.json["secondaries"][0]["repaired_bytes"] >= MIB, ran
    small.equal("two")


def test_a_round_goes_on_where_it_ended(small: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over an interrupt, a stop and a start."""
    monkeypatch.setattr(verify, "_STRETCH_BYTES", 4 * MIB)
    stretch, begun = verify.Round._stretch, itertools.count(1)

    def cut_off(found: verify.Round, clean: BlockSet) -> None:
        if next(begun) == 3:
            raise CancelledError("That is enough for today.")
        stretch(found, clean)

    with monkeypatch.context() as patch:
        patch.setattr(verify.Round, "_stretch", cut_off)
        assert dmsoft("verify", NAME, "one").code == 1
    assert small.record("one").verify_next == 8
    ok("stop", NAME)
    ok("start", NAME)
    done = ok("verify", NAME, "one", "--rate", "200M", "--json").json["secondaries"][0]
    assert done["complete"] and done["next_block"] == 0 and done["blocks"] == BLOCKS - 8
    assert small.record("one").verify_next == 0 and small.record("one").verified_at
