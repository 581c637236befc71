# SPDX-License-Identifier: GPL-2.0-or-later
"""The header: its bytes, what is read from any bytes, and what a power cut can leave of each way to write it."""

import errno
import hashlib
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmsoft.errors import DeviceError, DmsoftError, MetadataError, NotFoundError
from dmsoft.member import header, prefix
from dmsoft.member.header import HEADER_BYTES, SLOT_BYTES, Header, HeaderBadError, HeaderNewerError, NoHeaderError
from dmsoft.member.payload import AnyPayload, Cache, Identity, Region, Secondary, Sync, Value

SECTOR = 512
KEY = b"k" * 32
MEMBER = "b" * 32


def secondary(number: int, *, member_uuid: str = MEMBER, padding: int = 0) -> Secondary:
    """A payload that tells by its era which one it is."""
    return Secondary(
        mirror_uuid="a" * 32,
        mirror_name="m",
        member_uuid=member_uuid,
        identity=Identity(1 << 30, ("x" * 200,) * padding),
        regions={"header": Region(0, HEADER_BYTES)},
        created="2026-01-01T00:00:00Z",
        label="b",
        block_bytes=65536,
        generation=("c" * 32,),
        sync=Sync(era=number),
    )


def number_of(payload: AnyPayload) -> int:
    assert isinstance(payload, Secondary)
    assert payload.sync.era is not None
    return payload.sync.era


class PowerCutError(Exception):
    """The model's power went away, or the writing process did."""


class ModelDisk:
    """A disk with a volatile cache: what was written is seen at once, and only a flush makes it durable.

    ``budget`` operations (writes and flushes) go through, the next raises `PowerCutError`: a write after some of its
    sectors (``reach``), a flush before it did anything.
    """

    name = "model"

    def __init__(self, medium: bytes | bytearray) -> None:
        self.medium = bytearray(medium)
        self.cached: list[tuple[int, bytes]] = []
        self.budget: int | None = None
        self.reach = 0
        self.log: list[tuple[str, int, int]] = []
        self.read_bytes = 0

    def _spend(self) -> bool:
        if self.budget == 0:
            return False
        if self.budget is not None:
            self.budget -= 1
        return True

    def pread(self, length: int, offset: int) -> bytes:
        assert length % 4096 == 0 and offset % 4096 == 0
        self.read_bytes += length
        seen = bytearray(self.medium[offset : offset + length])
        for at, sector in self.cached:
            if offset <= at < offset + len(seen):
                seen[at - offset : at - offset + SECTOR] = sector
        return bytes(seen)

    def pwrite(self, data: bytes, offset: int) -> None:
        assert len(data) % 4096 == 0 and offset % 4096 == 0
        if offset + len(data) > len(self.medium):
            raise OSError(errno.ENOSPC, "No space left on device")
        sectors = [(offset + at, data[at : at + SECTOR]) for at in range(0, len(data), SECTOR)]
        if not self._spend():
            self.cached += sectors[: self.reach]
            raise PowerCutError
        self.cached += sectors
        self.log.append(("write", offset, len(data)))

    def flush(self) -> None:
        if not self._spend():
            raise PowerCutError
        for at, sector in self.cached:
            self.medium[at : at + SECTOR] = sector
        self.cached.clear()
        self.log.append(("flush", 0, 0))

    def cut(self, kept: Callable[[int], bool]) -> "ModelDisk":
        """The disk after a power cut: of the sectors in the cache, the ones ``kept`` says reached the medium."""
        after = bytearray(self.medium)
        for index, (at, sector) in enumerate(self.cached):
            if kept(index):
                after[at : at + SECTOR] = sector
        return ModelDisk(after)


Write = Callable[[ModelDisk], object]


def member(number: int = 1) -> ModelDisk:
    disk = ModelDisk(random.Random(7).randbytes(HEADER_BYTES + 8192))
    header.write_first(disk, secondary(number), KEY)
    return disk


def keepers(count: int, rng: random.Random) -> list[Callable[[int], bool]]:
    """None, all, a few prefixes, and random subsets of the ``count`` sectors in a cache."""
    chosen: list[Callable[[int], bool]] = [lambda _: False, lambda _: True]
    for _ in range(3):
        edge = rng.randrange(count + 1)
        chosen += [lambda i, edge=edge: i < edge, lambda i, edge=edge: i >= edge]
        some = {i for i in range(count) if rng.random() < 0.5}
        chosen.append(lambda i, some=some: i in some)
    chosen += [lambda i: i == 0, lambda i: i != 0]
    return chosen


def crashes(before: ModelDisk, write: Write, seed: int) -> list[ModelDisk]:
    """Disks after a power cut at every operation of ``write``, with various sectors of the cache on the medium."""
    rng = random.Random(seed)
    found = []
    for budget in range(1000):
        disk = ModelDisk(before.medium)
        disk.cached = list(before.cached)
        disk.budget, disk.reach = budget, rng.randrange(1, 20)
        try:
            write(disk)
        except PowerCutError:
            found += [disk.cut(kept) for kept in keepers(len(disk.cached), rng)]
        else:
            return [*found, disk.cut(lambda _: False)]
    raise AssertionError("the write never ends")


# --- bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 1])
def test_prefix_has_the_documented_offsets(slot: int) -> None:
    built = prefix.build(secondary(5), slot=slot, sequence=0x1122334455667788, key=KEY)
    assert built[:8] == b"\x89DMSOFT\n"
    assert struct.unpack_from("<II", built, 8) == (1, 4096)
    assert struct.unpack_from("<Q", built, 16) == (0x1122334455667788,)
    length = struct.unpack_from("<II", built, 24)
    assert length[0] == slot
    assert not any(built[96:4096])
    assert not any(built[4096 + length[1] :])
    assert len(built) % 4096 == 0
    whole = built[:32] + bytes(32) + built[64 : 4096 + length[1]]
    assert built[32:64] == hashlib.sha256(whole).digest()


def test_round_trip() -> None:
    disk = member(3)
    scan = header.read(disk, key=KEY)
    assert scan.header == Header(2, secondary(3), True)
    assert [copy.status for copy in scan.copies] == ["ok", "ok"]
    assert [copy.sequence for copy in scan.copies] == [1, 2]
    assert scan.is_member and scan.doubt is None
    assert header.require(disk).verified is None


def test_real_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(2 << 20))
    tail = path.read_bytes()[HEADER_BYTES:]
    fd = os.open(path, os.O_RDWR)
    try:
        header.write_first(fd, secondary(1), None)
        header.write_granted(fd, secondary(2), KEY)
        header.write_withdrawn(fd, secondary(3), KEY)
        assert header.read(fd).header == Header(5, secondary(3), None)
    finally:
        os.close(fd)
    assert header.read(path, key=KEY).header == Header(5, secondary(3), True)
    assert path.read_bytes()[HEADER_BYTES:] == tail
    if shutil.which("blkid"):
        probe = subprocess.run(["blkid", "-p", "-o", "export", path], capture_output=True, check=False)
        assert probe.returncode == 2, probe.stdout


def test_open_for_read_errors(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        header.read(tmp_path / "none")
    with pytest.raises(DeviceError, match="not a block device"):
        header.read(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DeviceError, match="not a block device"):
        header.read(tmp_path / "fifo")


# --- authentication ------------------------------------------------------------------------------------------------


def test_unsigned_and_forged_are_not_verified() -> None:
    disk = ModelDisk(bytes(HEADER_BYTES))
    assert header.write_first(disk, secondary(1), None).verified is None
    assert header.require(disk, key=KEY).verified is False
    header.write_withdrawn(disk, secondary(2), b"other" * 8)
    assert header.require(disk, key=KEY).verified is False
    header.write_granted(disk, secondary(3), KEY)
    assert header.require(disk, key=KEY).verified is True
    assert header.require(disk, key=lambda uuid: KEY if uuid == "a" * 32 else None).verified is True
    assert header.require(disk, key=lambda _: None).verified is None


@given(st.data())
def test_nothing_that_counts_can_change_under_a_mac(data: st.DataObject) -> None:
    """Change a signed copy anywhere and mend its checksum: it is never verified with another meaning."""
    disk = member(1)
    start = SLOT_BYTES
    length = struct.unpack_from("<I", disk.medium, start + 28)[0]
    where = data.draw(st.integers(start, start + 4096 + length - 1).filter(lambda at: not 32 <= at - start < 64))
    disk.medium[where] ^= data.draw(st.integers(1, 255))
    mend(disk, 1)
    scan = header.read(disk, key=KEY)
    for copy in scan.copies[1:]:
        assert copy.verified is not True
    if scan.header is not None:
        assert scan.header == Header(1, secondary(1), True) or scan.header.verified is False


def mend(disk: ModelDisk, slot: int) -> None:
    """Make the checksum of a copy right, if its lengths are possible."""
    at = slot * SLOT_BYTES
    length = struct.unpack_from("<I", disk.medium, at + 28)[0]
    whole = bytearray(disk.medium[at : at + 4096 + length])
    whole[32:64] = bytes(32)
    disk.medium[at + 32 : at + 64] = hashlib.sha256(whole).digest()


# --- reading anything ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 512, 4095, 4096, 8192, SLOT_BYTES - 512, SLOT_BYTES, SLOT_BYTES + 4096, 1 << 20])
def test_small_devices(size: int) -> None:
    scan = header.read(ModelDisk(bytes(size)))
    assert (scan.header, scan.is_member) == (None, False)
    cut = ModelDisk(member(1).medium[:size])
    first = header.read(cut)
    assert (first.header is not None) == (size >= 8192)
    if 8192 <= size <= SLOT_BYTES:
        assert first.copies[1].status == "absent" and first.doubt


@pytest.mark.parametrize("size", [0, 4096, SLOT_BYTES, HEADER_BYTES - 4096])
def test_a_device_smaller_than_the_header_is_refused_unchanged(size: int) -> None:
    disk = ModelDisk(b"x" * size)
    with pytest.raises(DeviceError, match="smaller"):
        header.write_first(disk, secondary(1), KEY)
    assert disk.log == []
    assert disk.medium == b"x" * size


def test_no_header_is_not_found() -> None:
    for content in (bytes(HEADER_BYTES), b"\xeb\x3c\x90mkfs" * 160000):
        disk = ModelDisk(content[:HEADER_BYTES])
        assert not header.read(disk).is_member
        with pytest.raises(NoHeaderError):
            header.require(disk)


def test_both_copies_bad_is_header_bad() -> None:
    disk = member(1)
    for slot in (0, 1):
        disk.medium[slot * SLOT_BYTES + 4096] ^= 1
    scan = header.read(disk)
    assert scan.is_member and scan.header is None
    assert [copy.status for copy in scan.copies] == ["torn", "torn"]
    with pytest.raises(HeaderBadError) as caught:
        header.require(disk)
    assert caught.value.code == "header-bad" and caught.value.exit_code == 7 and caught.value.hint
    for write in (header.write_granted, header.write_withdrawn):
        with pytest.raises(HeaderBadError):
            write(disk, secondary(2), KEY)


@pytest.mark.parametrize("slot", [0, 1])
def test_one_torn_copy_is_carried_on_and_told(slot: int) -> None:
    disk = member(1)
    disk.medium[slot * SLOT_BYTES + 4100] ^= 0x40
    scan = header.read(disk)
    assert scan.header is not None and number_of(scan.header.payload) == 1
    assert scan.copies[slot].status == "torn" and scan.copies[slot].reason
    assert scan.doubt is None
    header.write_granted(disk, secondary(2), KEY)
    assert [copy.status for copy in header.read(disk).copies] == ["ok", "ok"]


@pytest.mark.parametrize("content", [bytes(4096), b"\xaa" * 4096])
@pytest.mark.parametrize("slot", [0, 1])
def test_an_overwritten_copy_is_doubt(slot: int, content: bytes) -> None:
    disk = member(1)
    header.write_withdrawn(disk, secondary(2), KEY)
    disk.medium[slot * SLOT_BYTES : slot * SLOT_BYTES + 4096] = content
    scan = header.read(disk)
    assert scan.header is not None and number_of(scan.header.payload) == 2
    assert scan.doubt is not None and "overwritten" in scan.doubt


def test_newer_version_is_said_and_left_alone() -> None:
    disk = member(1)
    struct.pack_into("<I", disk.medium, SLOT_BYTES + 8, 2)
    assert header.read(disk).copies[1].status == "torn"  # a flipped bit is not a new format
    mend(disk, 1)
    scan = header.read(disk)
    assert scan.copies[1].status == "newer-version" and scan.header is None
    with pytest.raises(HeaderNewerError):
        header.require(disk)
    before = bytes(disk.medium)
    with pytest.raises(HeaderNewerError):
        header.write_granted(disk, secondary(2), KEY)
    assert disk.medium == before


def test_a_copy_in_the_wrong_place_does_not_count() -> None:
    disk = member(1)
    disk.medium[SLOT_BYTES:] = disk.medium[: len(disk.medium) - SLOT_BYTES]
    scan = header.read(disk)
    assert scan.copies[1].status == "misplaced" and scan.header is None
    with pytest.raises(HeaderBadError):
        header.require(disk)


def test_same_sequence_with_another_payload_is_refused() -> None:
    disk = member(1)
    for slot in (0, 1):
        copy = prefix.build(secondary(slot), slot=slot, sequence=9, key=KEY)
        disk.medium[slot * SLOT_BYTES : slot * SLOT_BYTES + len(copy)] = copy
    assert header.read(disk).header is None
    with pytest.raises(HeaderBadError, match="same sequence"):
        header.require(disk)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 250000,
        b'{"a":' * 50000,
        b'{"role":"secondary","sync":' + b"[" * 200000,
        b"\xff\xfe",
        b"null",
        b'{"role":"\x1b[2J"}',
        b'{"role":"\\u001b[31mx"}',
        b'{"role":"%s"}' % (b"long" * 1000),
        b'{"role":"cache","mirror_uuid":1e400}',
        b"9" * 200000,
    ],
)
def test_absurd_payload_with_right_checksum(text: bytes) -> None:
    disk = member(1)
    for slot in (0, 1):
        at = slot * SLOT_BYTES
        disk.medium[at + 4096 : at + 4096 + len(text)] = text
        struct.pack_into("<I", disk.medium, at + 28, len(text))
        mend(disk, slot)
    scan = header.read(disk, key=KEY)
    assert [copy.status for copy in scan.copies] == ["invalid", "invalid"]
    assert all((copy.reason or "").isprintable() and len(copy.reason or "") <= 200 for copy in scan.copies)
    with pytest.raises(HeaderBadError) as caught:
        header.require(disk)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("length", [0, 256 * 1024 + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_absurd_lengths_are_not_followed(length: int) -> None:
    disk = member(1)
    for slot in (0, 1):
        struct.pack_into("<I", disk.medium, slot * SLOT_BYTES + 28, length)
    disk.read_bytes = 0
    assert header.read(disk).header is None
    assert disk.read_bytes <= 4 * 4096


def test_reads_are_bounded() -> None:
    disk = member(1)
    for slot in (0, 1):
        struct.pack_into("<I", disk.medium, slot * SLOT_BYTES + 28, prefix.MAX_PAYLOAD_BYTES)
    disk.read_bytes = 0
    assert header.read(disk).header is None
    assert disk.read_bytes <= 2 * 260 * 1024 + 2 * 4096
    disk = member(1)
    disk.read_bytes = 0
    header.read(disk)
    assert disk.read_bytes <= 4 * 4096


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6000), st.binary(min_size=1, max_size=64))), st.booleans())
def test_mutated_headers_raise_nothing_but_typed_errors(
    changes: list[tuple[int, int, bytes]], right_checksum: bool
) -> None:
    disk = member(1)
    for slot, at, data in changes:
        disk.medium[slot * SLOT_BYTES + at : slot * SLOT_BYTES + at + len(data)] = data
        if right_checksum:
            mend(disk, slot)
    try:
        scan = header.read(disk, key=KEY)
        found = header.require(disk, key=KEY)
    except DmsoftError as err:
        assert isinstance(err, MetadataError | NotFoundError)
        return
    assert scan.header == found
    if found.verified:
        assert found.payload == secondary(1)


@given(st.binary(max_size=300), st.integers(0, 1))
def test_random_bytes(data: bytes, slot: int) -> None:
    disk = ModelDisk(bytes(HEADER_BYTES))
    disk.medium[slot * SLOT_BYTES : slot * SLOT_BYTES + len(data)] = data
    assert header.read(disk).header is None
    disk.medium[slot * SLOT_BYTES : slot * SLOT_BYTES + 8] = prefix.MAGIC
    assert header.read(disk).is_member and header.read(disk).header is None


class Failing(ModelDisk):
    """A `ModelDisk` whose reads, writes or flushes fail."""

    def __init__(self, disk: ModelDisk, number: int, *, read: tuple[int, ...] = (), write: bool = False) -> None:
        super().__init__(disk.medium)
        self.error = OSError(number, os.strerror(number))
        self.bad_reads, self.bad_write, self.bad_flush = read, write, False

    def pread(self, length: int, offset: int) -> bytes:
        if offset // SLOT_BYTES in self.bad_reads:
            raise self.error
        return super().pread(length, offset)

    def pwrite(self, data: bytes, offset: int) -> None:
        if self.bad_write:
            raise self.error
        super().pwrite(data, offset)

    def flush(self) -> None:
        if self.bad_flush and self.cached:
            raise self.error
        super().flush()


@pytest.mark.parametrize("slot", [0, 1])
def test_one_unreadable_copy_is_like_a_torn_one(slot: int) -> None:
    scan = header.read(Failing(member(1), errno.EIO, read=(slot,)))
    assert scan.header is not None and scan.copies[slot].status == "unreadable"


def test_what_cannot_be_read_is_not_called_no_header() -> None:
    with pytest.raises(DeviceError):
        header.read(Failing(member(1), errno.EIO, read=(0, 1)))
    with pytest.raises(DeviceError):
        header.read(Failing(ModelDisk(bytes(HEADER_BYTES)), errno.EIO, read=(0,)))
    with pytest.raises(DeviceError):
        header.read(Failing(member(1), errno.ENXIO, read=(0,)))


@pytest.mark.parametrize("write", [header.write_granted, header.write_withdrawn, header.write_first])
def test_write_errors_are_typed_and_leave_a_header(write: Callable[..., object]) -> None:
    disk = Failing(member(1), errno.EIO, write=True)
    with pytest.raises(DeviceError, match="written") as caught:
        write(disk, secondary(2), KEY)
    assert caught.value.hint
    disk.bad_write, disk.bad_flush = False, True
    with pytest.raises(DeviceError, match="flushed"):
        write(disk, secondary(2), KEY)
    assert number_of(header.require(disk.cut(lambda _: False)).payload) == 1


def test_a_write_that_reads_back_wrong_is_an_error() -> None:
    class Liar(ModelDisk):
        def pwrite(self, data: bytes, offset: int) -> None:
            super().pwrite(data[:-4096], offset)

    for write in (header.write_granted, header.write_withdrawn):
        with pytest.raises(DeviceError, match="reads back"):
            write(Liar(member(1).medium), secondary(2), KEY)


def test_sequence_at_its_end() -> None:
    disk = member(1)
    copy = prefix.build(secondary(1), slot=1, sequence=prefix.MAX_SEQUENCE - 1, key=KEY)
    disk.medium[SLOT_BYTES : SLOT_BYTES + len(copy)] = copy
    with pytest.raises(DeviceError, match="sequence"):
        header.write_withdrawn(disk, secondary(2), KEY)
    assert header.write_granted(disk, secondary(2), KEY).sequence == prefix.MAX_SEQUENCE
    with pytest.raises(DeviceError, match="sequence"):
        header.write_granted(disk, secondary(3), KEY)
    assert number_of(header.require(disk).payload) == 2


def test_another_member_is_never_overwritten() -> None:
    disk = member(1)
    before = bytes(disk.medium)
    for write in (header.write_granted, header.write_withdrawn):
        with pytest.raises(MetadataError, match="is now member"):
            write(disk, secondary(2, member_uuid="d" * 32), KEY)
    assert disk.medium == before


def test_a_payload_that_is_too_long_changes_nothing() -> None:
    disk = member(1)
    before = bytes(disk.medium)
    huge = secondary(2, padding=2000)
    for write in (header.write_granted, header.write_withdrawn, header.write_first):
        with pytest.raises(MetadataError, match="is the most"):
            write(disk, huge, KEY)
    assert disk.medium == before


def test_a_copy_being_written_is_read_again() -> None:
    class Racing(ModelDisk):
        """Both copies are torn when first read; the writer is done a moment later."""

        def pread(self, length: int, offset: int) -> bytes:
            seen = super().pread(length, offset)
            if offset == SLOT_BYTES + 4096 and self.medium != done.medium:
                self.medium[:] = done.medium
            return seen

    done = member(1)
    header.write_withdrawn(done, secondary(2, padding=3), KEY)
    racing = Racing(member(1).medium)
    for slot in (0, 1):
        racing.medium[slot * SLOT_BYTES + 4096] ^= 1
    assert number_of(header.require(racing).payload) == 2


# --- power cuts ----------------------------------------------------------------------------------------------------


def test_order_of_writes() -> None:
    disk = member(1)
    disk.log.clear()
    header.write_granted(disk, secondary(2), KEY)
    assert [entry[:2] for entry in disk.log] == [("flush", 0), ("write", 0), ("flush", 0)]
    disk.log.clear()
    header.write_withdrawn(disk, secondary(3), KEY)
    order = [("flush", 0), ("write", SLOT_BYTES), ("flush", 0), ("write", 0), ("flush", 0)]
    assert [entry[:2] for entry in disk.log] == order


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_power_cut_in_granted_and_withdrawn(seed: int, old_padding: int, new_padding: int, withdrawn: bool) -> None:
    before = member(1)
    header.write_granted(before, secondary(2, padding=old_padding), KEY)
    new = secondary(3, padding=new_padding)
    write = header.write_withdrawn if withdrawn else header.write_granted
    found = crashes(before, lambda disk: write(disk, new, KEY), seed)
    for disk in found:
        scan = header.read(disk, key=KEY)
        assert scan.header is not None and scan.header.verified and scan.doubt is None
        assert number_of(scan.header.payload) in (2, 3)
    assert number_of(header.require(found[-1]).payload) == 3
    assert number_of(header.require(found[0]).payload) == 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_after_a_withdrawal_neither_copy_has_the_old_promise(seed: int, padding: int) -> None:
    disk = member(1)
    header.write_granted(disk, secondary(2), KEY)
    header.write_withdrawn(disk, secondary(3, padding=padding), KEY)
    for slot in (0, 1):
        spoiled = disk.cut(lambda _: False)
        spoiled.medium[slot * SLOT_BYTES + 32] ^= 1
        assert number_of(header.require(spoiled).payload) == 3
    # A later grant that is cut, and then the other copy lost too, still never goes back behind the withdrawal.
    for crashed in crashes(disk, lambda d: header.write_granted(d, secondary(4), KEY), seed):
        for slot in (0, 1):
            spoiled = crashed.cut(lambda _: False)
            spoiled.medium[slot * SLOT_BYTES + 32] ^= 1
            found = header.read(spoiled).header
            assert found is None or number_of(found.payload) in (3, 4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_power_cut_in_first(seed: int, over_a_member: bool) -> None:
    before = ModelDisk(random.Random(seed).randbytes(HEADER_BYTES))
    if over_a_member:
        header.write_first(before, secondary(1, member_uuid="e" * 32), KEY)
        header.write_granted(before, secondary(2, member_uuid="e" * 32), KEY)
    seen = set()
    for disk in crashes(before, lambda d: header.write_first(d, secondary(9), KEY), seed):
        scan = header.read(disk, key=KEY)
        seen.add(None if scan.header is None else number_of(scan.header.payload))
        assert (scan.header is not None) == scan.is_member
        if scan.header is not None and scan.header.payload.member_uuid == MEMBER:
            assert scan.header.verified and scan.doubt is None
            image = bytearray(disk.medium)
            for copy in scan.copies:
                at = copy.slot * SLOT_BYTES
                length = struct.unpack_from("<I", image, at + 28)[0]
                image[at : at + 4096] = bytes(4096)
                image[at + 4096 : at + 8192] = bytes(4096)
                assert length < 4096
            assert not any(image), "something of what was there before is left in a member's header region"
    assert seen == ({2, None, 9} if over_a_member else {None, 9})


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_power_cut_in_wipe(seed: int, odd: bool) -> None:
    before = member(1)
    header.write_granted(before, secondary(2), KEY)
    if odd:
        header.write_granted(before, secondary(2), KEY)
    seen = set()
    for disk in crashes(before, header.wipe, seed):
        scan = header.read(disk)
        seen.add(None if scan.header is None else number_of(scan.header.payload))
        assert (scan.header is not None) == scan.is_member
    assert seen == {2, None}  # never 1, the older copy


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_power_cut_in_wipe_after_a_writer_was_killed(seed: int) -> None:
    before = member(1)
    header.write_granted(before, secondary(2), KEY)
    before.budget = 2  # it dies before the flush of what it wrote
    with pytest.raises(PowerCutError):
        header.write_granted(before, secondary(3), KEY)
    for disk in crashes(before, header.wipe, seed):
        found = header.read(disk).header
        assert found is None or number_of(found.payload) in (2, 3)


def test_wipe_works_where_nothing_can_be_used() -> None:
    disk = member(1)
    for slot in (0, 1):
        disk.medium[slot * SLOT_BYTES + 40] ^= 1
    header.wipe(disk)
    assert not header.read(disk).is_member


Step = tuple[str, int | None, int, bool]
steps = st.tuples(
    st.sampled_from(["granted", "withdrawn"]),
    st.one_of(st.none(), st.integers(0, 6)),  # the operation at which it dies
    st.integers(0, 2**32),
    st.booleans(),  # it takes the power with it, or the process alone dies and the disk's cache lives on
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=12))
@example([("granted", 2, 3, False), ("granted", 2, 5, True)])
@example([("withdrawn", 2, 3, False), ("withdrawn", 2, 5, True)])
def test_any_history_of_writes_kills_and_power_cuts(history: list[Step]) -> None:
    """There is always a header, and it is never older than the last write that returned.

    After a withdrawal that returned, that also holds for each copy alone.
    """
    disk = member(0)
    returned = withdrawn = 0
    for number, (kind, dies_at, seed, power) in enumerate(history, 1):
        rng = random.Random(seed)
        disk.budget, disk.reach = dies_at, rng.randrange(1, 20)
        payload = secondary(number, padding=rng.randrange(8))
        try:
            (header.write_granted if kind == "granted" else header.write_withdrawn)(disk, payload, KEY)
        except PowerCutError:
            if power:
                some = rng.random()
                disk = disk.cut(lambda _, some=some, rng=rng: rng.random() < some)
        else:
            returned = number
            withdrawn = number if kind == "withdrawn" else withdrawn
        disk.budget = None
        after = disk.cut(lambda _, rng=rng: rng.random() < 0.5)
        for seen in (disk, after):
            assert returned <= number_of(header.require(seen, key=KEY).payload) <= number
        for slot in (0, 1):
            after.medium[slot * SLOT_BYTES + 40] ^= 1
            left = header.read(after).header
            assert left is None or number_of(left.payload) >= withdrawn
            after.medium[slot * SLOT_BYTES + 40] ^= 1


def test_roles_other_than_secondary_round_trip() -> None:
    cache = Cache(
        mirror_uuid="a" * 32,
        mirror_name="m",
        member_uuid=MEMBER,
        identity=Identity(1 << 24),
        regions={"header": Region(0, HEADER_BYTES)},
        created="2026-01-01T00:00:00Z",
        label="b",
        secondary_uuid="f" * 32,
    )
    assert isinstance(cache, Value)
    disk = ModelDisk(bytes(HEADER_BYTES))
    assert header.write_first(disk, cache, KEY) == header.require(disk, key=KEY) == Header(2, cache, True)
