# SPDX-License-Identifier: GPL-2.0-or-later
"""What `create` and `add` refuse before they look at any device: nothing reaches a header that cannot be read again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.errors import MetadataError, NotFoundError, UsageError
from dmsoft.member import prefix
from dmsoft.mirror.create import MirrorSpec, SecondarySpec, create, secondary_headers
from dmsoft.mirror.plan import MAX_COUPLED
from dmsoft.units import GIB, KIB
from tests.mirror_model import primary, record, secondary

NOWHERE = "/nonexistent/disk"


def spec(**changes: object) -> MirrorSpec:
    values = {"name": "m", "primary": NOWHERE, "secondaries": (SecondarySpec("s1", NOWHERE),)} | changes
    return MirrorSpec(**values)


def test_a_sound_spec_gets_as_far_as_the_devices() -> None:
    with pytest.raises(NotFoundError, match=NOWHERE):
        create(spec())


@pytest.mark.parametrize("size", [0, 1, 512, 4095, 4097, 5000, 3 * GIB, 2 * GIB + 4 * KIB, -4096])
def test_block_sizes_that_dm_era_or_the_header_cannot_take(size: int) -> None:
    with pytest.raises(UsageError, match="cannot be tracked") as caught:
        create(spec(block_bytes=size))
    assert caught.value.hint


@pytest.mark.parametrize("size", [4 * KIB, 12 * KIB, 2 * GIB])
def test_block_sizes_at_the_limits(size: int) -> None:
    with pytest.raises(NotFoundError):
        create(spec(block_bytes=size))


@pytest.mark.parametrize("seconds", [-1.0, 1.1e9, float("inf"), float("nan")])
def test_intervals_out_of_range(seconds: float) -> None:
    with pytest.raises(UsageError, match="interval"):
        create(spec(interval=seconds))
    with pytest.raises(UsageError, match="interval"):
        secondary_headers(SecondarySpec("s1", NOWHERE, interval=seconds), primary(), {})


def test_no_secondary_no_mirror() -> None:
    with pytest.raises(UsageError, match="at least one"):
        create(spec(secondaries=()))


def test_labels_are_unique_and_few() -> None:
    with pytest.raises(UsageError, match="same label"):
        create(spec(secondaries=(SecondarySpec("a", "/x"), SecondarySpec("a", "/y"))))
    with pytest.raises(UsageError, match="at most 16"):
        create(spec(secondaries=tuple(SecondarySpec(f"s{n}", f"/{n}") for n in range(17))))
    with pytest.raises(UsageError, match="for itself"):
        create(spec(secondaries=(SecondarySpec("lower", "/x"),)))


def test_more_write_behind_secondaries_than_raid_slots() -> None:
    """The ninth leg would use the slots of the other set, which an old raid1 may still write to."""
    full = primary(*(record(f"s{n}", "write-behind") for n in range(MAX_COUPLED)), record("p"))
    with pytest.raises(UsageError, match="at most 7"):
        secondary_headers(SecondarySpec("more", NOWHERE, "write-behind"), full, {})
    with pytest.raises(KeyError):  # gets as far as its device
        secondary_headers(SecondarySpec("more", NOWHERE, "periodic"), full, {})


@given(st.floats(1.0000001e9, allow_nan=False) | st.floats(max_value=-1e-9, allow_nan=False))
def test_a_header_that_could_not_be_read_again_is_never_built(seconds: float) -> None:
    bad = primary().replace(interval_seconds=seconds)
    with pytest.raises(MetadataError):
        prefix.build(bad, slot=0, sequence=1, key=None)


def test_a_reason_that_is_too_long_never_reaches_a_disk() -> None:
    mine = secondary(primary(), "s1")
    with pytest.raises(MetadataError):
        prefix.build(mine.replace(sync=mine.sync.replace(doubt="x" * 201)), slot=0, sequence=1, key=None)
