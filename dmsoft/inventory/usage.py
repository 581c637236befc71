# SPDX-License-Identifier: GPL-2.0-or-later
"""Who uses a block device now: mounts, swap, loop devices and the devices built on it.

Everything is compared by device number, never by name: names in /proc are those of the moment of the mount. What
the kernel keeps to itself (a mount in another namespace, a claim by a module) shows only in an exclusive open,
which is the gate's part.
"""

import glob
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from dmsoft.errors import DeviceError, NotFoundError
from dmsoft.inventory.sysfs import HOST, BlockDevice, Sysfs, printable

Number = tuple[int, int]

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_BLANKS: Final = re.compile(r"[ \t]+")
_DELETED: Final = " (deleted)"


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a device. ``device`` is the kernel name it is on (the device asked for, or a part or the whole of
    it), ``holder`` the device built on that, and ``text`` says how, after "in use:".
    """

    kind: Literal["mounted", "swap", "held"]
    device: str
    text: str
    holder: BlockDevice | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What was in use at one moment: numbers of mounted and swap devices, and loop devices by what they stand on."""

    sysfs: Sysfs
    mounts: Mapping[Number, tuple[str, ...]] = field(default_factory=dict)
    swaps: frozenset[Number] = frozenset()
    loops: Mapping[Number, tuple[BlockDevice, ...]] = field(default_factory=dict)
    btrfs: frozenset[str] = frozenset()

    @classmethod
    def read(cls, sysfs: Sysfs = HOST, proc: Path = Path("/proc")) -> "Usage":
        """Look now; raises `DeviceError` when anything that has to be asked cannot be."""
        try:
            # As bytes: a carriage return in the name of a mount point ends no line.
            mounts = parse_mountinfo(os.fsdecode((proc / "self/mountinfo").read_bytes()))
            swaps = parse_swaps(os.fsdecode((proc / "swaps").read_bytes()))
        except FileNotFoundError as err:
            if err.filename is None or not str(err.filename).endswith("swaps"):
                raise DeviceError(f"What is mounted cannot be read: {err}.") from err
            swaps = []  # a kernel without swap has no such file
        except (OSError, ValueError) as err:
            raise DeviceError(f"What is in use cannot be read: {err}.") from err
        return cls(sysfs, _mounted(mounts, sysfs), _swapped(swaps, sysfs), _loops(sysfs), _btrfs(sysfs))

    def uses(self, device: BlockDevice, but: Callable[[BlockDevice], bool] = lambda _: False) -> list[Use]:
        """Every use of ``device``, of its partitions, and of the whole disk it is a partition of; ``but`` says which
        holders of the device itself do not count.

        Raises `DeviceError` or `NotFoundError` when a device that has to be looked at cannot be.
        """
        found = list(self._direct(device, "", but))
        for name in device.partitions:
            found += self._direct(self.sysfs.device(name), f"its partition {name} is ")
        if device.parent is not None:
            found += self._direct(self.sysfs.device(device.parent), f"its disk {device.parent} is ")
        return found

    def _direct(
        self, device: BlockDevice, prefix: str, but: Callable[[BlockDevice], bool] = lambda _: False
    ) -> Iterator[Use]:
        for mountpoint in self.mounts.get(device.number, ()):
            yield Use("mounted", device.name, f"{prefix}mounted at {printable(mountpoint)}")
        if device.name in self.btrfs and device.number not in self.mounts:
            yield Use("mounted", device.name, f"{prefix}part of a mounted btrfs")
        if device.number in self.swaps:
            yield Use("swap", device.name, f"{prefix}in use as swap")
        for name in device.holders:
            holder = self.sysfs.device(name)
            if not but(holder):
                yield Use("held", device.name, f"{prefix}held by {self._chain(holder)}", holder)
        for loop in self.loops.get(device.number, ()):
            yield Use("held", device.name, f"{prefix}held by {self._chain(loop)}", loop)

    def _chain(self, holder: BlockDevice) -> str:
        """The holder, and what uses it in the end: a person looks for the mount, not for dm-3."""
        seen: set[str] = set()
        ends: list[str] = []
        todo = [holder]
        while todo:
            device = todo.pop()
            if device.name in seen:
                continue
            seen.add(device.name)
            ends += [f"mounted at {printable(point)}" for point in self.mounts.get(device.number, ())]
            ends += ["swap"] if device.number in self.swaps else []
            todo += [self.sysfs.device(name) for name in (*device.holders, *device.partitions)]
        title = f"{holder.name} ({holder.dm_name})" if holder.dm_name else holder.name
        return f"{title}, {', '.join(ends)}" if ends else title


def users(device: BlockDevice, usage: Usage | None = None) -> list[str]:
    """Why ``device`` is in use, a phrase for each reason; empty when nothing known uses it. Raises like `Usage`."""
    return [use.text for use in (usage or Usage.read()).uses(device)]


@dataclass(frozen=True, slots=True)
class Mount:
    number: Number
    mountpoint: str
    source: str


def parse_mountinfo(text: str) -> list[Mount]:
    """The lines of /proc/PID/mountinfo (proc(5)); raises ValueError for a line of another shape."""
    found = []
    for line in text.split("\n")[:-1]:
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 2:
            raise ValueError(f"mountinfo has the line {line!r}")
        major, _, minor = fields[2].partition(":")
        found.append(Mount((int(major), int(minor)), _unescape(fields[4]), _unescape(tail[1])))
    return found


def parse_swaps(text: str) -> list[str]:
    """Paths in /proc/swaps that are devices, not files; raises ValueError like `parse_mountinfo`."""
    found = []
    for line in text.split("\n")[1:-1]:
        fields = _BLANKS.split(line)
        if len(fields) < 5:
            raise ValueError(f"swaps has the line {line!r}")
        if fields[1] != "file":
            found.append(_unescape(fields[0]))
    return found


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _mounted(mounts: list[Mount], sysfs: Sysfs) -> dict[Number, tuple[str, ...]]:
    found: dict[Number, list[str]] = {}
    for mount in mounts:
        numbers = {mount.number}
        # btrfs and bcachefs show an anonymous number; their source names the device, or several joined by colons.
        if mount.number[0] == 0:
            numbers |= {number for part in mount.source.split(":") if (number := _number_of(part, sysfs))}
        for number in numbers:
            points = found.setdefault(number, [])
            if mount.mountpoint not in points:
                points.append(mount.mountpoint)
    return {number: tuple(points) for number, points in found.items()}


def _swapped(paths: list[str], sysfs: Sysfs) -> frozenset[Number]:
    found = set()
    for path in paths:
        number = _number_of(path, sysfs)
        if number is None:
            raise DeviceError(f"The kernel swaps on {path}, which cannot be found.", hint="See /proc/swaps.")
        found.add(number)
    return frozenset(found)


def _loops(sysfs: Sysfs) -> dict[Number, tuple[BlockDevice, ...]]:
    """Loop devices whose backing file is itself a block device: they claim nothing, so no holder shows them."""
    found: dict[Number, tuple[BlockDevice, ...]] = {}
    for name in sysfs.names("loop"):
        # Describing every device of a large machine would take longer than all the rest of the gate.
        if not os.path.exists(os.path.join(sysfs.root, f"class/block/{name}/loop/backing_file")):
            continue
        try:
            device = sysfs.device(name)
        except NotFoundError:
            continue  # let go meanwhile
        number = _number_of(device.backing_file, sysfs) if device.backing_file else None
        if number is not None:
            found[number] = (*found.get(number, ()), device)
    return found


def _btrfs(sysfs: Sysfs) -> frozenset[str]:
    """Kernel names of the devices of every mounted btrfs; mountinfo names one of each at most."""
    places = os.path.join(glob.escape(os.fspath(sysfs.root)), "fs/btrfs/*/devices/*")
    return frozenset(map(os.path.basename, glob.iglob(places)))


def _number_of(path: str, sysfs: Sysfs) -> Number | None:
    """The number of the block device at ``path``, None when it is none; only /dev is looked at, it cannot hang."""
    if not path.startswith("/dev/"):
        return None
    name = path.removesuffix(_DELETED)
    try:
        status = os.stat(name)
    except OSError:
        # The node may be gone or in another mount namespace while the device is still in use.
        try:
            return sysfs.device(name.removeprefix("/dev/").replace("/", "!")).number
        except (NotFoundError, DeviceError):
            return None
    return (os.major(status.st_rdev), os.minor(status.st_rdev)) if stat.S_ISBLK(status.st_mode) else None
