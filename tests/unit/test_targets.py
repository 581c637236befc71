# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets print what the kernel takes and read what it prints; status lines of real kernels."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.dm.device import Device
from dmsoft.dm.failures import TargetTextError
from dmsoft.dm.status import DelayStatus, EraStatus, RaidStatus, StripedStatus, WriteCacheStatus, parse_status
from dmsoft.dm.targets import (
    Delay,
    DelayClass,
    Era,
    Error,
    Linear,
    Raid1,
    RaidLeg,
    Segment,
    Striped,
    Target,
    WriteCache,
    WriteCacheOptions,
    Zero,
    format_table,
    parse_table,
    parse_target,
    single,
)
from dmsoft.units import Sectors

numbers = st.integers(0, (1 << 63) - 1)
sectors = numbers.map(Sectors)
devices = st.one_of(
    st.builds("{}:{}".format, st.integers(0, 4095), st.integers(0, 1 << 20)),
    st.from_regex(r"/dev/mapper/[A-Za-z0-9_.+-]{1,20}", fullmatch=True),
)
blocks = st.integers(1, 1 << 28).map(lambda n: Sectors(n * 8))
maybe_numbers = st.none() | numbers
delays = st.builds(DelayClass, devices, sectors, st.integers(0, 1 << 31))
options = st.builds(
    WriteCacheOptions,
    *[maybe_numbers] * 7,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    maybe_numbers,
)


@st.composite
def raids(draw: st.DrawFn) -> Raid1:
    legs = draw(
        st.lists(
            st.builds(RaidLeg, devices, devices)
            | st.builds(RaidLeg, st.none(), devices)
            | st.just(RaidLeg(None, None)),
            min_size=1,
            max_size=5,
        )
    )
    indexes = st.lists(st.integers(0, len(legs) - 1), unique=True, max_size=len(legs) - 1)
    sync = draw(st.sampled_from(["sync", "nosync", None]))
    return Raid1(
        tuple(legs),
        write_mostly=tuple(draw(indexes)),
        max_write_behind=draw(maybe_numbers),
        region=draw(st.none() | sectors),
        sync=sync,
        rebuild=() if sync else tuple(draw(indexes)),
    )


delay_targets = st.one_of(
    st.builds(Delay, devices, sectors, numbers),
    st.builds(Delay, devices, sectors, numbers, delays),
    st.builds(Delay, devices, sectors, numbers, delays, delays),
)
targets = st.one_of(
    st.builds(Linear, devices, sectors),
    st.builds(Striped, devices, sectors, blocks),
    st.builds(Era, devices, devices, blocks),
    raids(),
    st.builds(WriteCache, devices, devices, st.sampled_from([512, 1024, 4096]), options, st.sampled_from(["s", "p"])),
    delay_targets,
    st.just(Error()),
    st.just(Zero()),
)


@given(targets)
def test_parse_reads_what_params_prints(target: Target) -> None:
    assert parse_target(target.kind, target.params()) == target
    assert target.shows_as(target)


@given(st.lists(st.builds(Segment, sectors, st.integers(1, 1 << 62).map(Sectors), targets), max_size=4))
def test_tables_round_trip_as_text(segments: list[Segment]) -> None:
    assert parse_table(format_table(tuple(segments))) == tuple(segments)


@given(
    st.sampled_from(["linear", "striped", "era", "raid", "writecache", "delay", "error", "zero"]), st.text(max_size=60)
)
def test_text_is_parsed_or_refused_with_our_error(kind: str, text: str) -> None:
    try:
        target = parse_target(kind, text)
    except TargetTextError:
        return
    assert parse_target(kind, target.params()) == target


@given(st.sampled_from(["era", "raid", "writecache", "delay", "striped"]), st.text(max_size=60))
def test_status_text_is_parsed_or_refused_with_our_error(kind: str, text: str) -> None:
    with contextlib.suppress(TargetTextError):
        assert parse_status(kind, text) is not None


# `dmsetup table` of Linux 5.10.223, 6.1.192, 6.12.107 and 7.2.13, the same on all of them.
LEGS = (RaidLeg("7:0", "7:1"), RaidLeg("7:2", "7:3"))
B = DelayClass("7:1", Sectors(16), 2)
C = DelayClass("7:2", Sectors(24), 3)
PRINTED = [
    ("0 2048 linear 7:0 8", Linear("7:0", Sectors(8))),
    ("0 2048 error", Error()),
    ("0 2048 zero", Zero()),
    ("0 2048 delay 7:0 8 1", Delay("7:0", Sectors(8), 1)),
    ("0 2048 delay 7:0 8 1 7:1 16 2", Delay("7:0", Sectors(8), 1, B)),
    ("0 2048 delay 7:0 8 1 7:1 16 2 7:2 24 3", Delay("7:0", Sectors(8), 1, B, C)),
    ("0 32768 era 7:0 7:1 128", Era("7:0", "7:1", Sectors(128))),
    (
        # Loaded with max_write_behind 256.
        "0 32768 raid raid1 8 0 nosync write_mostly 0 max_write_behind 128 region_size 2048 2 7:0 7:1 7:2 7:3",
        Raid1(LEGS, write_mostly=(0,), max_write_behind=128, region=Sectors(2048), sync="nosync"),
    ),
    (
        "0 32768 raid raid1 3 0 region_size 2048 2 7:0 7:1 - -",
        Raid1((LEGS[0], RaidLeg(None, None)), region=Sectors(2048)),
    ),
    (
        # After the rebuild was done.
        "0 32768 raid raid1 5 0 rebuild 1 region_size 2048 2 7:0 7:1 7:2 7:3",
        Raid1(LEGS, rebuild=(1,), region=Sectors(2048)),
    ),
    ("0 32768 writecache s 7:1 7:3 4096 0", WriteCache("7:1", "7:3", 4096)),
    (
        "0 32768 writecache s 7:1 7:3 512 5 high_watermark 60 max_age 1000 cleaner",
        WriteCache("7:1", "7:3", 512, WriteCacheOptions(high_watermark=60, max_age=1000, cleaner=True)),
    ),
]


@pytest.mark.parametrize(("line", "target"), PRINTED)
def test_lines_of_the_kernel(line: str, target: Target) -> None:
    segment = Segment.parse(line)
    assert segment.target == target
    # The order of raid parameters is the kernel's own.
    assert sorted(str(segment).split()) == sorted(line.split())


def test_a_segment_is_a_dmsetup_line() -> None:
    table = single(Sectors(131072), Linear("8:0", Sectors(2048)))
    assert format_table(table) == "0 131072 linear 8:0 2048"


RAID = Raid1(
    (RaidLeg("254:1", "254:2"), RaidLeg("254:3", "254:4")),
    write_mostly=(1,),
    max_write_behind=256,
    region=Sectors(2048),
    sync="nosync",
)


def test_a_raid_table_counts_its_words() -> None:
    assert RAID.params() == (
        "raid1 8 0 nosync max_write_behind 256 region_size 2048 write_mostly 1 2 254:1 254:2 254:3 254:4"
    )


def test_a_missing_leg_is_printed_as_dashes() -> None:
    target = Raid1((RaidLeg("254:1", "254:2"), RaidLeg(None, None)), region=Sectors(2048))
    assert target.params() == "raid1 3 0 region_size 2048 2 254:1 254:2 - -"


def test_the_kernel_shows_half_the_write_behind_and_keeps_rebuild() -> None:
    shown = parse_target(
        "raid", "raid1 7 0 max_write_behind 128 region_size 2048 write_mostly 1 2 254:1 254:2 254:3 254:4"
    )
    assert isinstance(shown, Raid1)
    assert shown.max_write_behind == 128
    assert RAID.shows_as(shown)
    swapped = parse_target(
        "raid", "raid1 7 0 max_write_behind 128 region_size 2048 write_mostly 1 2 254:3 254:4 254:1 254:2"
    )
    assert not RAID.shows_as(swapped)
    assert not RAID.shows_as(Linear("254:2", Sectors(0)))


def test_a_dropped_leg_has_no_position_any_more() -> None:
    """As 6.1 shows it once md has let go of a write-mostly leg that failed."""
    shown = parse_target(
        "raid", "raid1 8 0 nosync write_mostly -1 max_write_behind 256 region_size 8192 2 253:4 253:2 253:5 253:6"
    )
    assert isinstance(shown, Raid1)
    assert (shown.write_mostly, [leg.data for leg in shown.legs]) == ((), ["253:2", "253:6"])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("linear", "8:0"),
        ("linear", "8:0 -1"),
        ("linear", "8:0 0x10"),
        ("linear", "8:0 1 2"),
        ("era", "8:0 8:1 12"),
        ("era", "8:0 8:1 0"),
        ("raid", "raid5_la 1 0 1 8:0 8:1"),
        ("raid", "raid1 2 0 1 8:0 8:1"),
        ("raid", "raid1 1 0 2 8:0 8:1"),
        ("raid", "raid1 3 0 write_mostly 2 2 8:0 8:1 8:2 8:3"),
        ("raid", "raid1 3 0 sync nosync 1 8:0 8:1"),
        ("raid", "raid1 1 0 1 8:0 -"),
        ("writecache", "x 8:0 8:1 4096 0"),
        ("writecache", "s 8:0 8:1 4096 1"),
        ("writecache", "s 8:0 8:1 4096 2 no_such 1"),
        ("writecache", "s 8:0 8:1 1000 0"),
        ("delay", "8:0 0"),
        ("delay", "8:0 0 1 8:0"),
        ("error", "1"),
        ("thin-pool", "1 2 3"),
    ],
)
def test_text_that_is_no_table_of_ours(kind: str, text: str) -> None:
    with pytest.raises(TargetTextError):
        parse_target(kind, text)


def test_raid_refuses_what_the_kernel_refuses() -> None:
    leg = RaidLeg("8:0", "8:1")
    for build in (
        lambda: Raid1(()),
        lambda: Raid1((leg,), write_mostly=(0,)),
        lambda: Raid1((leg, leg), sync="nosync", rebuild=(1,)),
        lambda: RaidLeg("8:0", None),
    ):
        with pytest.raises(ValueError, match=r"."):
            build()


def test_era_status() -> None:
    assert EraStatus.parse("8 19/65536 2 -") == EraStatus(Sectors(8), 19, 65536, 2)
    assert EraStatus.parse("8 12/4096 2 20").snapshot == 20
    assert EraStatus.parse("Error") == EraStatus(failed=True)
    assert not EraStatus.parse("8 19/65536 2 -").failed


def test_raid_status() -> None:
    status = RaidStatus.parse("raid1 2 AA 262144/262144 idle 0 0 -")
    assert status == RaidStatus("raid1", 2, "AA", Sectors(262144), Sectors(262144), "idle", 0, Sectors(0), "-")
    assert RaidStatus.parse("raid1 2 A- 32768/32768 idle 0 0 -").health == "A-"


def test_writecache_status_of_two_kernels() -> None:
    new = WriteCacheStatus.parse("0 4080 4078 0 336 4 2 0 0 0 2 0 0 0")
    assert (new.error, new.dirty, new.writeback) == (0, 2, 0)
    assert (new.reads, new.read_hits, new.writes, new.write_allocations, new.discards) == (336, 4, 2, 2, 0)
    old = WriteCacheStatus.parse("0 4080 4078 0")
    assert (old.error, old.dirty, old.writes, old.discards) == (0, 2, None, None)
    assert WriteCacheStatus.parse("-5 4080 4080 0").error == -5


def test_delay_status() -> None:
    assert DelayStatus.parse("0 17 1") == DelayStatus(0, 17, 1)


def test_striped_status() -> None:
    assert StripedStatus.parse("1 253:0 1 A") == StripedStatus(("253:0",), "A")
    assert StripedStatus.parse("1 253:0 1 D").failed and not StripedStatus.parse("1 253:0 1 A").failed
    assert StripedStatus.parse("2 8:0 8:16 1 AD").failed


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("era", ""),
        ("era", "8 19 2 -"),
        ("era", "8 19/x 2 -"),
        ("raid", "raid1 2 A 0/1 idle 0"),
        ("raid", "raid1 2 AX 0/1 idle 0"),
        ("writecache", "0 1"),
        ("delay", "0 1"),
        ("striped", "1 253:0 1"),
        ("striped", "1 253:0 1 AA"),
        ("striped", "1 253:0 2 A"),
    ],
)
def test_status_text_that_is_refused(kind: str, text: str) -> None:
    with pytest.raises(TargetTextError):
        parse_status(kind, text)


def test_targets_without_a_status() -> None:
    assert parse_status("linear", "") is None


@pytest.mark.parametrize(
    ("name", "uuid"),
    [
        ("", "DMSOFT-x"),
        ("a/b", "DMSOFT-x"),
        ("a b", "DMSOFT-x"),
        ("..", "DMSOFT-x"),
        ("control", "DMSOFT-x"),
        ("a" * 128, "DMSOFT-x"),
        ("ü", "DMSOFT-x"),
        ("a\n", "DMSOFT-x"),
        ("a", "LVM-x"),
        ("a", ""),
        ("a", "DMSOFT-" + "x" * 122),
        ("a", "DMSOFT-x y"),
    ],
)
def test_names_and_uuids_are_checked(name: str, uuid: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        Device(name, uuid)
