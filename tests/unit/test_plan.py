# SPDX-License-Identifier: GPL-2.0-or-later
"""The planner: the exact tables of every stack, sector by sector."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.dm.targets import Linear, Raid1
from dmsoft.errors import UsageError
from dmsoft.member import regions
from dmsoft.member.payload import Via
from dmsoft.mirror.names import SLOTS_PER_SET
from dmsoft.mirror.plan import (
    MAX_COUPLED,
    Placed,
    Wanted,
    base,
    bottom_up,
    data_sectors,
    leg,
    leg_nodes,
    lower_linear,
    names_of,
    raid,
    untracked_top,
)
from dmsoft.units import KIB, MIB, SECTOR
from tests.mirror_model import SIZE, cache, metadata, placed_primary, primary, record, secondary, via_cache

# A primary of 1 GiB: header 1 MiB, metadata 4 MiB, slots 4 MiB, then data to the end.
RESERVE = 9 * MIB // SECTOR
DATA = SIZE // SECTOR - RESERVE


def lines(wanted: list[Wanted]) -> list[str]:
    return [line for each in wanted for line in each.lines()]


def test_base_stack_of_a_periodic_mirror() -> None:
    assert lines(base(placed_primary(record("s1")), None)) == [
        "m-metadata-disk: 0 8192 linear 8:0 2048",
        "m-metadata-watch: 0 8192 striped 1 8 /dev/mapper/m-metadata-disk 0",
        "m-metadata-watch: 8192 8 error",
        "m-metadata: 0 8192 linear /dev/mapper/m-metadata-watch 0",
        f"m-lower: 0 {DATA} linear 8:0 {RESERVE}",
        f"m: 0 {DATA} era /dev/mapper/m-metadata /dev/mapper/m-lower 2048",
    ]


@pytest.mark.parametrize("block", [4 * KIB, 64 * KIB, 1536 * KIB, 4 * MIB])
def test_block_size_is_the_last_word_of_the_top(block: int) -> None:
    wanted = base(placed_primary(block_bytes=block), None)
    assert lines(wanted)[-1].endswith(f" {block // SECTOR}")
    assert wanted[-1].table[0].length == data_sectors(primary(block_bytes=block))


def test_metadata_on_a_device_of_its_own() -> None:
    mine = placed_primary(record("s1"), separate=True)
    own = metadata("259:3", blocks=regions.nr_blocks(mine.payload.regions["data"].length, MIB))
    disk, watch, _, top, *rest = lines(base(mine, own))
    assert disk == f"m-metadata-disk: 0 {63 * MIB // SECTOR} linear 259:3 2048"
    assert watch == f"m-metadata-watch: 0 {63 * MIB // SECTOR} striped 1 8 /dev/mapper/m-metadata-disk 0"
    assert top == f"m-metadata: 0 {63 * MIB // SECTOR} linear /dev/mapper/m-metadata-watch 0"
    assert rest == lines(base(placed_primary(record("s1")), None))[4:]


def test_the_data_lies_where_it_lies_wherever_the_metadata_is() -> None:
    inside, outside = primary(), primary(separate=True)
    assert inside.regions["data"] == outside.regions["data"]
    assert "metadata" not in outside.regions


@pytest.mark.parametrize("mode", ["periodic", "write-behind"])
def test_direct_leg(mode: str) -> None:
    mine = primary(record("s1", mode))
    placed = Placed(secondary(mine, "s1"), "8:16")
    assert lines(leg(mine, mine.members[0], placed, None, 512)) == [f"m-s1: 0 {DATA} linear 8:16 {RESERVE}"]


def test_delay_leg_holds_back_writes_alone() -> None:
    mine = primary(record("s1", "write-behind", Via("delay", delay_ms=250)))
    placed = Placed(secondary(mine, "s1"), "8:16")
    assert lines(leg(mine, mine.members[0], placed, None, 512)) == [
        f"m-s1: 0 {DATA} delay 8:16 {RESERVE} 0 8:16 {RESERVE} 250 8:16 {RESERVE} 0"
    ]


@pytest.mark.parametrize("block", [512, 4096])
def test_writecache_leg_takes_the_blocks_of_the_top(block: int) -> None:
    mine = primary(record("s1", "write-behind", via_cache("s1")))
    placed = Placed(secondary(mine, "s1"), "8:16")
    assert lines(leg(mine, mine.members[0], placed, cache("s1", "259:1"), block)) == [
        f"m-s1-data: 0 {DATA} linear 8:16 {RESERVE}",
        f"m-s1-cache: 0 {63 * MIB // SECTOR} linear 259:1 2048",
        f"m-s1: 0 {DATA} writecache s /dev/mapper/m-s1-data /dev/mapper/m-s1-cache {block} 0",
    ]


def test_writecache_leg_without_its_cache_claims_the_disk_and_no_more() -> None:
    mine = primary(record("s1", "write-behind", via_cache("s1")))
    placed = Placed(secondary(mine, "s1"), "8:16")
    assert lines(leg(mine, mine.members[0], placed, None, 512)) == [f"m-s1-data: 0 {DATA} linear 8:16 {RESERVE}"]


def test_a_periodic_leg_never_runs_through_a_cache() -> None:
    mine = primary(record("s1", "periodic", via_cache("s1")))
    placed = Placed(secondary(mine, "s1"), "8:16")
    (only,) = leg(mine, mine.members[0], placed, cache("s1", "259:1"), 512)
    assert isinstance(only.table[0].target, Linear)


def test_leg_nodes_are_those_that_a_leg_can_have() -> None:
    mine = primary(record("s1", "write-behind", via_cache("s1")))
    wanted = leg(mine, mine.members[0], Placed(secondary(mine, "s1"), "8:16"), cache("s1", "259:1"), 512)
    assert [each.node for each in wanted] == leg_nodes(names_of(mine), "s1")


def test_raid_of_one_secondary() -> None:
    slots = RESERVE - 4 * MIB // SECTOR
    assert lines(raid(placed_primary(record("s1", "write-behind")), ["s1"], 0)) == [
        f"m-slot0: 0 512 linear 8:0 {slots}",
        f"m-slot1: 0 512 linear 8:0 {slots + 512}",
        f"m-primary: 0 {DATA} linear 8:0 {RESERVE}",
        f"m-lower: 0 {DATA} raid raid1 8 0 nosync max_write_behind 512 region_size 8192 write_mostly 0 2 "
        "/dev/mapper/m-slot0 /dev/mapper/m-s1 /dev/mapper/m-slot1 /dev/mapper/m-primary",
    ]


def test_raid_of_several_secondaries_has_the_primary_last() -> None:
    labels = ["b", "a", "c"]
    mine = placed_primary(*(record(label, "write-behind") for label in labels))
    wanted = raid(mine, labels, 1)
    target = wanted[-1].table[0].target
    assert isinstance(target, Raid1)
    assert [each.data for each in target.legs] == [f"/dev/mapper/m-{name}" for name in (*labels, "primary")]
    assert [each.metadata for each in target.legs] == [f"/dev/mapper/m-slot{n}" for n in (8, 9, 10, 11)]
    assert target.write_mostly == (0, 1, 2) and target.sync == "nosync" and target.rebuild == ()
    assert [each.node for each in wanted[:-2]] == [names_of(mine.payload).slot(n) for n in (8, 9, 10, 11)]


@pytest.mark.parametrize("count", range(1, MAX_COUPLED + 1))
def test_slot_sets_never_meet_and_stay_in_their_region(count: int) -> None:
    labels = [f"s{n}" for n in range(count)]
    mine = placed_primary(*(record(label, "write-behind") for label in labels))
    places = []
    for slot_set in (0, 1):
        for each in raid(mine, labels, slot_set)[:-2]:
            (segment,) = each.table
            assert isinstance(segment.target, Linear) and segment.target.device == mine.number
            places.append((segment.target.offset * SECTOR, (segment.target.offset + segment.length) * SECTOR))
    region = mine.payload.regions["slots"]
    places.sort()
    assert len(places) == 2 * (count + 1)
    assert places[0][0] >= region.offset and places[-1][1] <= region.end
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(places))


def test_more_coupled_secondaries_than_slots_are_refused() -> None:
    labels = [f"s{n}" for n in range(MAX_COUPLED + 1)]
    mine = placed_primary(*(record(label, "write-behind") for label in labels))
    assert MAX_COUPLED == SLOTS_PER_SET - 1
    with pytest.raises(UsageError, match="at most 7"):
        raid(mine, labels, 0)


def test_everything_that_mirrors_the_data_is_as_long_as_the_data() -> None:
    vias = {"a": Via(), "b": Via("delay", delay_ms=5), "c": via_cache("c")}
    mine = placed_primary(*(record(label, "write-behind", via) for label, via in vias.items()))
    length = data_sectors(mine.payload)
    tops = [base(mine, None)[-1], lower_linear(mine), *raid(mine, list(vias), 0)[-2:]]
    for label in vias:
        disk = Placed(secondary(mine.payload, label), "8:16")
        tops.append(leg(mine.payload, mine.payload.member(label) or pytest.fail(), disk, cache(label, "9:1"), 512)[-1])
    assert [sum(segment.length for segment in each.table) for each in tops] == [length] * len(tops)


def test_bottom_up_each_table_names_only_what_stands_before_it() -> None:
    vias = {"a": Via(), "b": Via("delay", delay_ms=5), "c": via_cache("c")}
    mine = placed_primary(*(record(label, "write-behind", via) for label, via in vias.items()))
    stack = base(mine, None)[:3]
    for label in vias:
        disk = Placed(secondary(mine.payload, label), "8:16")
        stack += leg(mine.payload, mine.payload.member(label) or pytest.fail(), disk, cache(label, "9:1"), 512)
    stack += raid(mine, list(vias), 0) + base(mine, None)[-1:]
    known: set[str] = set()
    for each in stack:
        words = each.table[0].target.params().split()
        assert {word for word in words if word.startswith("/dev/")} <= known
        known.add(each.node.path)


@given(st.randoms(use_true_random=False))
def test_what_stands_is_sorted_bottom_up_whatever_its_labels(chance: random.Random) -> None:
    """A leg labelled ``data`` ends like what lies under a leg."""
    labels = ["data", "cache", "s1"]
    mine = placed_primary(*(record(label, "write-behind", via_cache(label)) for label in labels))
    names, stack = names_of(mine.payload), base(mine, None)
    for label in labels:
        disk = Placed(secondary(mine.payload, label), "8:16")
        stack += leg(mine.payload, mine.payload.member(label) or pytest.fail(), disk, cache(label, "9:1"), 512)
    tables = {each.node: each.table for each in [*stack, *raid(mine, labels, 0), *raid(mine, labels, 1)]}
    nodes = list(tables)
    chance.shuffle(nodes)
    known: set[str] = set()
    for node in bottom_up(names, nodes):
        words = tables[node][0].target.params().split()
        assert {word for word in words if word.startswith("/dev/")} <= known, node.name
        known.add(node.path)
    assert len(known) == len(nodes)


def test_a_lower_falls_back_to_the_same_table_it_started_with() -> None:
    mine = placed_primary(record("s1", "write-behind"))
    assert lower_linear(mine) == base(mine, None)[3]


def test_a_shield_lies_between_top_and_lower() -> None:
    mine = placed_primary(record("s1"))
    names, (*_, lower, shield, top) = names_of(mine.payload), base(mine, None, shielded=True)
    assert (lower.node, shield.node, top.node) == (names.lower, names.shield, names.top)
    assert lines([shield]) == [f"m-shield: 0 {data_sectors(mine.payload)} snapshot-origin /dev/mapper/m-lower"]
    assert " /dev/mapper/m-shield " in lines([top])[0]
    assert lines([untracked_top(mine.payload, shielded=True)])[0].endswith(" linear /dev/mapper/m-shield 0")
    assert bottom_up(names, [names.top, names.shield, names.lower]) == [names.lower, names.shield, names.top]
    under = [names.metadata_disk, names.metadata_watch, names.metadata]
    assert bottom_up(names, under[::-1]) == under
