# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that are there and do not work: nothing is promised, nothing is forgotten, and it is said at once."""

import pytest

from dmsoft.member import header
from dmsoft.member.payload import Primary
from dmsoft.mirror import notes, sample
from dmsoft.units import MIB
from tests.vm.rig import NAME, Rig, dmsoft, ok, read, suspended

pytest_plugins = ("tests.vm.rig",)

SIZE = 32 * MIB


@pytest.fixture
def small(rig: Rig) -> Rig:
    """A small mirror on parts of disks, synced once."""
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE), two=rig.cut("s1", SIZE))
    rig.resync()
    return rig


@pytest.mark.parametrize("feature", [pytest.param("error_writes", marks=pytest.mark.long), "drop_writes"])
def test_a_secondary_that_fails_or_loses_what_is_written(small: Rig, feature: str) -> None:
    """Not even its flush or its header gets through: S stays where it was; the other secondary is served."""
    before = small.secondary_header("one").sync
    small.write(3, 4)
    small.behave(small.secondaries["one"], "s0", feature)
    ran = dmsoft("resync", NAME, "--json")
    assert ran.code == 6, ran
    parts = {part["label"]: part for part in ran.json["secondaries"]}
    assert parts["one"]["error"] and parts["two"]["error"] is None
    assert not suspended()
    small.equal("two")

    small.behave(small.secondaries["one"], "s0")
    assert small.secondary_header("one").sync.era == before.era
    small.superset("one")
    assert small.states() == {"one": "stale", "two": "current"}
    done = small.resync()
    assert done["kind"] == "incremental" and done["bytes_copied"] == 2 * MIB
    small.equal()


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "cut_off"), [("resync", False), ("resync", True), ("verify", False)])
def test_a_difference_on_a_secondary_that_takes_no_writes(
    small: Rig, verb: str, cut_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header cannot say so; the primary's does, and every block is compared even if that one was set right: also if
    the last run could not say that it had ended."""
    if cut_off:
        with monkeypatch.context() as context:
            context.setattr(notes, "confirmed", lambda *_: None)
            small.write(3)
            small.resync("one")
    if verb == "verify":
        monkeypatch.setattr(sample, "differing", lambda *_, **__: None)
    whole = read(small.secondaries["one"], small.secondary_header("one").regions["data"].offset, 4096)
    small.write_to_medium("one", 0, small.random(4096))
    small.behave(small.secondaries["one"], "s0", "error_writes")
    ran = dmsoft(verb, NAME, "one")
    assert ran.code == 6, ran
    small.behave(small.secondaries["one"], "s0")
    small.write_to_medium("one", 0, whole)
    record = small.primary_header().member("one")
    assert record is not None and record.sync.doubt
    assert small.secondary_header("one").sync.token == record.token_confirmed  # it is still known to be ours
    for copy in header.read(small.primary).copies:
        known = copy.payload.member("one") if isinstance(copy.payload, Primary) else None
        assert known is not None and known.sync.doubt, "both copies have it"
    parts = {part["label"]: part["kind"] for part in small.resync()["secondaries"]}
    assert parts == {"one": "compare", "two": "incremental" if cut_off else "none"}
    small.equal()


@pytest.mark.slow
def test_a_primary_that_cannot_be_read_everywhere(small: Rig) -> None:
    """Neither in the passes nor in the final barrier is a block taken for copied that could not be read."""
    small.write(5, 6)
    data = small.primary_header().regions["data"].offset
    small.behave(small.primary, "p0", bad=((data + 6 * MIB) // 512, 8))
    for blocks in ((), range(10, 20)):
        small.write(*blocks)
        before = small.secondary_header("one").sync.era
        ran = dmsoft("resync", NAME)
        assert ran.code == 6 and "could not be read" in ran.err, ran
        assert not suspended()
        assert small.secondary_header("one").sync.era == before
        assert {5, 6} <= small.stale("one")
    small.behave(small.primary, "p0")
    small.superset("one")
    assert small.resync()["kind"] == "incremental"
    small.equal()


def test_a_primary_whose_flush_fails(small: Rig) -> None:
    """What the primary may lose in a power cut is not promised to any secondary."""
    before = small.secondary_header("one").sync.era
    small.write(7)
    small.behave(small.primary, "p0", "error_writes")
    ran = dmsoft("resync", NAME)
    assert ran.code == 6, ran
    assert small.secondary_header("one").sync.era == before and not suspended()
    small.behave(small.primary, "p0")
    ok("stop", NAME)
    ok("start", NAME)
    small.superset("one")
    small.resync()
    small.equal()
