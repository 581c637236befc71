# SPDX-License-Identifier: GPL-2.0-or-later
"""The header: its bytes, and what is read from any bytes."""

import hashlib
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsoft.errors import DeviceError, DmsoftError, MetadataError, NotFoundError
from dmsoft.member import header, prefix
from dmsoft.member.header import HEADER_BYTES, SLOT_BYTES, Header, HeaderBadError, HeaderNewerError, NoHeaderError
from dmsoft.member.payload import Cache, Identity, Region, Value
from tests.header_model import KEY, MEMBER, ModelDisk, member, number_of, secondary


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
