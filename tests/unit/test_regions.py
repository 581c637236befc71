# SPDX-License-Identifier: GPL-2.0-or-later
"""The layout: everything fits, nothing overlaps, a secondary of the primary's size has room, hostile offsets fail."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dmsoft.era.sizing import metadata_bytes
from dmsoft.errors import MetadataError
from dmsoft.member import regions
from dmsoft.member.header import HEADER_BYTES
from dmsoft.member.payload import (
    AnyPayload,
    Cache,
    Identity,
    Metadata,
    MetadataRecord,
    Primary,
    Region,
    Secondary,
    Tracker,
)
from dmsoft.member.regions import MINIMUM_BYTES, TooManyBlocksError, TooSmallError
from dmsoft.units import GIB, KIB, MIB, align_up

TIB = 1 << 40
sizes = st.integers(MINIMUM_BYTES, 1 << 60) | st.integers(24, 60).flatmap(
    lambda bits: st.integers(-8192, 8192).map(lambda off: max((1 << bits) + off, MINIMUM_BYTES))
)
block_sizes = st.integers(0, 19).map(lambda shift: 4096 << shift) | st.integers(1, 1 << 19).map(lambda n: n * 4096)
COMMON = {
    "mirror_uuid": "a" * 32,
    "mirror_name": "m",
    "member_uuid": "b" * 32,
    "identity": Identity(1 << 30),
    "created": "2026-01-01T00:00:00Z",
}


def primary(layout: dict[str, Region], block_bytes: int, *, separate: bool = False) -> Primary:
    return Primary(
        **COMMON,
        regions=layout,
        mode="periodic",
        interval_seconds=300,
        block_bytes=block_bytes,
        tracker=Tracker("c" * 32),
        generation=("d" * 32,),
        metadata=MetadataRecord("e" * 32, Identity(1 << 30)) if separate else None,
    )


def secondary(layout: dict[str, Region], block_bytes: int) -> Secondary:
    return Secondary(**COMMON, regions=layout, label="b", block_bytes=block_bytes, generation=("d" * 32,))


def possible(size: int, block: int) -> bool:
    try:
        regions.reserve_bytes(size, block)
    except TooManyBlocksError:
        return False
    return True


@given(sizes)
def test_without_a_block_size_no_disk_has_too_many_blocks(size: int) -> None:
    block = regions.default_block_bytes(size)
    blocks = regions.nr_blocks(size, block)
    assert possible(size, block)
    # What a barrier writes, and what is read to tell what is stale, are MiB and not GiB.
    assert blocks <= 1 << 24 or block == regions.MAX_BLOCK_BYTES
    assert block == MIB or regions.nr_blocks(size, block // 2) > 1 << 24


@pytest.mark.parametrize(
    ("size", "block"),
    [(16 * MIB, MIB), (TIB, MIB), (16 * TIB, MIB), (16 * TIB + 1, 2 * MIB), (256 * TIB, 16 * MIB)],
)
def test_default_block_sizes(size: int, block: int) -> None:
    assert regions.default_block_bytes(size) == block


@given(sizes, block_sizes, st.booleans())
def test_a_primary_of_any_size(size: int, block: int, separate: bool) -> None:
    assume(possible(size, block))
    try:
        layout = regions.primary_layout(size, block, separate_metadata=separate)
    except TooSmallError:
        assert size < 64 * MIB or regions.reserve_bytes(size, block) >= size - MIB
        return
    regions.check(primary(layout, block, separate=separate), size)
    data = layout["data"]
    assert data.offset % MIB == 0 and data.length % 4096 == 0
    assert size - data.end < 4096
    assert layout["slots"].length == 16 * 256 * KIB
    blocks = regions.nr_blocks(data.length, block)
    assert (blocks - 1) * block < data.length <= blocks * block
    assert separate or layout["metadata"].length >= metadata_bytes(blocks)


@given(sizes, block_sizes, st.integers(0, 1 << 30))
def test_a_secondary_of_the_primarys_size_always_fits(size: int, block: int, more: int) -> None:
    assume(possible(size, block) and size >= regions.reserve_bytes(size, block) + MIB)
    first = regions.primary_layout(size, block)
    data = first["data"]
    layout = regions.secondary_layout(size + more, data_bytes=data.length, reserve_bytes=data.offset)
    regions.check(secondary(layout, block), size + more)
    assert layout["data"] == data
    assert layout["journal"].length >= regions.default_journal_bytes(size)
    # It can become the primary where it stands.
    assert data.offset - HEADER_BYTES - 16 * 256 * KIB >= metadata_bytes(regions.nr_blocks(data.length, block))


@given(sizes, st.integers(1, 1 << 20), block_sizes)
def test_the_reserve_never_shrinks_as_the_disk_grows(size: int, more: int, block: int) -> None:
    assume(possible(size + more, block))
    assert regions.reserve_bytes(size, block) <= regions.reserve_bytes(size + more, block)


@pytest.mark.parametrize("size", [TIB, 16 * TIB, 256 * TIB])
@pytest.mark.parametrize("block", [64 * KIB, MIB, 4 * MIB])
def test_big_disks(size: int, block: int) -> None:
    if size == 256 * TIB and block == 64 * KIB:
        with pytest.raises(TooManyBlocksError) as caught:
            regions.primary_layout(size, block)
        assert caught.value.code == "too-many-blocks" and "--block-size" in (caught.value.hint or "")
        return
    layout = regions.primary_layout(size, block)
    regions.check(primary(layout, block), size)
    assert layout["data"].offset >= GIB + MIB
    assert layout["data"].offset <= size // 256 if size == TIB else size // 1000


def test_blocks_whose_metadata_the_kernel_cannot_hold_are_refused() -> None:
    assert regions.nr_blocks(64 * TIB, 64 * KIB) < 1 << 31
    with pytest.raises(TooManyBlocksError, match="1073741824 blocks") as caught:
        regions.reserve_bytes(64 * TIB, 64 * KIB)
    assert "128KiB" in (caught.value.hint or "")
    assert possible(64 * TIB, 128 * KIB)


@pytest.mark.parametrize("mib", [16, 17, 24, 32, 64, 128, 255, 256])
def test_small_disks(mib: int) -> None:
    size = mib * MIB
    layout = regions.primary_layout(size, 64 * KIB)
    regions.check(primary(layout, 64 * KIB), size)
    assert layout["data"].length >= size * 2 // 5
    assert regions.default_journal_bytes(size) <= max(MIB, size // 31)


def test_too_small_names_both_sizes() -> None:
    with pytest.raises(TooSmallError, match=r"16 MiB .*15 MiB") as caught:
        regions.primary_layout(15 * MIB, 64 * KIB)
    assert caught.value.code == "too-small" and caught.value.exit_code == 4 and caught.value.hint
    data = regions.primary_layout(64 * MIB, 64 * KIB)["data"]
    with pytest.raises(TooSmallError, match=str(64 * MIB)):
        regions.secondary_layout(64 * MIB - 4096, data_bytes=data.length, reserve_bytes=data.offset)
    with pytest.raises(TooSmallError):
        regions.cache_layout(8 * MIB)
    with pytest.raises(TooSmallError):
        regions.metadata_layout(HEADER_BYTES + metadata_bytes(1000) - 4096, 1000)


@given(st.integers(1, 1 << 31))
def test_a_journal_of_a_given_size(journal: int) -> None:
    data = regions.primary_layout(64 * MIB, 64 * KIB)["data"]
    size = data.end + (1 << 31) + MIB
    layout = regions.secondary_layout(size, data_bytes=data.length, reserve_bytes=data.offset, journal_bytes=journal)
    regions.check(secondary(layout, 64 * KIB), size)
    assert layout["journal"].length >= journal


def test_a_secondary_without_a_journal() -> None:
    """Its data begin where they would anyway, so that it can become the primary."""
    data = regions.primary_layout(64 * MIB, 64 * KIB)["data"]
    layout = regions.secondary_layout(64 * MIB, data_bytes=data.length, reserve_bytes=data.offset, journal_bytes=0)
    assert layout == {"header": Region(0, HEADER_BYTES), "data": data}
    regions.check(secondary(layout, 64 * KIB), 64 * MIB)


@given(sizes)
def test_cache_and_metadata_devices(size: int) -> None:
    cache = Cache(**COMMON, regions=regions.cache_layout(size), label="b", secondary_uuid="f" * 32)
    regions.check(cache, size)
    metadata = Metadata(**COMMON, regions=regions.metadata_layout(size, 1000))
    regions.check(metadata, size)
    assert metadata.regions["metadata"].length >= metadata_bytes(1000)


@given(st.integers(1, 1 << 60))
def test_a_raid_bitmap_fits_in_its_slot(data_bytes: int) -> None:
    region = regions.raid_region_bytes(data_bytes)
    assert region >= 4 * MIB and region & (region - 1) == 0
    assert 4096 + 256 + align_up(align_up(data_bytes, region) // region, 8) // 8 <= regions.SLOT_BYTES - 4096
    assert region == 4 * MIB or data_bytes > (region // 2) << 20


def test_slots_tile_their_region() -> None:
    payload = primary(regions.primary_layout(64 * MIB, 64 * KIB), 64 * KIB)
    slots = [regions.slot(payload, index) for index in range(regions.SLOTS)]
    whole = payload.regions["slots"]
    assert slots[0].offset == whole.offset and slots[-1].end == whole.end
    assert all(one.end == other.offset for one, other in itertools.pairwise(slots))
    for index in (-1, 16):
        with pytest.raises(ValueError, match="no raid slot"):
            regions.slot(payload, index)


SIZE = 64 * MIB
LAYOUT = regions.primary_layout(SIZE, 64 * KIB)


@pytest.mark.parametrize(
    "changes",
    [
        {"header": Region(4096, HEADER_BYTES)},
        {"header": Region(0, HEADER_BYTES - 4096)},
        {"data": Region(LAYOUT["data"].offset, LAYOUT["data"].length + 4096)},
        {"data": Region(LAYOUT["data"].offset, 0)},
        {"data": Region(LAYOUT["data"].offset + 512, LAYOUT["data"].length - 4096)},
        {"data": Region(LAYOUT["data"].offset, LAYOUT["data"].length - 512)},
        {"data": Region(LAYOUT["data"].offset - 4096, LAYOUT["data"].length)},
        {"data": Region(0, SIZE)},
        {"data": Region((1 << 63) - 4096, (1 << 63) - 4096)},
        {"slots": Region(LAYOUT["slots"].offset, LAYOUT["slots"].length - 4096)},
        {"slots": LAYOUT["metadata"]},
        {"metadata": Region(HEADER_BYTES, 4096)},
        {"metadata": Region(HEADER_BYTES - 4096, LAYOUT["metadata"].length)},
        {"data": None},
        {"slots": None},
        {"metadata": None},
        {"header": None},
        {"journal": Region(HEADER_BYTES, 4096)},
    ],
)
def test_hostile_layouts_are_refused(changes: dict[str, Region | None]) -> None:
    layout = {name: region for name, region in (LAYOUT | changes).items() if region is not None}
    with pytest.raises(MetadataError) as caught:
        regions.check(primary(layout, 64 * KIB), SIZE)
    assert caught.value.hint


def test_other_impossible_headers_are_refused() -> None:
    regions.check(primary(LAYOUT, 64 * KIB), SIZE)
    hostile: list[tuple[AnyPayload, int]] = [
        (primary(LAYOUT, 64 * KIB), SIZE - MIB),
        (primary(LAYOUT, 64 * KIB, separate=True), SIZE),
        (secondary(LAYOUT, 64 * KIB), SIZE),
        (Metadata(**COMMON, regions={"header": LAYOUT["header"]}), SIZE),
        (Cache(**COMMON, regions={}, label="b", secondary_uuid="f" * 32), SIZE),
    ]
    huge = {"header": LAYOUT["header"], "journal": LAYOUT["metadata"], "data": Region(GIB, 1 << 50)}
    hostile.append((secondary(huge, 4096), 1 << 60))
    for payload, size in hostile:
        with pytest.raises(MetadataError):
            regions.check(payload, size)


@given(
    st.dictionaries(
        st.sampled_from(["header", "metadata", "slots", "data", "journal", "x"]),
        st.builds(Region, st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 63) - 1)),
        max_size=6,
    ),
    st.integers(0, 1 << 63),
)
def test_any_layout_is_accepted_whole_or_refused(layout: dict[str, Region], size: int) -> None:
    with pytest.raises(MetadataError):
        regions.check(primary(LAYOUT | layout | {"x": Region(0, 0)}, 64 * KIB), size)
    try:
        regions.check(secondary(layout, 64 * KIB), size)
    except MetadataError:
        return
    assert all(region.end <= size for region in layout.values())
