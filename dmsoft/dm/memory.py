# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that stays in place while a device is suspended: a page fault or a write-back then waits for ever. And when
there is none left, somebody has to live on who resumes it."""

import ctypes
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from dmsoft.errors import DeviceError

log = logging.getLogger(__name__)

MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
PR_SET_IO_FLUSHER: Final = 57
PR_GET_IO_FLUSHER: Final = 58

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlockall.argtypes = [ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class MemoryLockError(DeviceError):
    """Memory could not be locked, so nothing was suspended.

    While a mirror stands still, a page that has to be read from disk could wait for ever; so dmsoft locks its memory
    before. Raise the limit (ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit), or free some memory.
    """

    code = "memory-lock"


def lock() -> None:
    """Keep every page of this process, present and future, in memory. Not inherited by a fork."""
    if _libc.mlockall(MCL_CURRENT | MCL_FUTURE):
        reason = os.strerror(ctypes.get_errno())
        raise MemoryLockError(
            f"The memory of this process cannot be locked: {reason}.", hint="Raise its memory lock limit (ulimit -l)."
        )


def unlock() -> None:
    _libc.munlockall()


def set_io_flusher(on: bool) -> bool:
    """Tell the kernel that the calling thread serves block I/O, so that its allocations never wait for any.

    False if the kernel is older than 5.6 or the thread lacks CAP_SYS_RESOURCE: suspends are then a little less safe,
    which is no reason to refuse one.
    """
    if _libc.prctl(PR_SET_IO_FLUSHER, int(on), 0, 0, 0) == 0:
        return True
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.EPERM):
        raise MemoryLockError(f"prctl refused PR_SET_IO_FLUSHER: {os.strerror(number)}.")
    log.debug("no IO flusher: %s", os.strerror(number))
    return False


def spare() -> None:
    """Have the kernel never end this process to gain memory, also where it ends a control group as a whole."""
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"-1000")
    except OSError as err:  # without CAP_SYS_RESOURCE it is as likely to go as any other
        log.debug("the process is not spared when memory runs out: %s", os.strerror(err.errno or 0))


@contextmanager
def locked() -> Iterator[None]:
    """Memory locked and the calling thread marked as an I/O flusher, for the time of a suspend. Does not nest."""
    lock()
    try:
        set_io_flusher(True)
        yield
    finally:
        set_io_flusher(False)
        unlock()
