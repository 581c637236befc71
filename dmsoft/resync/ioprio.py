# SPDX-License-Identifier: GPL-2.0-or-later
"""The lowest of the ordinary I/O priorities, for threads that are in no hurry (ioprio_set(2)).

Schedulers that know priorities (bfq, mq-deadline) serve others first then; without one it does nothing. The idle class
would be too low: behind a steady load it gets nothing at all, and a copy has to come to its end.
"""

import contextlib
import ctypes
import platform

_NUMBERS = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "loongarch64": 30, "i686": 289, "ppc64le": 273, "s390x": 282,
            "armv7l": 314}  # fmt: skip
_WHO_PROCESS, _BEST_EFFORT, _CLASS_SHIFT, _LOWEST = 1, 2, 13, 7
_libc = ctypes.CDLL(None, use_errno=True)


def lower() -> None:
    """Lower the calling thread's priority. What does not work is left alone."""
    number = _NUMBERS.get(platform.machine())
    if number is not None:
        with contextlib.suppress(OSError):
            _libc.syscall(number, _WHO_PROCESS, 0, _BEST_EFFORT << _CLASS_SHIFT | _LOWEST)
