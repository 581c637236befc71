# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk still has after a power cut that takes its write cache.

QEMU's ``blklogwrites`` writes down every request to a disk in the format of the kernel's dm-log-writes
(drivers/md/dm-log-writes.c): a superblock, then entries in the order the disk got them, each one sector long and
followed by its data. Played back up to the last flush, the log gives the image a disk with a volatile cache may show.
"""

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_MAGIC = 0x6A736677736872
# Magic, version, number of entries, sector size; the number is rewritten only now and then, so it is not used.
_SUPER = struct.Struct("<QQQI")
# Place and length in sectors of the log, flags, length of a mark's text.
_ENTRY = struct.Struct("<QQQQ")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Request:
    """One request to the disk, in bytes; the data of a write lies at ``data`` in the log."""

    offset: int
    length: int
    flags: int
    data: int


def requests(log: Path) -> Iterator[Request]:
    """Every request of a log, also of one that was cut off. Raises ValueError for another file."""
    with log.open("rb") as file:
        head = file.read(_SUPER.size)
        if not head:  # QEMU begins it at the first write or flush
            return
        if len(head) < _SUPER.size:
            raise ValueError(f"{log} is not a log of writes")
        magic, version, _, sector = _SUPER.unpack(head)
        if magic != _MAGIC or version != 1:
            raise ValueError(f"{log} is not a log of writes")
        at = sector
        while True:
            file.seek(at)
            head = file.read(_ENTRY.size)
            if len(head) < _ENTRY.size or not any(head):
                return
            first, count, flags, _ = _ENTRY.unpack(head)
            at += sector
            yield Request(first * sector, count * sector, flags, at)
            if not flags & DISCARD:
                at += count * sector


def lose_cache(log: Path, image: Path, kept: Callable[[Request], bool] = lambda _: False) -> int:
    """Play ``log`` onto ``image``, the disk as it was when the log began, as if the power had been cut at its end.

    A request that was flushed, or written through the cache (FUA), is on the medium for certain; of each later one
    ``kept`` decides, since a cache may write back what it likes. Returns the bytes that were lost.
    """
    done = list(requests(log))
    last_flush = max((number for number, request in enumerate(done) if request.flags & FLUSH), default=-1)
    lost = 0
    with log.open("rb") as source, image.open("r+b") as target:
        for number, request in enumerate(done):
            if number < last_flush or request.flags & FUA or kept(request):
                _apply(request, source.fileno(), target.fileno())
            else:
                lost += request.length
    return lost


def _apply(request: Request, source: int, target: int) -> None:
    for offset in range(0, request.length, _CHUNK):
        length = min(_CHUNK, request.length - offset)
        data = bytes(length) if request.flags & DISCARD else os.pread(source, length, request.data + offset)
        os.pwrite(target, data, request.offset + offset)
