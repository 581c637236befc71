# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of devices, waited for without asking any target anything.

``DM_DEV_WAIT`` answers with the status of the live table, which on a suspended era device blocks for ever. The
control device can be polled instead (``DM_DEV_ARM_POLL``, Linux 4.14): it wakes at any event of any device, and the
event number then tells whether it was ours.
"""

import fcntl
import os
import select
import struct
from typing import Final, Self

from dmsoft.dm import libdevmapper
from dmsoft.dm.failures import failure

# _IOWR(0xfd, 16, struct dm_ioctl); the structure is 312 bytes: version[3], data_size, data_start, ...
_ARM_POLL: Final = 0xC138FD10
_IOCTL_BYTES: Final = 312
_HEAD = struct.Struct("=5I")


class EventPoll:
    """An open control device; ``arm`` before looking at event numbers, then ``wait``."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(libdevmapper.CONTROL, os.O_RDWR | os.O_CLOEXEC)
        except OSError as err:
            raise failure("open", libdevmapper.CONTROL, err.errno or 0) from err
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    def arm(self) -> None:
        """Forget events that have happened: `wait` returns for those that come after this."""
        request = bytearray(_IOCTL_BYTES)
        _HEAD.pack_into(request, 0, 4, 37, 0, _IOCTL_BYTES, _IOCTL_BYTES)
        try:
            fcntl.ioctl(self._fd, _ARM_POLL, request)
        except OSError as err:
            raise failure("arm", libdevmapper.CONTROL, err.errno or 0) from err

    def wait(self, timeout: float) -> bool:
        """Whether an event of some device came within ``timeout`` seconds."""
        return bool(self._poll.poll(max(0, int(timeout * 1000))))
