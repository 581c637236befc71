# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading and writing a header on a disk that fails, lies, or is not the one that was meant."""

import errno
import json
import os
from collections.abc import Callable

import pytest

from dmsoft.errors import DeviceError, MetadataError
from dmsoft.member import header, prefix
from dmsoft.member import payload as payloads
from dmsoft.member.header import HEADER_BYTES, SLOT_BYTES
from dmsoft.member.payload import Secondary
from tests.header_model import KEY, ModelDisk, member, number_of, secondary


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


@pytest.mark.parametrize(("padding", "why"), [(65, "of length <= 64"), (64, "is the most")])
def test_a_payload_that_is_too_long_changes_nothing(padding: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = member(1)
    before = bytes(disk.medium)
    huge = secondary(2, padding=padding)
    monkeypatch.setattr(prefix, "MAX_PAYLOAD_BYTES", 64 * 200)
    for write in (header.write_granted, header.write_withdrawn, header.write_first):
        with pytest.raises(MetadataError, match=why):
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


@pytest.mark.parametrize("name", ["", ".", "..", "../../../net/host", "a/b", "a\nb", "\x1b[2J", "\x9b"])
def test_a_name_under_by_id_that_leads_elsewhere(name: str) -> None:
    """It is looked for in that folder, also before the header is proven ours."""
    good = payloads.encode(secondary(1, padding=1))
    assert isinstance(payloads.decode(good), Secondary)
    with pytest.raises(MetadataError):
        payloads.decode(good.replace(b"x" * 200, json.dumps(name)[1:-1].encode()))
