# SPDX-License-Identifier: GPL-2.0-or-later
"""A secondary as it lies on its disk, looked at without changing a byte of it: its data region, read-only, under a
device-mapper snapshot that takes what a mount or a recovery writes."""

import fcntl
import json
import struct
import time
from pathlib import Path

from dmsoft.mirror.lock import locked
from tests.harness.guestkit import settle
from tests.load.work import LONG_SECONDS, WorkError, do

MKFS = {"ext4": ("mkfs.ext4", "-q", "-F", "-E", "nodiscard"), "xfs": ("mkfs.xfs", "-q", "-f", "-K")}
_OPTIONS = {"ext4": "errors=remount-ro", "xfs": "nouuid"}
_CHUNK_SECTORS = 32
_BUSY_SECONDS = 120
_FIEMAP = 0xC020660B  # linux/fs.h: the request, and struct fiemap with one extent
_HEAD, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQ32x")


class Image:
    """The file system in the data region of the member ``disk`` of the mirror ``uuid``, mounted at ``mountpoint`` while
    the block runs; what is written to it goes to ``store``, a device for nothing else; a context manager."""

    def __init__(self, kind: str, disk: Path, uuid: str, store: Path, mountpoint: Path) -> None:
        self._kind, self._disk, self._uuid = kind, disk, uuid
        self._store, self._mountpoint = store, mountpoint

    def __enter__(self) -> "Image":
        found = json.loads(do("dmsoft", "examine", self._disk, "--json"))
        start, sectors = found["data_offset_bytes"] // 512, found["data_bytes"] // 512
        do("blkdiscard", self._store)
        # A copy that began before would go on. From then on the disk is another's, and none begins.
        with locked(self._uuid, "operation", timeout=LONG_SECONDS, verb="look"):
            do("dmsetup", "create", "look", "--readonly", "--table", f"0 {sectors} linear {self._disk} {start}")
        do("dmsetup", "create", "copy", "--table",
           f"0 {sectors} snapshot /dev/mapper/look {self._store} N {_CHUNK_SECTORS}")  # fmt: skip
        settle()
        self._mountpoint.mkdir(exist_ok=True)
        self._mount()
        return self

    def __exit__(self, *exception: object) -> None:
        """After what was recovered from its log at the mount, the file system must be without a fault."""
        try:
            unmount(self._mountpoint)
            if exception[0] is None:
                check(self._kind, Path("/dev/mapper/copy"))
        finally:
            for name in ("copy", "look"):
                do("dmsetup", "remove", "--retry", name)

    def _mount(self) -> None:
        do("mount", "-t", self._kind, "-o", _OPTIONS[self._kind], "/dev/mapper/copy", self._mountpoint)

    def damage(self, path: Path) -> None:
        """Change one byte of a file in it, which the file system does not hear of."""
        place = _place(path)
        unmount(self._mountpoint)
        with open("/dev/mapper/copy", "r+b", buffering=0) as device:
            device.seek(place)
            byte = device.read(1)
            device.seek(place)
            device.write(bytes([byte[0] ^ 1]))
        do("blockdev", "--flushbufs", "/dev/mapper/copy")
        self._mount()


def _place(path: Path) -> int:
    """Where on the device the file begins, in bytes."""
    request = bytearray(_HEAD.pack(0, 1, 1, 0, 1, 0) + bytes(_EXTENT.size))
    with path.open("rb") as file:
        fcntl.ioctl(file, _FIEMAP, request)
    _, physical, length = _EXTENT.unpack_from(request, _HEAD.size)
    if not length:
        raise WorkError(f"{path} has no place on its disk")
    return int(physical)


def mount(kind: str, device: str, mountpoint: Path) -> None:
    do(*MKFS[kind], device)
    mountpoint.mkdir(exist_ok=True)
    do("mount", "-t", kind, device, mountpoint)


def unmount(mountpoint: Path) -> None:
    """Some of stress-ng's stressors look at every file system that is mounted, and keep it busy for seconds."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            do("umount", mountpoint)
        except WorkError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return


def check(kind: str, device: Path) -> None:
    """The file system's own check of one that is not mounted, which changes nothing."""
    settle()
    do(*{"ext4": ("e2fsck", "-fn"), "xfs": ("xfs_repair", "-n")}[kind], device)
