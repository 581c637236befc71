# SPDX-License-Identifier: GPL-2.0-or-later
"""The header of a member: two copies in the first MiB, written so that one of them is always whole.

Copy 0 is at byte 0 and copy 1 at byte 512 KiB; `dmsoft.member.prefix` has the bytes of one copy. The valid copy
with the higher sequence number is the header. Sequence numbers never repeat on a disk, so no order of our own
writes, and no power cut in them, gives two valid copies with the same number.

- A promise granted (`write_granted`) replaces the copy that is not the header; the other stays as it was.
- A promise withdrawn (`write_withdrawn`) replaces both, the one that is not the header first, a flush after each.
  Call it before acting, even if the header that was read already says so: an earlier withdrawal may have reached
  one copy alone, or only the disk's cache.
- `write_first` makes a member, `wipe` ends one; a power cut in them leaves the old member, the new one or none.

The writers take a descriptor that the gate opened O_RDWR | O_DIRECT, or a `Disk`. A write counts when it was
written, flushed and read back without an error. Offsets and lengths are bytes.
"""

import errno
import os
from dataclasses import dataclass
from typing import Final

from dmsoft.errors import DeviceError, MetadataError, NotFoundError
from dmsoft.member import disk as disks
from dmsoft.member import prefix as prefixes
from dmsoft.member.disk import Disk, open_for_read
from dmsoft.member.payload import AnyPayload
from dmsoft.member.prefix import PREFIX_BYTES, Copy, Key
from dmsoft.units import KIB, MIB, align_up

__all__ = [
    "HEADER_BYTES",
    "SLOT_BYTES",
    "Copy",
    "Header",
    "HeaderBadError",
    "HeaderNewerError",
    "NoHeaderError",
    "Scan",
    "open_for_read",
    "read",
    "require",
    "surroundings",
    "wipe",
    "write_first",
    "write_granted",
    "write_withdrawn",
]

SLOT_BYTES: Final = 512 * KIB
HEADER_BYTES: Final = 1 * MIB

Source = str | os.PathLike[str] | int | Disk

_MEDIUM_ERRORS = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO})
_ATTEMPTS: Final = 4


class NoHeaderError(NotFoundError):
    """The device is no member of a mirror.

    It never was one, its header was wiped, or it is another disk than you think. `dmsoft devices` says of each device
    what it is.
    """

    code = "no-header"


class HeaderBadError(MetadataError):
    """Both copies of the dmsoft header on the device are unusable.

    Nothing is written to it. If it is a secondary, remove it from the mirror, zero its first MiB and add it again. If
    it is the primary, its data may well be whole: restore the first MiB from a backup, and write nothing to the disk
    before.
    """

    code = "header-bad"


class HeaderNewerError(MetadataError):
    """The header was written by a newer dmsoft.

    This one does not know its format and leaves the disk alone. Update dmsoft.
    """

    code = "header-newer"


@dataclass(frozen=True, slots=True)
class Header:
    """The header that counts. ``verified`` is None when no key was given, else whether its mac is of that key."""

    sequence: int
    payload: AnyPayload
    verified: bool | None


@dataclass(frozen=True, slots=True)
class Scan:
    """What is in a header region. ``is_member``: a dmsoft header is or was there, usable or not.

    ``doubt`` is one sentence if something in it cannot come from dmsoft's own writes, however they were cut: then
    somebody else wrote to this disk, and nothing it says about its data is to be believed. A torn copy beside a
    whole one is no doubt.
    """

    header: Header | None
    copies: tuple[Copy, Copy]
    is_member: bool
    doubt: str | None = None


def read(source: Source, *, key: Key = None) -> Scan:
    """Read both copies, trusting nothing in them; ``source`` is a path, a descriptor or a `Disk`.

    ``key`` may be `dmsoft.member.keys.load`: then each mirror's own key verifies, and what that raises is raised.
    Reads the two prefixes and no more than 256 KiB after each, and again only while somebody writes them. Raises
    `DeviceError` if neither copy can be read and `NotFoundError` if the path does not exist; anything that was
    read is a `Scan`.
    """
    with disks.opened(source) as disk:
        return _read(disk, key)


def require(source: Source, *, key: Key = None) -> Header:
    """The header of a member. Raises `NoHeaderError`, `HeaderBadError`, `HeaderNewerError` and `DeviceError`."""
    with disks.opened(source) as disk:
        return _header_of(disk, _read(disk, key))


def write_granted(target: int | Disk, payload: AnyPayload, key: bytes | None) -> Header:
    """Grant what ``payload`` promises: after a power cut in here the header is the old one or the new one.

    Raises `DeviceError` if a write, a flush or the reading back fails (then the header is either of the two), and
    the errors of `require`.
    """
    with disks.opened(target) as disk:
        current, spare = _current(disk, payload)
        sequence = _next(disk, current, 1)
        _write(disk, prefixes.build(payload, slot=spare, sequence=sequence, key=key), spare * SLOT_BYTES)
        return Header(sequence, payload, None if key is None else True)


def write_withdrawn(target: int | Disk, payload: AnyPayload, key: bytes | None) -> Header:
    """Withdraw what the old header promised: when this returns, neither copy has it any more.

    Always one whole copy: the old header until the first write counts, ``payload`` from there on. Raises as
    `write_granted`; after an error nothing may act on the withdrawal, because a copy of the old promise may be left.
    """
    with disks.opened(target) as disk:
        current, spare = _current(disk, payload)
        sequence = _next(disk, current, 2)
        # Both are built before anything is written: a payload that is too long changes nothing.
        first = prefixes.build(payload, slot=spare, sequence=sequence - 1, key=key)
        second = prefixes.build(payload, slot=1 - spare, sequence=sequence, key=key)
        _write(disk, first, spare * SLOT_BYTES)
        _write(disk, second, (1 - spare) * SLOT_BYTES)
        return Header(sequence, payload, None if key is None else True)


def write_first(target: int | Disk, payload: AnyPayload, key: bytes | None) -> Header:
    """Make a member of a device: its first MiB, whatever it holds, becomes a header.

    A power cut in here leaves the old header, none, or the new one: an old header is gone before anything else,
    and the new prefixes, each one atomic write, come when all the rest is durable. Raises `DeviceError`.
    """
    copies = [prefixes.build(payload, slot=slot, sequence=slot + 1, key=key) for slot in (0, 1)]
    with disks.opened(target) as disk:
        if len(_pread(disk, PREFIX_BYTES, HEADER_BYTES - PREFIX_BYTES)) < PREFIX_BYTES:
            raise DeviceError(f"{disk.name} is smaller than a header of 1 MiB.", hint="Use a larger disk.")
        _wipe(disk)
        region = b"".join((bytes(PREFIX_BYTES) + copy[PREFIX_BYTES:]).ljust(SLOT_BYTES, b"\0") for copy in copies)
        _write(disk, region, 0)
        for slot, copy in enumerate(copies):
            _write(disk, copy[:PREFIX_BYTES], slot * SLOT_BYTES)
        return Header(2, payload, None if key is None else True)


def wipe(target: int | Disk) -> None:
    """End a member: zero both prefixes. A power cut in here leaves the header as it was, or none.

    Raises `DeviceError`.
    """
    with disks.opened(target) as disk:
        _wipe(disk)


def _wipe(disk: Disk) -> None:
    try:
        copies = _settled(disk)
    except DeviceError:
        copies = None  # what cannot be read can still be overwritten
    winner = None if copies is None else _winner(copies)
    # The header goes last, or its older copy would count in between.
    first = 0 if winner is None else 1 - winner.slot
    for slot in (first, 1 - first):
        if copies is None or copies[slot].status != "absent":
            _write(disk, bytes(PREFIX_BYTES), slot * SLOT_BYTES)


def surroundings(disk: Disk) -> bytes:
    """The header's first MiB with zeros in place of its copies. Raises OSError."""
    region = bytearray(disk.pread(HEADER_BYTES, 0))
    for slot in (0, 1):
        begin = slot * SLOT_BYTES
        prefix = prefixes.unpack(bytes(region[begin : begin + PREFIX_BYTES]))
        if prefix is not None and prefix.bounded:
            length = PREFIX_BYTES + prefix.payload_length
            region[begin : begin + length] = bytes(length)
    return bytes(region)


def _read(disk: Disk, key: Key) -> Scan:
    copies = _copies(disk, key)
    winner = _winner(copies)
    if winner is not None and winner.payload is not None:
        header = Header(winner.sequence or 0, winner.payload, winner.verified)
        return Scan(header, copies, True, _doubt(winner, copies[1 - winner.slot]))
    if any(copy.status == "unreadable" for copy in copies):
        # "No header" would be a guess.
        raise DeviceError(
            f"The header of {disk.name} could not be read.",
            hint="Look at the kernel log (journalctl -k) for errors of this device.",
        )
    return Scan(None, copies, any(copy.ours for copy in copies))


def _copies(disk: Disk, key: Key) -> tuple[Copy, Copy]:
    for _ in range(_ATTEMPTS):
        blocks = _prefixes(disk)
        copies = (_copy(disk, 0, blocks[0], key), _copy(disk, 1, blocks[1], key))
        # A copy that somebody writes at this moment looks torn; one that stays as it is really is.
        if all(copy.status != "torn" for copy in copies) or _prefixes(disk) == blocks:
            break
    return copies


def _prefixes(disk: Disk) -> tuple[bytes | None, bytes | None]:
    return (_pread_medium(disk, PREFIX_BYTES, 0), _pread_medium(disk, PREFIX_BYTES, SLOT_BYTES))


def _copy(disk: Disk, slot: int, block: bytes | None, key: Key) -> Copy:
    data: bytes | None = b""
    prefix = None if block is None else prefixes.unpack(block)
    if prefix is not None and prefix.bounded:
        length = align_up(prefix.payload_length, disks.ALIGNMENT)
        data = _pread_medium(disk, length, slot * SLOT_BYTES + PREFIX_BYTES)
        data = None if data is None else data[: prefix.payload_length]
    if block is None or data is None:
        return Copy(slot, "unreadable", reason="The device reports a medium error.")
    return prefixes.judge(slot, block, data, key)


def _winner(copies: tuple[Copy, Copy]) -> Copy | None:
    """The copy that is the header. None if there is none, or if there is more than a torn write to explain.

    A whole copy that is of a newer format, misplaced or not a payload was not left by a write of ours that was cut,
    and it may have replaced a promise that the other copy still makes; so the other copy does not count either.
    """
    if any(copy.status in ("newer-version", "misplaced", "invalid") for copy in copies):
        return None
    whole = [copy for copy in copies if copy.status == "ok"]
    if len(whole) == 2 and whole[0].sequence == whole[1].sequence and whole[0].payload != whole[1].payload:
        return None
    return max(whole, key=lambda copy: copy.sequence or 0, default=None)


def _doubt(winner: Copy, other: Copy) -> str | None:
    if other.status == "ok" and other.sequence == winner.sequence:
        return "Both copies of the header have the same sequence number."
    if other.status == "blank" and (winner.slot, winner.sequence) == (0, 1):
        return None  # the first write was cut between its two prefixes
    if other.status in ("blank", "foreign", "absent"):
        return f"Copy {other.slot} of the header was overwritten: {other.reason}"
    return None


def _header_of(disk: Disk, scan: Scan) -> Header:
    if scan.header is not None:
        return scan.header
    if not scan.is_member:
        raise NoHeaderError(f"{disk.name} is not a member of a soft mirror.", hint="See `dmsoft devices`.")
    if any(copy.status == "newer-version" for copy in scan.copies):
        raise HeaderNewerError(f"The header of {disk.name} was written by a newer dmsoft.", hint="Update dmsoft.")
    if all(copy.status == "ok" for copy in scan.copies):
        reasons = "both copies have the same sequence number and differ."
    else:
        reasons = " ".join(f"copy {copy.slot}: {copy.reason or 'It is whole.'}" for copy in scan.copies)
    raise HeaderBadError(
        f"The header of {disk.name} cannot be used: {reasons}",
        hint="If it is a secondary, remove it and add it again; if it is the primary, restore its first MiB.",
    )


def _settled(disk: Disk) -> tuple[Copy, Copy]:
    """The copies as they are on the medium.

    A writer that died may have left its copy in the disk's cache alone. Without a flush the other copy, the only
    durable one, would be overwritten next, and a power cut would take both.
    """
    _flush(disk)
    return _copies(disk, None)


def _current(disk: Disk, payload: AnyPayload) -> tuple[Header, int]:
    """The header that ``payload`` is about to replace, and the slot that does not hold it."""
    _flush(disk)  # as in `_settled`
    scan = _read(disk, None)
    header = _header_of(disk, scan)
    if header.payload.member_uuid != payload.member_uuid:
        raise MetadataError(
            f"{disk.name} is now member {header.payload.member_uuid}, not {payload.member_uuid}.",
            hint="Another disk took its place, or it was created anew; run `dmsoft status`.",
        )
    winner = _winner(scan.copies)
    return header, 0 if winner is None else 1 - winner.slot


def _next(disk: Disk, current: Header, steps: int) -> int:
    if current.sequence > prefixes.MAX_SEQUENCE - steps:
        raise DeviceError(
            f"The header of {disk.name} cannot be written again: its sequence number is at its end.",
            hint="That is no number that dmsoft reaches: remove this disk from the mirror and add it again.",
        )
    return current.sequence + steps


def _write(disk: Disk, data: bytes, offset: int) -> None:
    """Write, flush, read back; raises `DeviceError` unless all of it is as it should be."""
    try:
        disk.pwrite(data, offset)
    except OSError as err:
        raise disks.failure(f"The header of {disk.name}", "written", err) from err
    _flush(disk)
    if _pread(disk, len(data), offset) != data:
        raise DeviceError(
            f"The header of {disk.name} reads back other than it was written.",
            hint="Do not trust this disk; look at the kernel log (journalctl -k) and at its SMART state.",
        )


def _flush(disk: Disk) -> None:
    try:
        disk.flush()
    except OSError as err:
        raise disks.failure(f"The header of {disk.name}", "flushed", err) from err


def _pread(disk: Disk, length: int, offset: int) -> bytes:
    try:
        return disk.pread(length, offset)
    except OSError as err:
        raise disks.failure(f"The header of {disk.name}", "read", err) from err


def _pread_medium(disk: Disk, length: int, offset: int) -> bytes | None:
    """As `_pread`, but None for a medium error: the other copy may be whole."""
    try:
        return disk.pread(length, offset)
    except OSError as err:
        if err.errno in _MEDIUM_ERRORS:
            return None
        raise disks.failure(f"The header of {disk.name}", "read", err) from err
