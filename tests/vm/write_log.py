# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk whose write cache can be lost: dm-log-writes records what reached it, and the log gives the disk back as a
power cut would have left it.

dm-log-writes logs a plain write only when a flush follows it, so what the log holds at a moment is what survives a
cut at that moment, the worst order included. Format: the kernel's drivers/md/dm-log-writes.c.
"""

import os
import struct
import time
from collections.abc import Iterator

from tests.harness.guestkit import settle
from tests.vm.rig import read, sh, write

_MAGIC = 0x6A736677736872
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
_SECTOR = 512
_ALIGN = 4096


class LoggedDisk:
    """The dm device ``name`` on ``disk``, its writes recorded on ``log``; sizes are those of ``disk``, in bytes."""

    def __init__(self, name: str, disk: str, log: str, size_bytes: int) -> None:
        self.name, self.disk, self.log, self.size_bytes = name, disk, log, size_bytes
        sh("modprobe", "dm-log-writes")
        self._load(f"log-writes {disk} {log}")

    @property
    def path(self) -> str:
        return f"/dev/mapper/{self.name}"

    def entries(self) -> int:
        """How many entries are logged; waits until the log's own thread has caught up."""
        before = -1
        while (now := int(sh("dmsetup", "status", self.name).split()[3])) != before:
            before = now
            time.sleep(0.2)
        return now

    def power_cut(self, entries: int, spare: str) -> None:
        """The device leads to ``spare`` now, which holds what the first ``entries`` of the log leave of the disk.

        The disk was blank when the log began."""
        sh("dmsetup", "remove", "--retry", self.name)
        for start in range(0, self.size_bytes, 1 << 20):
            write(spare, start, bytes(1 << 20))
        self._replay(entries, spare)
        self._load(f"linear {spare} 0")

    def flushes(self, first: int, last: int) -> Iterator[bytes]:
        """What a power cut leaves of the disk after each flush among the entries ``first`` .. ``last`` of the log, and
        before the first of them. The disk was blank when the log began, and the device is removed by now."""
        image = bytearray(self.size_bytes)
        for number, (offset, data, flags) in enumerate(self._requests(last)):
            if number >= first and flags & (_FLUSH | _FUA):
                yield bytes(image)
            image[offset : offset + len(data)] = data
        yield bytes(image)

    def remove(self) -> None:
        sh("dmsetup", "remove", "--retry", self.name)

    def _load(self, target: str) -> None:
        sh("dmsetup", "create", self.name, data=f"0 {self.size_bytes // _SECTOR} {target}\n".encode())
        settle()

    def _replay(self, entries: int, spare: str) -> None:
        fd = os.open(spare, os.O_RDWR)
        try:
            for offset, data, _ in self._requests(entries):
                os.pwrite(fd, data, offset)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _requests(self, entries: int) -> Iterator[tuple[int, bytes, int]]:
        """Offset, data and flags of the first ``entries`` of the log; discards and marks have no data here."""
        magic, _, _, sector_size = _SUPER.unpack_from(read(self.log, 0, _ALIGN))
        assert magic == _MAGIC and sector_size == _SECTOR
        at = sector_size
        for _ in range(entries):
            start, count, flags, _ = _ENTRY.unpack(self._bytes(at, _ENTRY.size))
            at += sector_size
            size = 0 if flags & _DISCARD else count * _SECTOR
            data = self._bytes(at, size) if size and not flags & _MARK else b""
            at += size
            yield start * _SECTOR, data, flags

    def _bytes(self, offset: int, length: int) -> bytes:
        first = offset // _ALIGN * _ALIGN
        last = -(-(offset + length) // _ALIGN) * _ALIGN
        return read(self.log, first, last - first)[offset - first : offset - first + length]
