# SPDX-License-Identifier: GPL-2.0-or-later
"""Aligned O_DIRECT reads, writes and flushes of one open device, behind an interface that tests can record.

Everything is direct: a buffered read could show what another path to the same device has long replaced, and a
buffered write reports its error to whoever happens to ask next. The kernel keeps write and flush errors per open
file, so the descriptor that wrote is the one that must be flushed.
"""

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from dmsoft.errors import DeviceError, NotFoundError

ALIGNMENT: Final = 4096
"""Bytes; enough for O_DIRECT on every logical block size that device-mapper accepts."""

_CHECK = "Look at the kernel log (journalctl -k) for errors of this device, and at its cable and SMART state."


class Disk(Protocol):
    """Offsets and lengths are bytes, multiples of `ALIGNMENT`. The methods raise `OSError` as the kernel gave it."""

    @property
    def name(self) -> str:
        """What to call the device in a message."""

    def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes, fewer only where the device ends."""

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of ``data``; nothing is durable before `flush`."""

    def flush(self) -> None:
        """Everything written before is on the medium when this returns."""


class FdDisk:
    """A `Disk` on a descriptor that the caller opened, O_DIRECT or not, and still owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def name(self) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{self._fd}")
        except OSError:
            return f"file descriptor {self._fd}"

    def pread(self, length: int, offset: int) -> bytes:
        with mmap.mmap(-1, length) as buffer:
            done = 0
            while done < length:
                with memoryview(buffer)[done:] as rest:
                    count = os.preadv(self._fd, [rest], offset + done)
                done += count
                # A direct read that is cut short off an alignment met the end; asking for more would be EINVAL.
                if count == 0 or done % ALIGNMENT:
                    break
            return buffer[:done]

    def pwrite(self, data: bytes, offset: int) -> None:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            done = 0
            while done < len(data):
                with memoryview(buffer)[done:] as rest:
                    done += os.pwritev(self._fd, [rest], offset + done)

    def flush(self) -> None:
        os.fsync(self._fd)


def open_for_read(path: str | os.PathLike[str]) -> int:
    """A read-only O_DIRECT descriptor of a block device, or of a regular file (an image); the caller closes it.

    Not exclusive: members are read while they are in use. Raises `NotFoundError` and `DeviceError`.
    """
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode
        # Checked first, because opening a FIFO would wait for its writer.
        if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
            raise DeviceError(f"{name} is not a block device.", hint="Name a disk, a partition or a dm device.")
        direct = os.O_DIRECT if stat.S_ISBLK(mode) else 0
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | direct)
    except FileNotFoundError as err:
        raise NotFoundError(f"{name} does not exist.", hint="See `dmsoft devices` for what there is.") from err
    except OSError as err:
        raise failure(name, "opened", err) from err


@contextmanager
def opened(source: str | os.PathLike[str] | int | Disk) -> Iterator[Disk]:
    """``source`` as a `Disk`: a path is opened read-only for the duration, a descriptor or a disk stays open."""
    if isinstance(source, int):
        yield FdDisk(source)
    elif isinstance(source, str | os.PathLike):
        fd = open_for_read(source)
        try:
            yield FdDisk(fd)
        finally:
            os.close(fd)
    else:
        yield source


def failure(name: str, what: str, err: OSError) -> DeviceError:
    """The `DeviceError` for a system call that failed; ``what`` is a participle, such as ``read``."""
    return DeviceError(f"{name} could not be {what}: {err.strerror or err}.", hint=_CHECK)
