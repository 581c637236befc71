# SPDX-License-Identifier: GPL-2.0-or-later
"""I/O on scratch devices, and how much of it a dm-delay still holds back.

Whether a write waited is told by the delay, not by a clock: after it returned, the delay still has it or not. That
holds on the slowest of machines.
"""

import contextlib
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from dmsoft.dm.device import Device
from dmsoft.dm.status import DelayStatus
from dmsoft.errors import DeviceError
from dmsoft.mirror.running import node_path
from dmsoft.threads import launch

WRITE_BYTES: Final = 4096
_BLKDISCARD: Final = 0x1277
_WAIT_SECONDS: Final = 30.0


@contextlib.contextmanager
def opened(device: Device | str) -> Iterator[int]:
    """A device (or the one of that ``MAJOR:MINOR``) open for direct I/O."""
    path = device.path if isinstance(device, Device) else node_path(device)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def write(fd: int, offset: int, fill: int) -> None:
    """Write 4 KiB of that byte."""
    with mmap.mmap(-1, WRITE_BYTES) as buffer:
        buffer[:] = bytes([fill]) * WRITE_BYTES
        if os.pwritev(fd, [buffer], offset) != WRITE_BYTES:
            raise DeviceError("A scratch device took less than it was given.")


def read(device: Device | str, offset: int) -> bytes:
    with opened(device) as fd, mmap.mmap(-1, WRITE_BYTES) as buffer:
        os.preadv(fd, [buffer], offset)
        return buffer[:]


def discard(fd: int, offset: int, length: int) -> None:
    """Raises `OSError` where discards are not possible."""
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length))


def held(delay: Device) -> DelayStatus:
    (line,) = delay.status()
    return DelayStatus.parse(line.text)


def drained(delay: Device) -> None:
    """Wait until a delay holds nothing back."""
    wait_until(lambda: held(delay) == DelayStatus(0, 0, 0))


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise DeviceError("A scratch device did not come to rest.")
        time.sleep(0.005)


class Started:
    """An operation in a thread of its own, begun at once."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(action,), daemon=True)
        launch(self._thread)

    def _run(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as err:
            self._error = err

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Raises what it raised."""
        self._thread.join(_WAIT_SECONDS)
        if self._error is not None:
            raise self._error
        if not self.done:
            raise DeviceError("I/O on a scratch device did not end.")
