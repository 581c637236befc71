# SPDX-License-Identifier: GPL-2.0-or-later
"""Where everything lies on a member. All offsets and lengths are bytes and multiples of 4096.

========= ====================================================================
role      regions, in this order and without gaps
========= ====================================================================
primary   header, metadata (unless on a device of its own), slots, data
secondary header, journal (unless it has none), data
cache     header, data
metadata  header, metadata
========= ====================================================================

The header is the first MiB. The slots are 16 raid slots (superblock and bitmap of one leg each), two sets of 8, so
that a new set can be zeroed while the other is in use. On primary and secondary, what is before the data region is
the reserve: one formula of the disk's size, so that a secondary of the primary's size always has room for the data,
and a secondary can become the primary where it stands. The reserve of a disk of 16 MiB is 9 MiB.
"""

import itertools
from typing import Final

from dmsoft.era.layout import BLOCK_BYTES, MAX_DATA_BLOCKS, MAX_METADATA_BLOCKS
from dmsoft.era.sizing import metadata_bytes
from dmsoft.errors import MetadataError, RefusedError
from dmsoft.member.header import HEADER_BYTES
from dmsoft.member.payload import AnyPayload, Metadata, Primary, Region, Secondary
from dmsoft.units import GIB, KIB, MIB, align_down, align_up, format_size

ALIGNMENT: Final = 4096
MINIMUM_BYTES: Final = 16 * MIB
"""The smallest primary."""

SLOTS: Final = 16
SLOTS_PER_SET: Final = 8
SLOT_BYTES: Final = 256 * KIB
MAX_RAID_REGIONS: Final = 1 << 20
"""md writes 4096 + 256 bytes and a bit for each region; this many take 132.25 KiB of a slot."""

MAX_BLOCK_BYTES: Final = 2 * GIB
MAX_METADATA_BYTES: Final = MAX_METADATA_BLOCKS * BLOCK_BYTES
"""What the kernel's metadata space map can address; more is not used."""

_USUAL_BLOCKS: Final = 1 << 24
_MIN_JOURNAL: Final = 1 * MIB
_MAX_JOURNAL: Final = 1 * GIB
_SMALL_DISK: Final = 256 * MIB
_MIN_CACHE: Final = 8 * MIB
_MIN_RAID_REGION: Final = 4 * MIB


class TooSmallError(RefusedError):
    """The device has no room for what it should hold.

    Header, tracking and data have to fit: a primary has at least 16 MiB, and a secondary at least the size of its
    primary's data plus what lies before it. A secondary as large as the primary always fits.
    """

    code = "too-small"


class TooManyBlocksError(RefusedError):
    """The disk has more blocks of that size than can be tracked.

    Choose a larger --block-size; the message says how large. Without --block-size one is chosen that fits.
    """

    code = "too-many-blocks"


def nr_blocks(data_bytes: int, block_bytes: int) -> int:
    """The era blocks of a data region; the last may be a partial one."""
    return -(-data_bytes // block_bytes)


def default_block_bytes(size_bytes: int) -> int:
    """1 MiB, and on disks above 16 TiB as many times as much, by powers of two, as keeps them within 2^24 blocks.

    What each barrier writes while everybody waits, and what every look at the record reads, grows with the blocks.
    """
    block_bytes = MIB
    while nr_blocks(size_bytes, block_bytes) > _USUAL_BLOCKS and block_bytes < MAX_BLOCK_BYTES:
        block_bytes *= 2
    return block_bytes


def default_journal_bytes(size_bytes: int) -> int:
    """1/256 of the disk from 8 MiB to 1 GiB; on disks below 256 MiB 1/32, at least 1 MiB. Whole MiB."""
    share = size_bytes // 32 if size_bytes < _SMALL_DISK else max(size_bytes // 256, 8 * MIB)
    return align_up(min(max(share, _MIN_JOURNAL), _MAX_JOURNAL), MIB)


def reserve_bytes(size_bytes: int, block_bytes: int) -> int:
    """Where data begins on a primary or secondary of that size: whole MiB, never less for a larger disk.

    The same if the era metadata is on a device of its own, so that it can come back. Raises `TooManyBlocksError`.
    """
    blocks = nr_blocks(size_bytes, block_bytes)
    if not _trackable(blocks):
        raise TooManyBlocksError(
            f"A disk of {format_size(size_bytes)} has {blocks} blocks of {format_size(block_bytes)}, "
            "which is more than dm-era can track.",
            hint=f"Choose --block-size {format_size(smallest_block_bytes(size_bytes)).replace(' ', '')} or more.",
        )
    primary = metadata_bytes(blocks) + SLOTS * SLOT_BYTES
    return align_up(HEADER_BYTES + max(primary, default_journal_bytes(size_bytes)), MIB)


def smallest_block_bytes(size_bytes: int) -> int:
    """The smallest power of two from 4096 on that is a possible block size for a disk of that size."""
    block_bytes = 4096
    while not _trackable(nr_blocks(size_bytes, block_bytes)):
        block_bytes *= 2
    return block_bytes


def raid_region_bytes(data_bytes: int) -> int:
    """The region (bitmap chunk) size for a raid1 over that data: a power of two whose bitmap fits in a slot."""
    region_bytes = _MIN_RAID_REGION
    while data_bytes > region_bytes * MAX_RAID_REGIONS:
        region_bytes *= 2
    return region_bytes


def primary_layout(size_bytes: int, block_bytes: int, *, separate_metadata: bool = False) -> dict[str, Region]:
    """The regions of a new primary. Raises `TooSmallError` and `TooManyBlocksError`.

    The metadata region takes all of the reserve that the rest leaves, so it is often larger than it has to be.
    """
    reserve = reserve_bytes(size_bytes, block_bytes)
    needed = max(MINIMUM_BYTES, reserve + MIB)
    if size_bytes < needed:
        raise _too_small("A primary", needed, size_bytes)
    slots = Region(reserve - SLOTS * SLOT_BYTES, SLOTS * SLOT_BYTES)
    regions = {"header": _header()}
    if not separate_metadata:
        regions["metadata"] = _between(HEADER_BYTES, min(slots.offset, HEADER_BYTES + MAX_METADATA_BYTES))
    return regions | {"slots": slots, "data": _between(reserve, size_bytes)}


def secondary_layout(
    size_bytes: int, *, data_bytes: int, reserve_bytes: int, journal_bytes: int | None = None
) -> dict[str, Region]:
    """The regions of a new secondary for a primary with that data and that reserve. Raises `TooSmallError`.

    Data begins where it does on the primary, unless ``journal_bytes`` (rounded up to whole MiB) needs more room. The
    journal takes all that is before it; with ``journal_bytes`` 0 there is none.
    """
    wanted = 0 if journal_bytes is None else align_up(journal_bytes, MIB)
    offset = align_up(max(reserve_bytes, HEADER_BYTES + max(wanted, _MIN_JOURNAL)), MIB)
    if size_bytes < offset + data_bytes:
        raise _too_small("A secondary of this mirror", offset + data_bytes, size_bytes)
    journal = {} if journal_bytes == 0 else {"journal": _between(HEADER_BYTES, offset)}
    return {"header": _header(), **journal, "data": Region(offset, data_bytes)}


def cache_layout(size_bytes: int) -> dict[str, Region]:
    """The regions of a writecache device. Raises `TooSmallError` below 9 MiB."""
    if size_bytes < HEADER_BYTES + _MIN_CACHE:
        raise _too_small("A cache device", HEADER_BYTES + _MIN_CACHE, size_bytes)
    return {"header": _header(), "data": _between(HEADER_BYTES, size_bytes)}


def metadata_layout(size_bytes: int, nr_blocks: int) -> dict[str, Region]:
    """The regions of a device for the era metadata of ``nr_blocks`` blocks. Raises `TooSmallError`."""
    needed = HEADER_BYTES + align_up(metadata_bytes(nr_blocks), ALIGNMENT)
    if size_bytes < needed:
        raise _too_small("A metadata device of this mirror", needed, size_bytes)
    return {
        "header": _header(),
        "metadata": _between(HEADER_BYTES, min(size_bytes, HEADER_BYTES + MAX_METADATA_BYTES)),
    }


def slot(payload: Primary, index: int) -> Region:
    """Raid slot ``index`` (0 to 7: set A, 8 to 15: set B) of a primary whose header was checked."""
    if not 0 <= index < SLOTS:
        raise ValueError(f"there is no raid slot {index}")
    return Region(payload.regions["slots"].offset + index * SLOT_BYTES, SLOT_BYTES)


def check(payload: AnyPayload, device_size_bytes: int) -> None:
    """That a header's regions are possible on a device of that size. Raises `MetadataError`.

    Call it on every header that was read, before any of its offsets is used.
    """
    regions = payload.regions
    _check_names(payload)
    for name, region in regions.items():
        if region.offset % ALIGNMENT or region.length % ALIGNMENT or region.length == 0:
            raise _bad(f"the region {name} is empty or not aligned to 4096 bytes")
        if region.end > device_size_bytes:
            raise _bad(f"the region {name} ends at byte {region.end}, and the device at byte {device_size_bytes}")
    if regions["header"] != _header():
        raise _bad("the region header is not the first MiB")
    ordered = sorted(regions.items(), key=lambda item: item[1].offset)
    for (name, region), (next_name, next_region) in itertools.pairwise(ordered):
        if region.end > next_region.offset:
            raise _bad(f"the regions {name} and {next_name} overlap")
    if isinstance(payload, Primary | Secondary):
        _check_blocks(payload, nr_blocks(regions["data"].length, payload.block_bytes))


def _check_names(payload: AnyPayload) -> None:
    match payload:
        case Primary():
            wanted = {"header", "slots", "data"} | ({"metadata"} if payload.metadata is None else set())
        case Secondary():
            wanted = {"header", "data"} | ({"journal"} & payload.regions.keys())
        case Metadata():
            wanted = {"header", "metadata"}
        case _:
            wanted = {"header", "data"}
    if payload.regions.keys() != wanted:
        missing = ", ".join(sorted(wanted - payload.regions.keys())) or "none"
        raise _bad(f"it needs the regions {', '.join(sorted(wanted))} and no other (missing: {missing})")


def _check_blocks(payload: Primary | Secondary, blocks: int) -> None:
    if blocks > MAX_DATA_BLOCKS:
        raise _bad(f"its data has {blocks} era blocks, and {MAX_DATA_BLOCKS} is the most")
    if isinstance(payload, Secondary):
        return
    if payload.regions["slots"].length < SLOTS * SLOT_BYTES:
        raise _bad("the region slots is too small for 16 raid slots")
    metadata = payload.regions.get("metadata")
    if metadata is not None and metadata.length < metadata_bytes(blocks):
        raise _bad(f"the region metadata is too small for {blocks} era blocks")


def _trackable(blocks: int) -> bool:
    # The size wanted is cut at the maximum. What is cut may be full one day, and then the primary's writes fail.
    return blocks <= MAX_DATA_BLOCKS and metadata_bytes(blocks) < MAX_METADATA_BYTES


def _header() -> Region:
    return Region(0, HEADER_BYTES)


def _between(start: int, end: int) -> Region:
    return Region(start, align_down(end - start, ALIGNMENT))


def _too_small(what: str, needed: int, present: int) -> TooSmallError:
    return TooSmallError(
        f"{what} needs {format_size(needed)} ({needed} bytes), and the device has {format_size(present)} "
        f"({present} bytes).",
        hint="Use a larger device.",
    )


def _bad(what: str) -> MetadataError:
    return MetadataError(
        f"The header's layout is not possible: {what}.", hint="Do not use this disk; see `dmsoft examine`."
    )
