# SPDX-License-Identifier: GPL-2.0-or-later
"""One device-mapper device of ours: addressed by its uuid, and guarded against what dm-era does not survive.

The guards look at the device and then make the ioctl; between the two another process may change the device. Callers
hold the mirror's lock around every sequence, which closes that gap for everybody who takes it.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmsoft.dm import holders, libdevmapper
from dmsoft.dm.cookie import Cookie
from dmsoft.dm.events import EventPoll
from dmsoft.dm.failures import DmBusyError, DmNotFoundError, EraOrderError, NameTakenError, SuspendedError
from dmsoft.dm.kernel import require_targets, target_versions
from dmsoft.dm.libdevmapper import TaskType
from dmsoft.dm.targets import Segment, Table, parse_target
from dmsoft.dm.task import Task
from dmsoft.errors import DmsoftError
from dmsoft.units import Sectors

PREFIX: Final = "DMSOFT-"
MAPPER: Final = Path("/dev/mapper")
UDEV_SECONDS: Final = 30.0

_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,127}")
_UUID = re.compile(r"[A-Za-z0-9_.+-]{1,128}")
_PAUSE: Final = 0.05

# What udev should leave alone on everything below the top: the same file system would be seen there once more.
_INNER_FLAGS: Final = libdevmapper.DISABLE_DISK_RULES | libdevmapper.DISABLE_OTHER_RULES


@dataclass(frozen=True)
class Info:
    name: str
    uuid: str
    major: int
    minor: int
    suspended: bool
    live_table: bool
    inactive_table: bool
    open_count: int
    event_nr: int
    read_only: bool

    @property
    def number(self) -> str:
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True)
class TargetLine:
    """One line of a table or status as the kernel prints it. Sectors."""

    start: Sectors
    length: Sectors
    kind: str
    text: str

    def segment(self) -> Segment:
        """The line as a typed table line. Raises `TargetTextError`."""
        return Segment(self.start, self.length, parse_target(self.kind, self.text))


def read_info(task: Task) -> Info | None:
    raw = task.info()
    if not raw.exists:
        return None
    return Info(
        name=task.name(),
        uuid=task.uuid(),
        major=raw.major,
        minor=raw.minor,
        suspended=bool(raw.suspended),
        live_table=bool(raw.live_table),
        inactive_table=bool(raw.inactive_table),
        open_count=raw.open_count,
        event_nr=raw.event_nr,
        read_only=bool(raw.read_only),
    )


class Device:
    """A device by ``name`` and ``uuid``; it need not exist yet. ``inner``: a layer that udev should not look into.

    ValueError if the name or uuid is not one device-mapper and udev take, or the uuid lacks our prefix. Every method
    but `info` raises `DmNotFoundError` if the device does not exist, and what `failure` makes of an errno.
    """

    def __init__(self, name: str, uuid: str, *, inner: bool = False) -> None:
        if not _NAME.fullmatch(name) or name in (".", "..", "control"):
            raise ValueError(f"'{name}' is not a device-mapper name")
        if not _UUID.fullmatch(uuid) or not uuid.startswith(PREFIX):
            raise ValueError(f"'{uuid}' is not a uuid that begins with {PREFIX}")
        self.name = name
        self.uuid = uuid
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.uuid == self.uuid

    def __hash__(self) -> int:
        return hash(self.uuid)

    def __repr__(self) -> str:
        return f"Device({self.name!r}, {self.uuid!r})"

    @property
    def path(self) -> Path:
        return MAPPER / self.name

    @property
    def number(self) -> str:
        """``MAJ:MIN``, the form for tables of the device above."""
        return self.require().number

    def _task(self, kind: TaskType) -> Task:
        return Task(kind, uuid=self.uuid, label=self.name)

    def _flags(self) -> int:
        return _INNER_FLAGS if self.inner else 0

    def info(self) -> Info | None:
        """What device-mapper knows without asking a target: never blocks. None if the device does not exist."""
        with self._task(TaskType.INFO) as task:
            task.run()
            return read_info(task)

    def require(self) -> Info:
        info = self.info()
        if info is None:
            raise DmNotFoundError(f"There is no device-mapper device {self.name}.")
        return info

    def create(self) -> None:
        """Make the device, without a table. Raises `NameTakenError` if its name or uuid is in use."""
        with Task(TaskType.INFO, name=self.name) as task:
            task.run()
            taken = read_info(task)
        if taken is not None:
            whose = "already exists" if taken.uuid == self.uuid else "belongs to a device that is not this one"
            raise NameTakenError(f"The name {self.name} {whose}.", hint="Choose another name or remove that device.")
        with Task(TaskType.CREATE, name=self.name, uuid=self.uuid) as task:
            try:
                task.run()
            except DmBusyError as err:
                raise NameTakenError(
                    f"The name {self.name} or the uuid {self.uuid} is in use.", hint="See `dmsetup info -c`."
                ) from err

    def load(self, table: Table, *, read_only: bool = False) -> None:
        """Put ``table`` into the inactive slot, from where `resume` makes it live.

        Raises `EraOrderError` for an era table while another one is live and not suspended: the new instance would
        read the metadata before the old one has written its last, and the marks between would be lost.
        """
        if any(segment.target.kind == "era" for segment in table):
            info = self.require()
            if info.live_table and not info.suspended and self._has_era():
                raise EraOrderError(
                    f"An era table cannot be loaded while {self.name} runs.",
                    hint="Suspend, load, resume: in that order.",
                )
        with self._task(TaskType.RELOAD) as task:
            for segment in table:
                task.add_target(segment.start, segment.length, segment.target.kind, segment.target.params())
            if read_only:
                task.set_read_only()
            task.run()

    def clear(self) -> None:
        """Drop the table in the inactive slot; nothing happens if there is none."""
        with self._task(TaskType.CLEAR) as task:
            task.run()

    def suspend(self, *, lockfs: bool = True, flush: bool = True) -> None:
        """Stop I/O and wait for what is in flight. ``lockfs`` freezes a file system on it first.

        ``flush=False`` pushes requests back instead of waiting, where the target can. Either way no medium gets a
        flush. Returns at once if the device is suspended.
        """
        with self._task(TaskType.SUSPEND) as task:
            if not lockfs:
                task.set_skip_lockfs()
            if not flush:
                task.set_no_flush()
            task.run()

    def resume(
        self, *, wait: bool = True, timeout: float = UDEV_SECONDS, cookie: Cookie | None = None
    ) -> Cookie | None:
        """Make a loaded table live and let I/O go on.

        With ``wait``, udev's part is waited for and None is returned. Without it, a cookie is returned and the caller
        owes it a `Cookie.wait`. A ``cookie`` of the caller is used and left to the caller, also if the resume fails.
        If it fails, the device stays suspended.
        """
        used = self._run_with_cookie(self._task(TaskType.RESUME), cookie)
        if not libdevmapper.udev_runs():
            self._make_node()
        if cookie is not None:
            return None
        if not wait:
            return used
        used.wait(timeout)
        return None

    def _run_with_cookie(self, task: Task, given: Cookie | None = None) -> Cookie:
        with task:
            cookie = Cookie(task.set_cookie(self._flags(), given.value if given else 0))
            try:
                task.run()
            except BaseException:
                # No event was sent; the library counted it back, what is left is the semaphore itself.
                if given is None:
                    cookie.drop()
                raise
        return cookie

    def _make_node(self) -> None:
        with self._task(TaskType.MKNODES) as task:
            task.run()
        libdevmapper.update_nodes()

    def message(self, text: str) -> str:
        """Send ``text`` to the target at sector 0 and return its answer. Raises `SuspendedError`, `EraOrderError`."""
        self._check_answers("messages")
        with self._task(TaskType.TARGET_MSG) as task:
            task.set_message(text)
            task.run()
            return task.response()

    def status(self, *, asleep: bool = False) -> tuple[TargetLine, ...]:
        """What the live targets say. Raises `SuspendedError`, `EraOrderError`; nothing is flushed for it.

        ``asleep`` asks a suspended device too, if it has no era: only for targets that are known to answer then.
        """
        if not asleep or self._has_era():
            self._check_answers("status")
        with self._task(TaskType.STATUS) as task:
            task.set_no_flush()
            return self._lines(task)

    def table(self, *, inactive: bool = False) -> tuple[TargetLine, ...]:
        """The table as the kernel prints it: for comparison, never to be loaded again. Safe on a suspended device."""
        with self._task(TaskType.TABLE) as task:
            if inactive:
                task.set_inactive()
            return self._lines(task)

    def _lines(self, task: Task) -> tuple[TargetLine, ...]:
        task.run()
        if not task.info().exists:
            raise DmNotFoundError(f"There is no device-mapper device {self.name}.")
        return tuple(
            TargetLine(Sectors(start), Sectors(length), kind, text.strip())
            for start, length, kind, text in task.targets()
        )

    def _has_era(self) -> bool:
        return any(line.kind == "era" for line in self.table())

    def _check_answers(self, what: str) -> None:
        """A suspended era answers neither status nor messages, and whoever asks hangs where no signal reaches."""
        info = self.require()
        if info.suspended:
            raise SuspendedError(
                f"{self.name} is suspended: no {what}.",
                hint="If no other dmsoft command is at work on it, `dmsoft start` resumes the mirror.",
            )
        if info.inactive_table and self._has_era():
            raise EraOrderError(
                f"{self.name} has a second table loaded over a live era: no {what}.", hint="Clear that table first."
            )

    def deps(self) -> tuple[tuple[int, int], ...]:
        """Major and minor of the devices the live table uses."""
        with self._task(TaskType.DEPS) as task:
            task.run()
            if not task.info().exists:
                raise DmNotFoundError(f"There is no device-mapper device {self.name}.")
            return task.deps()

    def wait_event(self, event_nr: int, timeout: float) -> int | None:
        """Wait until the event number is not ``event_nr`` any more: the new one, or None after ``timeout`` seconds.

        No target is asked anything, so this is safe while others suspend the device. Raises `DmNotFoundError` when
        the device is removed meanwhile.
        """
        deadline = time.monotonic() + timeout
        with EventPoll() as events:
            while True:
                events.arm()
                current = self.require().event_nr
                if current != event_nr:
                    return current
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                events.wait(left)

    def remove(self, *, timeout: float = 5.0, deferred: bool = False, udev_timeout: float = UDEV_SECONDS) -> None:
        """Remove the device. udev holds devices open for moments: that is retried for ``timeout`` seconds.

        ``deferred`` removes it at its last close instead. Raises `DmBusyError`, naming who holds it where known.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._remove_once(deferred, udev_timeout)
                return
            except DmBusyError as err:
                if time.monotonic() >= deadline:
                    raise self._describe_busy() from err
            time.sleep(_PAUSE)

    def _remove_once(self, deferred: bool, udev_timeout: float) -> None:
        task = self._task(TaskType.REMOVE)
        if deferred:
            task.set_deferred()
        cookie = self._run_with_cookie(task)
        if not libdevmapper.udev_runs() and self.info() is None:
            # Our name: the library removes its node, or keeps it if somebody else has taken the name since.
            with Task(TaskType.MKNODES, name=self.name) as nodes:
                nodes.run()
            libdevmapper.update_nodes()
        cookie.wait(udev_timeout)

    def _describe_busy(self) -> DmsoftError:
        info = self.require()
        users = holders.users(info.major, info.minor)
        by = f" by {', '.join(users)}" if users else f" ({info.open_count} times open)"
        return DmBusyError(f"{self.name} is in use{by}.", hint="Stop what uses it, then try again.")


def devices(prefix: str = PREFIX) -> list[Info]:
    """All devices whose uuid begins with ``prefix``, in the order of their numbers. Asks no target anything."""
    with Task(TaskType.LIST) as task:
        task.run()
        numbers = task.names()
    found: list[Info] = []
    for number in numbers:
        with Task(TaskType.INFO, number=number) as task:
            task.run()
            info = read_info(task)
        if info is not None and info.uuid.startswith(prefix):
            found.append(info)
    return sorted(found, key=lambda info: (info.major, info.minor))


__all__ = [
    "PREFIX",
    "Cookie",
    "Device",
    "Info",
    "TargetLine",
    "devices",
    "require_targets",
    "target_versions",
]
