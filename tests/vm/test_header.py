# SPDX-License-Identifier: GPL-2.0-or-later
"""The header on real block devices: direct I/O on both block sizes, and disks that fail or lie."""

import errno
import hashlib
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dmsoft.errors import DeviceError
from dmsoft.member import header
from dmsoft.member.disk import open_for_read
from dmsoft.member.header import HEADER_BYTES, SLOT_BYTES
from dmsoft.member.payload import Identity, Metadata, Region
from dmsoft.units import MIB, SECTOR

SIZE = 16 * MIB
KEY = b"k" * 32


def sh(*argv: str | Path, data: bytes | None = None) -> str:
    done = subprocess.run([str(word) for word in argv], input=data, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.stdout.decode()} {done.stderr.decode()}"
    return done.stdout.decode()


def payload(name: str) -> Metadata:
    return Metadata(
        mirror_uuid="a" * 32,
        mirror_name=name,
        member_uuid="b" * 32,
        identity=Identity(SIZE),
        regions={"header": Region(0, HEADER_BYTES)},
        created="2026-01-01T00:00:00Z",
    )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    for name in ("loop", "dm-mod", "dm-flakey"):
        sh("modprobe", name)
    with ExitStack() as exits:
        yield exits


def loop(stack: ExitStack, tmp_path: Path, block_size: int) -> str:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(SIZE))
    device = sh("losetup", "--find", "--show", "--sector-size", str(block_size), path).strip()
    stack.callback(sh, "losetup", "--detach", device)
    return device


def opened(stack: ExitStack, path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def table(stack: ExitStack, *lines: str) -> tuple[str, Callable[..., None]]:
    """A dm device of that table, and what loads another table into it."""
    name = f"header-test-{secrets.token_hex(4)}"
    sh("dmsetup", "create", name, data="\n".join(lines).encode())
    stack.callback(sh, "dmsetup", "remove", "--retry", name)

    def load(*other: str) -> None:
        sh("dmsetup", "suspend", name)
        sh("dmsetup", "load", name, data="\n".join(other).encode())
        sh("dmsetup", "resume", name)

    return f"/dev/mapper/{name}", load


@pytest.mark.parametrize("block_size", [512, 4096])
def test_direct_io(stack: ExitStack, tmp_path: Path, block_size: int) -> None:
    device = loop(stack, tmp_path, block_size)
    fd = opened(stack, device)
    tail = hashlib.sha256(os.pread(opened_buffered(stack, device), SIZE, HEADER_BYTES)).digest()
    header.write_first(fd, payload("first"), KEY)
    header.write_granted(fd, payload("granted"), KEY)
    assert header.require(device, key=KEY).payload.mirror_name == "granted"
    header.write_withdrawn(fd, payload("withdrawn"), KEY)
    scan = header.read(device, key=KEY)
    assert [copy.payload for copy in scan.copies] == [payload("withdrawn")] * 2
    assert scan.header is not None and scan.header.verified and scan.header.sequence == 5
    assert subprocess.run(["blkid", "-p", device], capture_output=True, check=False).returncode == 2
    header.wipe(fd)
    assert not header.read(device).is_member
    assert hashlib.sha256(os.pread(opened_buffered(stack, device), SIZE, HEADER_BYTES)).digest() == tail


def opened_buffered(stack: ExitStack, path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def test_reading_sees_what_another_path_wrote(stack: ExitStack, tmp_path: Path) -> None:
    """A header written through a dm device is seen on the disk itself, whatever the page cache of the disk holds."""
    device = loop(stack, tmp_path, 512)
    through, _ = table(stack, f"0 {SIZE // SECTOR} linear {device} 0")
    fd = opened(stack, through)
    header.write_first(fd, payload("first"), KEY)
    stale = opened_buffered(stack, device)
    os.pread(stale, HEADER_BYTES, 0)
    header.write_granted(fd, payload("granted"), KEY)
    assert header.require(device).payload.mirror_name == "granted"


@pytest.mark.parametrize("bad", [0, 1])
def test_one_copy_on_a_bad_medium(stack: ExitStack, tmp_path: Path, bad: int) -> None:
    device = loop(stack, tmp_path, 512)
    header.write_first(opened(stack, device), payload("first"), KEY)
    start, end = bad * SLOT_BYTES // SECTOR, (bad + 1) * SLOT_BYTES // SECTOR
    lines = [f"{start} {end - start} error", f"{end} {SIZE // SECTOR - end} linear {device} {end}"]
    if start:
        lines.insert(0, f"0 {start} linear {device} 0")
    broken, _ = table(stack, *lines)
    scan = header.read(broken, key=KEY)
    assert scan.header is not None and scan.header.verified
    assert scan.copies[bad].status == "unreadable"
    with pytest.raises(DeviceError, match="written"):
        header.write_withdrawn(opened(stack, broken), payload("withdrawn"), KEY)


def test_a_disk_that_fails_or_loses_writes(stack: ExitStack, tmp_path: Path) -> None:
    device = loop(stack, tmp_path, 512)
    sectors = SIZE // SECTOR
    path, load = table(stack, f"0 {sectors} linear {device} 0")
    fd = opened(stack, path)
    header.write_first(fd, payload("first"), KEY)
    for feature, said in (("error_writes", "flushed|written"), ("drop_writes", "reads back")):
        load(f"0 {sectors} flakey {device} 0 0 60 1 {feature}")
        for write in (header.write_granted, header.write_withdrawn):
            with pytest.raises(DeviceError, match=said) as caught:
                write(fd, payload("lost"), KEY)
            assert caught.value.hint
        load(f"0 {sectors} linear {device} 0")
        assert header.require(device, key=KEY).payload.mirror_name == "first"
    header.write_withdrawn(fd, payload("withdrawn"), KEY)
    assert header.require(device, key=KEY).payload.mirror_name == "withdrawn"


def test_a_disk_that_is_gone(stack: ExitStack, tmp_path: Path) -> None:
    device = loop(stack, tmp_path, 512)
    sectors = SIZE // SECTOR
    path, load = table(stack, f"0 {sectors} linear {device} 0")
    fd = opened(stack, path)
    header.write_first(fd, payload("first"), KEY)
    load(f"0 {sectors} error")
    stack.callback(load, f"0 {sectors} linear {device} 0")
    for call in (header.read, header.require):
        with pytest.raises(DeviceError):
            call(path)
    with pytest.raises(DeviceError):
        header.write_granted(fd, payload("lost"), KEY)
    with pytest.raises(DeviceError):
        header.wipe(fd)


def test_open_for_read_is_read_only_and_direct(stack: ExitStack, tmp_path: Path) -> None:
    fd = open_for_read(loop(stack, tmp_path, 512))
    stack.callback(os.close, fd)
    with pytest.raises(OSError) as caught:
        os.write(fd, bytes(4096))
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError) as caught:
        os.pread(fd, 100, 0)
    assert caught.value.errno == errno.EINVAL
