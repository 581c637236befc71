# SPDX-License-Identifier: GPL-2.0-or-later
"""libdevmapper's tasks: one ioctl each. Which of them may run beside others: `dmsoft.dm.libdevmapper`."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from ctypes import c_char_p, c_uint32, c_uint64
from types import TracebackType
from typing import Any, Final, Self

from dmsoft.dm import libdevmapper
from dmsoft.dm.failures import failure
from dmsoft.dm.libdevmapper import DmError, DmInfo, TaskType
from dmsoft.errors import NotRootError


def prepare() -> None:
    """Open the control device, check its version and probe udev: done once here, nothing of it later.

    Raises `NotRootError`, or `DmIoctlError` if the kernel has no device-mapper. Call it before the first suspend.
    """
    if os.geteuid() != 0:
        raise NotRootError("Only root may talk to device-mapper.", hint="Run this as root.")
    with libdevmapper.nodes:
        with Task(TaskType.VERSION) as task:
            task.run()
        libdevmapper.library().dm_udev_get_sync_support()


class Task:
    """One ioctl: made, filled, run, read, and freed at the end of its ``with``."""

    _LOCKED: Final = frozenset({TaskType.CREATE, TaskType.RENAME, TaskType.MKNODES, TaskType.VERSION})

    def __init__(
        self,
        kind: TaskType,
        *,
        uuid: str | None = None,
        name: str | None = None,
        number: tuple[int, int] | None = None,
        label: str | None = None,
    ) -> None:
        self._lib = libdevmapper.library()
        self.kind = kind
        self._device = label or name or uuid or (f"{number[0]}:{number[1]}" if number else "devices")
        self._named = name is not None
        self._task: int = self._lib.dm_task_create(kind)
        try:
            if uuid is not None:
                self._lib.dm_task_set_uuid(self._task, uuid.encode())
            if name is not None:
                self._lib.dm_task_set_name(self._task, name.encode())
            if number is not None:
                self._lib.dm_task_set_major_minor(self._task, *number, 0)
        except DmError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._task:
            self._lib.dm_task_destroy(self._task)
            self._task = 0

    def add_target(self, start: int, length: int, kind: str, params: str) -> None:
        self._lib.dm_task_add_target(self._task, start, length, kind.encode(), params.encode())

    def set_read_only(self) -> None:
        self._lib.dm_task_set_ro(self._task)

    def set_no_flush(self) -> None:
        self._lib.dm_task_no_flush(self._task)

    def set_no_open_count(self) -> None:
        self._lib.dm_task_no_open_count(self._task)

    def set_skip_lockfs(self) -> None:
        self._lib.dm_task_skip_lockfs(self._task)

    def set_inactive(self) -> None:
        self._lib.dm_task_query_inactive_table(self._task)

    def set_deferred(self) -> None:
        self._lib.dm_task_deferred_remove(self._task)

    def set_retry(self) -> None:
        self._lib.dm_task_retry_remove(self._task)

    def set_message(self, text: str) -> None:
        self._lib.dm_task_set_sector(self._task, 0)
        self._lib.dm_task_set_message(self._task, text.encode())

    def set_event_nr(self, number: int) -> None:
        self._lib.dm_task_set_event_nr(self._task, number)

    def set_cookie(self, flags: int, cookie: int = 0) -> int:
        """Put a udev cookie on the task, a new one for 0, and return it: somebody must wait for it.

        Returns 0 where udev does not run.
        """
        value = c_uint32(cookie)
        if libdevmapper.udev_runs():
            flags |= libdevmapper.DISABLE_LIBRARY_FALLBACK
        self._lib.dm_task_set_cookie(self._task, ctypes.byref(value), flags)
        return value.value

    def run(self) -> None:
        """Make the ioctl. Raises what `dmsoft.dm.failures.failure` makes of its errno."""
        stacks_nodes = self.kind in self._LOCKED or (self._named and self.kind != TaskType.INFO)
        guard: AbstractContextManager[Any] = libdevmapper.nodes if stacks_nodes else nullcontext()
        with guard:
            if self._lib.dm_task_run(self._task):
                return
            number = self._lib.dm_task_get_errno(self._task)
        operation = self.kind.name.lower().replace("_", " ").replace("target msg", "message").replace("reload", "load")
        raise failure(operation, self._device, number)

    def info(self) -> DmInfo:
        info = DmInfo()
        self._lib.dm_task_get_info(self._task, ctypes.byref(info))
        return info

    def name(self) -> str:
        return (self._lib.dm_task_get_name(self._task) or b"").decode(errors="surrogateescape")

    def uuid(self) -> str:
        return (self._lib.dm_task_get_uuid(self._task) or b"").decode(errors="surrogateescape")

    def response(self) -> str:
        return (self._lib.dm_task_get_message_response(self._task) or b"").decode(errors="replace")

    def targets(self) -> Iterator[tuple[int, int, str, str]]:
        """Start, length, kind and text of each target that a status or table task returned."""
        start, length = c_uint64(), c_uint64()
        kind, text = c_char_p(), c_char_p()
        references = [ctypes.byref(value) for value in (start, length, kind, text)]
        at = None
        while True:
            at = self._lib.dm_get_next_target(self._task, at, *references)
            if kind.value is not None:
                yield start.value, length.value, kind.value.decode(), (text.value or b"").decode(errors="replace")
            if not at:
                return

    def deps(self) -> tuple[tuple[int, int], ...]:
        address = self._lib.dm_task_get_deps(self._task)
        count = c_uint32.from_address(address).value
        devices = (c_uint64 * count).from_address(address + 8)
        return tuple((os.major(device), os.minor(device)) for device in devices)

    def names(self) -> tuple[tuple[int, int], ...]:
        """Major and minor of every device that a LIST task returned (``struct dm_names``)."""
        address = self._lib.dm_task_get_names(self._task)
        found: list[tuple[int, int]] = []
        while device := c_uint64.from_address(address).value:
            found.append((os.major(device), os.minor(device)))
            step = c_uint32.from_address(address + 8).value
            if not step:
                break
            address += step
        return tuple(found)

    def versions(self) -> dict[str, tuple[int, int, int]]:
        """Targets of a LIST_VERSIONS task (``struct dm_versions``: next, three numbers, name)."""
        address = self._lib.dm_task_get_versions(self._task)
        found: dict[str, tuple[int, int, int]] = {}
        while True:
            step, major, minor, patch = (c_uint32 * 4).from_address(address)
            name = ctypes.string_at(address + 16).decode()
            if name:
                found[name] = (major, minor, patch)
            if not step:
                return found
            address += step
