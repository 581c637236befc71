# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes and durations: what is printed reads back, and what does not read is a usage error."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.errors import UsageError
from dmsoft.units import (
    GIB,
    KIB,
    MIB,
    SECTOR,
    align_down,
    align_up,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    sectors,
)

UNITS = "KMGTPE"
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("4k", 4 * KIB),
        ("64K", 64 * KIB),
        ("64KiB", 64 * KIB),
        ("64kb", 64 * KIB),
        (" 1 MiB ", MIB),
        ("10G", 10 * GIB),
        ("1E", 1 << 60),
    ],
)
def test_sizes_that_people_write(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "K", "-1K", "+1", "1.5M", "1e3", "0x10", "1 0K", "1KK", "1iB", "1Z", "1M 1K", "1\u212a", "\u0661K"]
)
def test_text_that_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        parse_size(text)
    assert caught.value.hint is not None and caught.value.exit_code == 2


@given(st.text())
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except UsageError as err:
        assert text in err.message


@given(st.text())
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    try:
        assert parse_duration(text) >= 0
    except UsageError as err:
        assert text in err.message


@pytest.mark.parametrize("parse", [parse_size, parse_duration])
def test_more_digits_than_any_disk_or_clock_has(parse: type) -> None:
    with pytest.raises(UsageError):
        parse("9" * 5000)


@given(st.integers(0, (1 << 63) - 1))
def test_what_is_printed_is_near_and_reads_back(size: int) -> None:
    text = format_size(size)
    match = re.fullmatch(r"(\d{1,4}(?:\.\d{1,2})?) (?:B|([KMGTPE])iB)", text)
    assert match is not None
    power = 1024 ** (UNITS.index(match[2]) + 1) if match[2] else 1
    near = float(match[1]) * power
    assert abs(near - size) <= 0.005 * size
    if "." in match[1]:
        assert len(match[1].replace(".", "")) <= 3 and match[1][-1] != "0"
    else:
        assert parse_size(text) == near


@given(st.integers(0, 1023), st.sampled_from(range(7)))
def test_whole_numbers_of_a_unit_are_exact(number: int, power: int) -> None:
    assert parse_size(format_size(number << 10 * power)) == number << 10 * power


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 62))
def test_a_smaller_size_never_prints_as_a_larger_one(one: int, two: int) -> None:
    low, high = sorted((one, two))
    assert _value(format_size(low)) <= _value(format_size(high))


def _value(text: str) -> float:
    number, unit = text.split()
    return float(number) * 1024 ** ("B" + UNITS).index(unit[0])


@pytest.mark.parametrize(
    ("size", "text"),
    [(1023, "1023 B"), (1536, "1.5 KiB"), (1023 * KIB, "1023 KiB"), (MIB - 1, "1 MiB"), (100 * GIB, "100 GiB")],
)
def test_sizes_as_they_are_printed(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 10**9), st.sampled_from(sorted(SECONDS)), st.booleans())
def test_durations(number: int, unit: str, upper: bool) -> None:
    text = f"{number}{unit}"
    assert parse_duration(text.upper() if upper else text) == pytest.approx(number * SECONDS[unit])


def test_a_bare_number_is_seconds() -> None:
    assert parse_duration("90") == 90


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.42, "0.4 s"),
        (12, "12 s"),
        (119, "119 s"),
        (119.6, "2 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (12000, "3 h 20 min"),
        (86400 * 6 + 4 * 3600, "6 d 4 h"),
        (86400 * 7, "7 d"),
    ],
)
def test_durations_as_a_person_says_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(-(1 << 40), 1 << 40), st.integers(1, 1 << 30))
def test_alignment(value: int, unit: int) -> None:
    down, up = align_down(value, unit), align_up(value, unit)
    assert down % unit == 0 == up % unit
    assert down <= value <= up and value - down < unit and up - value < unit


@given(st.integers(0, 1 << 60))
def test_sectors_are_whole(size: int) -> None:
    if size % SECTOR:
        with pytest.raises(ValueError, match="not whole sectors"):
            sectors(size)
    else:
        assert sectors(size) * SECTOR == size
