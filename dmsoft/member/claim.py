# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors of a block device that are sure to be of the device that was examined.

A claim is opened for reading: closing a descriptor that could write makes udev look at the device again, which may
assemble an array on it, so nothing is opened for writing before every check has passed.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from dmsoft.inventory.sysfs import HOST, BlockDevice, Sysfs, block_device
from dmsoft.member.disk import FdDisk, open_for_read
from dmsoft.member.refusal import GateHeldError, GateIdentityError, GateReadOnlyError

# include/uapi/linux/fs.h
_BLKROGET: Final = 0x125E
_BLKRRPART: Final = 0x125F
_BLKGETSIZE64: Final = 0x80081272
_BLKGETDISKSEQ: Final = 0x80081280

# mdadm and LVM claim a device for a moment while they look at one that was just plugged in.
_BUSY_ATTEMPTS: Final = 5
_BUSY_SECONDS: Final = 0.1


class Claim(FdDisk):
    """A device open for direct reads, with ``exclusive`` also kept from everybody else until it is closed."""

    def __init__(self, fd: int, path: str, device: BlockDevice, *, exclusive: bool) -> None:
        super().__init__(fd)
        self.fd = fd
        self.path = path
        self.device = device
        self.exclusive = exclusive

    @property
    def name(self) -> str:
        return self.path

    @property
    def probe_path(self) -> str:
        """A name for other programs that leads to what is open here, wherever the links in /dev lead by now."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def open_for_write(self) -> int:
        """Another descriptor of the same device, O_RDWR | O_DIRECT. Raises `GateReadOnlyError` and `OSError`."""
        try:
            fd = os.open(self.probe_path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as err:
            if err.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise _read_only(self.path) from err
            raise
        try:
            check_same(fd, self.path, self.device)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def forget_partitions(self) -> None:
        """Have the kernel read the partition table again. Raises `OSError`."""
        fcntl.ioctl(self.fd, _BLKRRPART)


@contextmanager
def claim(path: str, device: BlockDevice, *, exclusive: bool) -> Iterator[Claim]:
    """Open ``device``, which ``path`` leads to. Raises `GateHeldError`, `GateIdentityError` and `OSError`."""
    fd = _open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | (os.O_EXCL if exclusive else 0))
    try:
        check_same(fd, path, device)
        yield Claim(fd, path, device, exclusive=exclusive)
    finally:
        os.close(fd)


@contextmanager
def open_readonly(path: str, sysfs: Sysfs = HOST) -> Iterator[Claim]:
    """Open a block device for direct reads; it may be in use, and be a dead one's successor on the next open.

    Raises `NotFoundError`, `NotBlockError`, `GateIdentityError` and `DeviceError`.
    """
    device = block_device(path, sysfs)
    fd = open_for_read(path)
    try:
        check_number(fd, path, device)
        yield Claim(fd, path, device, exclusive=False)
    finally:
        os.close(fd)


def check_number(fd: int, path: str, device: BlockDevice) -> None:
    """Raises `GateIdentityError` if the descriptor is of another device than ``path`` led to before."""
    number = os.fstat(fd).st_rdev
    if (os.major(number), os.minor(number)) != device.number:
        raise GateIdentityError(f"{path} became another device while it was opened.", hint="Try again.")


def check_same(fd: int, path: str, device: BlockDevice) -> None:
    """What is open is what was examined, not a disk that was plugged in under its number since, and can be written.

    Raises `GateIdentityError`, `GateReadOnlyError` and `OSError`.
    """
    check_number(fd, path, device)
    sequence = _ioctl_u64(fd, _BLKGETDISKSEQ) if device.sequence is not None else None
    if sequence != device.sequence or _ioctl_u64(fd, _BLKGETSIZE64) != device.size_bytes:
        raise GateIdentityError(f"{path} became another disk while it was opened.", hint="Try again.")
    if struct.unpack("i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))[0]:
        raise _read_only(path)


def _open(path: str, flags: int) -> int:
    for attempt in range(_BUSY_ATTEMPTS):
        try:
            return os.open(path, flags)
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
            if attempt == _BUSY_ATTEMPTS - 1:
                raise GateHeldError(
                    f"{path} is in use by something that the kernel does not name.",
                    hint="It may be mounted in a container, or in use by ZFS, btrfs or DRBD.",
                ) from err
        time.sleep(_BUSY_SECONDS)
    raise AssertionError("unreachable")


def _ioctl_u64(fd: int, request: int) -> int:
    value: int = struct.unpack("Q", fcntl.ioctl(fd, request, bytes(8)))[0]
    return value


def _read_only(path: str) -> GateReadOnlyError:
    return GateReadOnlyError(f"{path} is read-only.", hint="Use another disk, or see blockdev --setrw.")
