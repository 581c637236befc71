# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of libdevmapper that dmsoft uses, bound with ctypes: the calls, the log, udev cookies.

Written against libdevmapper.h of 1.02.185 (Debian 12) and later, soname libdevmapper.so.1.02.1.

Threads. The library keeps unguarded global state: the control file descriptor and its version check (set once, by
`prepare`), the list of device nodes still to be made or removed, the udev probe (set once). Only tasks that address a
device by NAME put something on that list, and ``MKNODES``, ``dm_task_update_nodes`` and the cookie waits work it off.
Therefore a device is addressed by uuid or number once it exists, and what does touch the list runs under one lock. A
suspend, resume or wait that blocks for minutes holds no lock and no interpreter lock, and other threads go on.
A thread in an ioctl that never returns cannot be ended, and keeps the process from ending: see `dmsoft.dm.helper`.
"""

import ctypes
import enum
import logging
import os
import threading
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_int32, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any, Final

from dmsoft.errors import DeviceError

log = logging.getLogger(__name__)

SONAME: Final = "libdevmapper.so.1.02.1"
CONTROL: Final = "/dev/mapper/control"

# Flags that ride on a udev cookie (libdevmapper.h, DM_UDEV_*).
DISABLE_DISK_RULES: Final = 0x0004
DISABLE_OTHER_RULES: Final = 0x0008
DISABLE_LIBRARY_FALLBACK: Final = 0x0020

_MANGLING_NONE: Final = 0
_LOG_WARNING: Final = 4


class TaskType(enum.IntEnum):
    """``DM_DEVICE_*``, in the order of libdevmapper.h."""

    CREATE = 0
    RELOAD = 1
    REMOVE = 2
    REMOVE_ALL = 3
    SUSPEND = 4
    RESUME = 5
    INFO = 6
    DEPS = 7
    RENAME = 8
    VERSION = 9
    STATUS = 10
    TABLE = 11
    WAITEVENT = 12
    LIST = 13
    CLEAR = 14
    MKNODES = 15
    LIST_VERSIONS = 16
    TARGET_MSG = 17


class DmInfo(ctypes.Structure):
    """``struct dm_info`` as of symbol version DM_1_02_97, which dlsym resolves to."""

    _fields_ = (
        ("exists", c_int),
        ("suspended", c_int),
        ("live_table", c_int),
        ("inactive_table", c_int),
        ("open_count", c_int32),
        ("event_nr", c_uint32),
        ("major", c_uint32),
        ("minor", c_uint32),
        ("read_only", c_int),
        ("target_count", c_int32),
        ("deferred_remove", c_int),
        ("internal_suspend", c_int),
    )


class DmError(DeviceError):
    """The device-mapper library is missing or could not do its part.

    The message says which call it was. If the library is installed, the machine is short of memory or of semaphores:
    `dmsetup udevcookies` lists those that others left behind.
    """

    code = "libdevmapper"


def check_true(result: Any, function: Any, _arguments: Any) -> Any:
    if not result:
        raise DmError(f"libdevmapper refused {function.__name__}.")
    return result


Checker = Callable[[Any, Any, Any], Any]
LogFunction = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_int, c_int, c_char_p)
_pointer_u32 = ctypes.POINTER(c_uint32)
_pointer_u64 = ctypes.POINTER(c_uint64)
_pointer_text = ctypes.POINTER(c_char_p)

SIGNATURES: Final[dict[str, tuple[list[Any], Any, Checker | None]]] = {
    "dm_task_create": ([c_int], c_void_p, check_true),
    "dm_task_destroy": ([c_void_p], None, None),
    "dm_task_set_name": ([c_void_p, c_char_p], c_int, check_true),
    "dm_task_set_uuid": ([c_void_p, c_char_p], c_int, check_true),
    "dm_task_set_major_minor": ([c_void_p, c_int, c_int, c_int], c_int, check_true),
    "dm_task_set_ro": ([c_void_p], c_int, check_true),
    "dm_task_set_cookie": ([c_void_p, _pointer_u32, c_uint16], c_int, check_true),
    "dm_task_set_event_nr": ([c_void_p, c_uint32], c_int, check_true),
    "dm_task_set_message": ([c_void_p, c_char_p], c_int, check_true),
    "dm_task_set_sector": ([c_void_p, c_uint64], c_int, check_true),
    "dm_task_no_flush": ([c_void_p], c_int, check_true),
    "dm_task_no_open_count": ([c_void_p], c_int, check_true),
    "dm_task_skip_lockfs": ([c_void_p], c_int, check_true),
    "dm_task_query_inactive_table": ([c_void_p], c_int, check_true),
    "dm_task_retry_remove": ([c_void_p], c_int, check_true),
    "dm_task_deferred_remove": ([c_void_p], c_int, check_true),
    "dm_task_add_target": ([c_void_p, c_uint64, c_uint64, c_char_p, c_char_p], c_int, check_true),
    "dm_task_run": ([c_void_p], c_int, None),
    "dm_task_get_errno": ([c_void_p], c_int, None),
    "dm_task_get_info": ([c_void_p, ctypes.POINTER(DmInfo)], c_int, check_true),
    "dm_task_get_name": ([c_void_p], c_char_p, None),
    "dm_task_get_uuid": ([c_void_p], c_char_p, None),
    "dm_task_get_deps": ([c_void_p], c_void_p, check_true),
    "dm_task_get_names": ([c_void_p], c_void_p, check_true),
    "dm_task_get_versions": ([c_void_p], c_void_p, check_true),
    "dm_task_get_message_response": ([c_void_p], c_char_p, None),
    "dm_task_update_nodes": ([], None, None),
    "dm_get_next_target": (
        [c_void_p, c_void_p, _pointer_u64, _pointer_u64, _pointer_text, _pointer_text],
        c_void_p,
        None,
    ),
    "dm_get_library_version": ([c_char_p, c_size_t], c_int, check_true),
    "dm_hold_control_dev": ([c_int], None, None),
    "dm_set_name_mangling_mode": ([c_int], c_int, check_true),
    "dm_log_with_errno_init": ([LogFunction], None, None),
    "dm_udev_get_sync_support": ([], c_int, None),
    "dm_udev_create_cookie": ([_pointer_u32], c_int, check_true),
    "dm_udev_complete": ([c_uint32], c_int, None),
    "dm_udev_wait_immediate": ([c_uint32, ctypes.POINTER(c_int)], c_int, check_true),
}


def _log(level: int, file: bytes, line: int, _errno: int, text: bytes) -> None:
    """The library's log. Its text is a printf format whose arguments a callback cannot read.

    A device may be suspended while this runs: only what went wrong is passed on, and only if debug logging is on.
    """
    if level & 7 <= _LOG_WARNING and log.isEnabledFor(logging.DEBUG):
        log.debug("libdevmapper %s:%d: %s", file.decode(), line, text.decode(errors="replace"))


# Kept for the life of the process: the library calls it.
_LOG: Final = LogFunction(_log)


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(SONAME, use_errno=True)
    except OSError:
        return None
    for name, (arguments, result, checker) in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = result
        if checker is not None:
            function.errcheck = checker
    library.dm_log_with_errno_init(_LOG)
    library.dm_set_name_mangling_mode(_MANGLING_NONE)
    library.dm_hold_control_dev(1)
    return library


# Loaded with the module, not at first use: nothing is read from a disk once a device is suspended.
_LIBRARY: Final = _load()
nodes = threading.RLock()


def _after_fork() -> None:
    global nodes  # noqa: PLW0603  # a lock held by another thread of the parent has no owner in the child
    nodes = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def library() -> ctypes.CDLL:
    if _LIBRARY is None:
        raise DmError(f"{SONAME} is not installed.", hint="Install libdevmapper (Debian: libdevmapper1.02.1).")
    return _LIBRARY


def library_version() -> str:
    buffer = ctypes.create_string_buffer(64)
    library().dm_get_library_version(buffer, len(buffer))
    return buffer.value.decode()


def udev_runs() -> bool:
    """Whether cookies work; the library asks udev once in the life of the process."""
    return bool(library().dm_udev_get_sync_support())


def update_nodes() -> None:
    """Make and remove the device nodes that tasks without udev left to do."""
    with nodes:
        library().dm_task_update_nodes()


def create_cookie() -> int:
    """A new cookie, 0 where udev does not run."""
    cookie = c_uint32(0)
    library().dm_udev_create_cookie(ctypes.byref(cookie))
    return cookie.value


def cookie_ready(cookie: int) -> bool:
    """Whether udev is done with everything ``cookie`` was set on; if so, its semaphore is gone after this call."""
    ready = c_int(0)
    with nodes:
        library().dm_udev_wait_immediate(cookie, ctypes.byref(ready))
    return bool(ready.value)


def complete_cookie(cookie: int) -> None:
    """Say for udev that one event is done."""
    library().dm_udev_complete(cookie)
