# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests inside a VM share: its disks, its kernel log, and a guest as clean after a test as before it."""

import errno
import fcntl
import os
import re
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmsoft.units import MIB, parse_size

# Serials and sizes of the disks every guest suite gets (``--disk SIZE:SERIAL``), all sparse and empty:
# a primary, three secondaries of its size, a cache device, one disk too small for anything, one larger than RAM.
DISKS = {"p0": "96M", "s0": "96M", "s1": "96M", "s2": "96M", "c0": "32M", "small0": "32M", "big0": "64G"}

_BY_ID = Path("/dev/disk/by-id")
_DRIVER = Path("/sys/bus/virtio/drivers/virtio_blk")
_BLKDISCARD, _BLKZEROOUT = 0x1277, 0x127F
# What the kernel says when it is at fault, or when something of ours kept it waiting.
_FAULT = re.compile(
    r"BUG:|WARNING:|Oops|general protection|blocked for more than|hung task|"
    r"(?:possible|circular|recursive) .*lock|inconsistent lock state|suspicious RCU|list_(?:add|del) corruption"
)


def wait_for(path: Path, present: bool, seconds: float = 30) -> None:
    """Wait until udev has made ``path``, or taken it away."""
    deadline = time.monotonic() + seconds
    while path.exists() is not present:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not {'appear' if present else 'go away'} within {seconds:g} s")
        time.sleep(0.02)


def settle() -> None:
    """Until udev has done all it was to do. It was seen to hang up on who asks for that ("Broken pipe"), and to be well
    right after: so it is asked once more."""
    command = ["udevadm", "settle", "--timeout=60"]
    if subprocess.run(command, check=False).returncode:
        subprocess.run(command, check=True)


def wipe(device: Path) -> None:
    """Make every byte of a disk zero: a discard frees the sparse file behind it, and QEMU reads a hole as zeros."""
    descriptor = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        fcntl.ioctl(descriptor, _BLKDISCARD, struct.pack("=QQ", 0, size))
        # A discard is a hint alone; signatures at either end must be gone for certain.
        for start in (0, size - MIB):
            fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", start, MIB))
    finally:
        os.close(descriptor)


class Disks:
    """The suite's disks by serial, and their cables."""

    def __init__(self) -> None:
        self._unplugged: dict[str, str] = {}
        self._wiped: dict[str, list[str]] = {}

    def __getitem__(self, serial: str) -> Path:
        """``/dev/disk/by-id/virtio-SERIAL``; KeyError for a disk the guest suite does not have."""
        if serial not in DISKS:
            raise KeyError(serial)
        return _BY_ID / f"virtio-{serial}"

    def __iter__(self) -> Iterator[str]:
        return iter(DISKS)

    def size(self, serial: str) -> int:
        """Bytes of that disk."""
        return parse_size(DISKS[serial])

    def unplug(self, serial: str) -> None:
        """Take the disk from the driver, in use or not: its device is gone, and all I/O to it fails from now on."""
        node = self[serial].resolve(strict=True)
        virtio = (Path("/sys/class/block") / node.name / "device").resolve(strict=True).name
        self._wiped.pop(serial, None)
        (_DRIVER / "unbind").write_text(virtio)
        self._unplugged[serial] = virtio
        wait_for(self[serial], present=False)

    def replug(self, serial: str) -> None:
        """Give the disk back with what was on it, perhaps under another ``vdX``; returns once udev knows it."""
        virtio = self._unplugged.pop(serial)
        (_DRIVER / "bind").write_text(virtio)
        wait_for(self[serial], present=True)
        settle()

    def reset(self) -> None:
        """Plug in what is out, and wipe all disks that were written since they were. Raises OSError for one in use."""
        for serial in list(self._unplugged):
            self.replug(serial)
        for serial in self:
            if self._writes(serial) != self._wiped.get(serial):
                wipe(self[serial])
                self._wiped[serial] = self._writes(serial)
        settle()

    def _writes(self, serial: str) -> list[str]:
        """What the kernel counts of writes and discards since it was plugged in (Documentation/block/stat.rst)."""
        fields = (Path("/sys/class/block") / self[serial].resolve(strict=True).name / "stat").read_text().split()
        return fields[4:7] + fields[11:14]


class KernelLog:
    """The kernel's messages from the moment of its making on."""

    def __init__(self) -> None:
        self._log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._log, 0, os.SEEK_END)
        self._lines: list[str] = []

    def lines(self) -> list[str]:
        """All messages so far, without their prefix (Documentation/ABI/testing/dev-kmsg)."""
        while True:
            try:
                record = os.read(self._log, 8192).decode(errors="replace")
            except BlockingIOError:
                return self._lines
            except OSError as error:
                # EPIPE: records were overwritten before they were read; reading goes on at the oldest.
                if error.errno != errno.EPIPE:
                    raise
                self._lines.append("(messages lost)")
                continue
            self._lines.append(record.partition(";")[2].split("\n", 1)[0])

    def faults(self, allow: str | None = None) -> list[str]:
        """The messages that speak of a fault, but for those that ``allow`` (a regular expression) finds."""
        found = [line for line in self.lines() if _FAULT.search(line)]
        return [line for line in found if not (allow and re.search(allow, line))]

    def close(self) -> None:
        os.close(self._log)


@dataclass(frozen=True)
class Inventory:
    """What can be left over: dm devices, loop devices with a file, and mount points."""

    dm: frozenset[str]
    loops: frozenset[str]
    mounts: tuple[str, ...]

    @classmethod
    def now(cls) -> "Inventory":
        blocks = Path("/sys/block")
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return cls(
            frozenset(f.read_text().strip() for f in blocks.glob("dm-*/dm/name")),
            frozenset(f"/dev/{folder.parent.name}" for folder in blocks.glob("loop*/loop")),
            tuple(mounts),
        )


def clean(before: Inventory) -> list[str]:
    """Remove what appeared since ``before``, whatever state it is in; returns the names of what resisted."""
    if Inventory.now() == before:
        return []
    _resume(before)
    for mount in reversed(_since(before).mounts):
        _try("umount", mount) or _try("umount", "--lazy", mount)
    # A device goes only after those on top of it, which have the higher numbers as a rule; --force puts an error table
    # below what still has it open. Without a cookie, udev starts no programs for each.
    for _ in range(10):
        left = _since(before)
        if left.dm:
            _try("dmsetup", "remove", "--noudevsync", *_newest_first(left.dm))
        for loop in left.loops:
            _try("losetup", "--detach", loop)
        for name in _newest_first(_since(before).dm):
            _try("dmsetup", "remove", "--noudevsync", name)
        if not _since(before).dm:
            break
    for name in _since(before).dm:
        _try("dmsetup", "remove", "--force", "--retry", name)
    settle()
    rest = _since(before)
    return [*rest.dm, *rest.loops, *rest.mounts]


def _newest_first(names: frozenset[str]) -> list[str]:
    numbers = {f.read_text().strip(): int(f.parts[-3][3:]) for f in Path("/sys/block").glob("dm-*/dm/name")}
    return sorted(names, key=lambda name: -numbers.get(name, 0))


def _since(before: Inventory) -> Inventory:
    now = Inventory.now()
    mounts = tuple(mount for mount in now.mounts if mount not in before.mounts)
    return Inventory(now.dm - before.dm, now.loops - before.loops, mounts)


def _resume(before: Inventory) -> None:
    """A device that stays suspended blocks everything else here; what lies deepest must move first."""
    for folder in sorted(Path("/sys/block").glob("dm-*"), key=lambda folder: int(folder.name[3:])):
        name = (folder / "dm/name").read_text().strip()
        if name not in before.dm and (folder / "dm/suspended").read_text().strip() == "1":
            _try("dmsetup", "resume", "--noudevsync", name)


def _try(*argv: str) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
