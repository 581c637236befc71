# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts about block devices as the kernel states them in sysfs.

Sizes are bytes. Names are the kernel's (``sda1``, ``dm-0``), unless a field says otherwise. The layout read here is
the kernel's Documentation/ABI/stable/sysfs-block; ``size`` is in 512-byte sectors whatever the device.
"""

import errno
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dmsoft.errors import DeviceError, NotFoundError, RefusedError
from dmsoft.units import SECTOR

Kind = Literal["disk", "partition", "dm", "md", "loop", "cdrom", "ram", "zram", "floppy"]

# Documentation/admin-guide/devices.txt; SCSI type 5 (a CD or DVD drive) is told by its major too.
_MAJORS: Final[dict[int, Kind]] = {1: "ram", 2: "floppy", 7: "loop", 11: "cdrom"}


class NotBlockError(RefusedError):
    """The path is not a block device.

    Name a disk, a partition or a device-mapper device, best by its name under /dev/disk/by-id, which stays the same
    wherever it is plugged in. A file needs a loop device (losetup).
    """

    code = "not-block"


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """One block device at one moment. ``number`` (major, minor) and ``sequence`` together name it for its lifetime.

    ``parent`` is the disk of a partition; ``partitions``, ``holders`` (devices built on this one) and ``slaves``
    (devices this one is built on) are kernel names. A read of a ``suspended`` device waits until it is resumed.
    ``sequence`` counts disks since boot, so that a disk that took the number of another is told apart; kernels before
    5.15 have none.
    """

    name: str
    path: str
    major: int
    minor: int
    size_bytes: int
    kind: Kind
    read_only: bool = False
    removable: bool = False
    rotational: bool = False
    logical_block_bytes: int = SECTOR
    physical_block_bytes: int = SECTOR
    model: str | None = None
    serial: str | None = None
    wwid: str | None = None
    bus: str | None = None
    parent: str | None = None
    partitions: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()
    slaves: tuple[str, ...] = ()
    dm_name: str | None = None
    dm_uuid: str | None = None
    suspended: bool = False
    backing_file: str | None = None
    sequence: int | None = None

    @property
    def number(self) -> tuple[int, int]:
        return self.major, self.minor

    @property
    def title(self) -> str:
        """The name a person knows the device by: the device-mapper name where there is one."""
        return self.dm_name or self.name


class Sysfs:
    """The block devices under one sysfs; ``root`` is another directory in tests."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self.root = root
        # Text from here on: each step of a path object takes as long as the read of an attribute.
        self._block = os.path.join(root, "class/block")

    def names(self, prefix: str = "") -> list[str]:
        """Kernel names, beginning with ``prefix``, of all block devices that have a number; raises `DeviceError` when
        sysfs is not there."""
        try:
            found = os.listdir(self._block)
        except OSError as err:
            raise DeviceError(f"The list of block devices cannot be read: {err}.", hint="Mount sysfs at /sys.") from err
        found = [name for name in found if name.startswith(prefix)]
        return sorted((name for name in found if os.path.exists(f"{self._directory(name)}/dev")), key=_natural)

    def device(self, name: str) -> BlockDevice:
        """The device of that kernel name; raises `NotFoundError`, or `DeviceError` when it cannot be described."""
        directory = self._directory(name)
        try:
            # Sysfs has one link on the way, and no other in what it leads to.
            return _describe(name, os.path.normpath(os.path.join(self._block, os.readlink(directory))))
        except (OSError, ValueError) as err:
            if isinstance(err, OSError) and err.errno in (errno.ENOENT, errno.ENODEV):
                raise NotFoundError(f"There is no block device named {name}.", hint=_LIST_HINT) from err
            raise DeviceError(f"The kernel's description of {name} cannot be read: {err}.") from err

    def by_number(self, major: int, minor: int) -> BlockDevice:
        """The device of that number; raises like `device`."""
        try:
            name = os.path.basename(os.readlink(os.path.join(self.root, f"dev/block/{major}:{minor}")))
        except OSError as err:
            raise NotFoundError(f"The kernel has no block device {major}:{minor}.", hint=_LIST_HINT) from err
        return self.device(name)

    def devices(self) -> list[BlockDevice]:
        """Every block device; one that disappears while the list is made is left out."""
        found = []
        for name in self.names():
            try:
                found.append(self.device(name))
            except NotFoundError:
                continue
        return found

    def below(self, device: BlockDevice) -> list[BlockDevice]:
        """All that ``device`` stands on: slaves, the disk of a partition, the device that backs a loop device.

        Raises like `device` when one of them cannot be looked at.
        """
        found: dict[str, BlockDevice] = {}
        todo = [device]
        while todo:
            current = todo.pop()
            names = [*current.slaves, *((current.parent,) if current.parent else ())]
            under = [self.device(name) for name in names]
            if current.backing_file and current.backing_file.startswith("/dev/"):
                under.append(block_device(current.backing_file, self))
            todo += [lower for lower in under if lower.name not in found]
            found |= {lower.name: lower for lower in under}
        return list(found.values())

    def is_asleep(self, device: BlockDevice) -> bool:
        """Whether a read of ``device`` would wait for something that is suspended. Raises like `below`."""
        return any(each.suspended for each in (device, *self.below(device)))

    def _directory(self, name: str) -> str:
        if not name or name in {".", ".."} or "/" in name:
            raise NotFoundError(f"'{name}' is not the name of a block device.", hint=_LIST_HINT)
        return f"{self._block}/{name}"


_LIST_HINT: Final = "See `dmsoft devices` for what this machine has."
HOST: Final = Sysfs()


def block_device(path: str | os.PathLike[str], sysfs: Sysfs = HOST) -> BlockDevice:
    """The device that ``path`` (any node or symlink to one) names.

    Raises `NotFoundError` when nothing is there, `NotBlockError` when it is something else, `DeviceError` when it
    cannot be examined.
    """
    shown = os.fspath(path)
    try:
        status = os.stat(shown)
    except (FileNotFoundError, NotADirectoryError) as err:
        raise NotFoundError(f"{shown} does not exist.", hint=_LIST_HINT) from err
    except (OSError, ValueError) as err:
        raise DeviceError(f"{shown!r} cannot be examined: {err}.") from err
    if not stat.S_ISBLK(status.st_mode):
        raise NotBlockError(f"{shown} is {_what(status.st_mode)}, not a block device.", hint=_LIST_HINT)
    return sysfs.by_number(os.major(status.st_rdev), os.minor(status.st_rdev))


def all_devices(sysfs: Sysfs = HOST) -> list[BlockDevice]:
    """Every block device of this machine, in natural order of name."""
    return sysfs.devices()


def _what(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "a regular file"
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a character device" if stat.S_ISCHR(mode) else "a special file"


def _describe(name: str, directory: str) -> BlockDevice:
    """Read one device's directory; FileNotFoundError when the device went away, ValueError on nonsense."""
    major, minor = (int(part) for part in _required(f"{directory}/dev").split(":"))
    inside = set(os.listdir(directory))
    is_partition = "partition" in inside
    # A partition has no queue and no drive of its own: those of its disk hold for it.
    disk = os.path.dirname(directory) if is_partition else directory
    is_dm = "dm" in inside
    return BlockDevice(
        name=name,
        path="/dev/" + name.replace("!", "/"),
        major=major,
        minor=minor,
        size_bytes=int(_required(f"{directory}/size")) * SECTOR,
        kind=_kind(major, directory, inside),
        read_only=_required(f"{directory}/ro") != "0",
        removable=_flag(f"{disk}/removable"),
        rotational=_flag(f"{disk}/queue/rotational"),
        logical_block_bytes=int(_text(f"{disk}/queue/logical_block_size") or SECTOR),
        physical_block_bytes=int(_text(f"{disk}/queue/physical_block_size") or SECTOR),
        model=_text(f"{disk}/device/model"),
        serial=_text(f"{disk}/device/serial") or _text(f"{disk}/serial"),
        wwid=_text(f"{disk}/device/wwid") or _text(f"{disk}/wwid"),
        bus=_bus(disk),
        parent=os.path.basename(disk) if is_partition else None,
        partitions=() if is_partition else _partitions(directory, inside),
        holders=_listing(f"{directory}/holders"),
        slaves=_listing(f"{directory}/slaves"),
        dm_name=_text(f"{directory}/dm/name") if is_dm else None,
        dm_uuid=_text(f"{directory}/dm/uuid") if is_dm else None,
        suspended=is_dm and _flag(f"{directory}/dm/suspended"),
        backing_file=_line(f"{directory}/loop/backing_file") if "loop" in inside else None,
        sequence=_sequence(disk),
    )


def _kind(major: int, directory: str, inside: Collection[str]) -> Kind:
    if "partition" in inside:
        return "partition"
    if "dm" in inside:
        return "dm"
    if "md" in inside:
        return "md"
    if os.path.basename(directory).startswith("zram"):
        return "zram"
    return _MAJORS.get(major, "disk")


def _bus(disk: str) -> str | None:
    """How the disk is attached, from the chain of devices its sysfs path names; None for virtual devices."""
    parts = disk.split("/")
    if "virtual" in parts:
        return None
    for bus in ("usb", "nvme", "virtio", "mmc", "ata", "firewire"):
        if any(part.rstrip("0123456789") == bus or part.startswith(f"{bus}_host") for part in parts[:-1]):
            return bus
    return None


def _partitions(directory: str, inside: Collection[str]) -> tuple[str, ...]:
    # The kernel names a partition after its disk; to ask every attribute would take longer than all the rest.
    disk = os.path.basename(directory)
    found = [name for name in inside if name.startswith(disk) and os.path.exists(f"{directory}/{name}/partition")]
    return tuple(sorted(found, key=_natural))


def _listing(directory: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(directory), key=_natural))
    except FileNotFoundError:
        # Partitions have no slaves directory. A missing holders directory means the device itself went away.
        if directory.endswith("/holders"):
            raise
        return ()


def _read(path: str) -> bytes:
    """An attribute, which the kernel gives in one read; a file object would take several times as long."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def _required(path: str) -> str:
    return _read(path).decode("utf-8", "replace").strip()


def _text(path: str) -> str | None:
    """The contents of an attribute that not every device has; None when it is missing, empty or fails to read.

    Some drivers answer an attribute with EIO or ENXIO (a drive that was unplugged); none of those read this way
    decides whether a device is in use.
    """
    try:
        text = _read(path).decode("utf-8", "replace").split("\0")[0]
    except OSError:
        return None
    return printable(" ".join(text.split())) or None


def _line(path: str) -> str | None:
    """A path that the kernel gives, exactly, as the file system encodes it; None when there is none."""
    try:
        return os.fsdecode(_read(path).removesuffix(b"\n")) or None
    except OSError:
        return None


def _flag(path: str) -> bool:
    return (_text(path) or "0") != "0"


def _sequence(disk: str) -> int | None:
    text = _text(f"{disk}/diskseq")
    return int(text) if text else None


def printable(text: str) -> str:
    """``text`` that came from a disk or a user, without anything that a terminal or JSON could choke on."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def _natural(name: str) -> tuple[str, int, str]:
    """Sort key that puts sda2 before sda10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1), name
