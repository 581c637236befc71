# SPDX-License-Identifier: GPL-2.0-or-later
"""Swapping what lies under the top: linear for raid1 and back, while the primary goes on.

Swaps and questions to the raid1 are made under the mirror's kernel lock.
"""

import contextlib
import time
from collections.abc import Sequence

from dmsoft.dm import memory
from dmsoft.dm.device import Device, devices
from dmsoft.dm.failures import SuspendedError
from dmsoft.dm.targets import Raid1, Table
from dmsoft.errors import BusyError, DeviceError, DmsoftError
from dmsoft.mirror import health
from dmsoft.mirror.execute import device, dismantle
from dmsoft.mirror.guard import Guard, resume_watched
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import SLOTS_PER_SET, Names, Node

_SWAP_SECONDS = 30.0


class PrimaryDroppedError(DeviceError):
    """The raid1 of a mirror goes on without its primary, which failed a write or is gone.

    The newest data are on the attached secondaries alone, and the device of the mirror still serves them. dmsoft does
    nothing that would put the primary's older copy in their place, also when it is back: save what is on the device
    elsewhere while it runs. dmsoft(8) tells, under A SECONDARY NEWER THAN THE PRIMARY, how to get it back later.
    """

    code = "primary-dropped"


class SecondaryDroppedError(DeviceError):
    """A secondary failed a write just as the raid1 was to be replaced, so all were uncoupled.

    A new raid1 would take it for whole. Run `dmsoft resync`: it catches them up and couples them again. Look at the
    health of their disks.
    """

    code = "secondary-dropped"


def is_raid(names: Names) -> bool:
    """Whether the live lower couples anything, suspended or not."""
    lower = device(names.lower)
    return lower.info() is not None and any(line.kind == "raid" for line in lower.table())


def require_awake(names: Names) -> None:
    """Raise `SuspendedError` if the lower stands still. Call it under the kernel lock: nobody alive has it so then."""
    info = device(names.lower).info()
    if info is not None and info.suspended:
        raise SuspendedError(
            f"All I/O to {names.name} waits, as {names.lower.name} is suspended.",
            hint=f"Run `dmsoft start {names.name}`: it lets I/O go on.",
        )


def attached_labels(names: Names, labels: Sequence[str]) -> list[str]:
    """Those of ``labels`` whose leg the live lower uses."""
    lower = device(names.lower)
    info = lower.info()
    if info is None or not info.live_table:
        return []
    deps = set(lower.deps())
    found = []
    for label in labels:
        leg = device(names.leg(label)).info()
        if leg is not None and (leg.major, leg.minor) in deps:
            found.append(label)
    return found


def detach(names: Names, guard: Guard) -> None:
    """Put the plain linear table back under the top; waits for behind writes that are under way.

    Should this process die or hang in between, the guard does the rest. Raises `PrimaryDroppedError`, and the raid1
    stays.
    """
    swap(names, guard, guard.fallback)
    tidy(names)


def swap(names: Names, guard: Guard, table: Table) -> float:
    """Put a table under the top, which is not suspended: its I/O waits in the lower until every write behind that is
    under way has ended. Returns how long that was, in seconds. Raises `PrimaryDroppedError`, and `BusyError` while md
    has an error of some leg before it: the raid1 stays.

    If this took too long, the guard has put the plain linear table there instead: look which one it is. So has this
    function when it raises `SecondaryDroppedError`.
    """
    target = device(names.lower)
    kernel = locked(names.mirror_uuid, "kernel", timeout=_SWAP_SECONDS, name=names.name)
    with kernel, memory.locked():
        if health.goes_without_primary(target):
            raise _primary_dropped(names)
        target.load(table)
        guard.arm()
        start = time.monotonic()
        try:
            target.suspend(lockfs=False)
        except BaseException:
            # An interrupt may come up when the suspend has succeeded: then it is the guard's turn.
            if not target.require().suspended:
                guard.disarm()
                target.clear()
            raise
        guard.hurry(_SWAP_SECONDS)
        verdict: health.Verdict | None = None
        try:
            verdict = health.verdict(target)
        finally:
            verdict = _judged(target, guard, table, verdict)
            try:
                cookie = resume_watched(guard.helper, target)
            except DmsoftError as err:
                if verdict == "without-primary":
                    raise _primary_dropped(names) from err
                raise
        stall = time.monotonic() - start
        guard.disarm()
    guard.owes(cookie)
    _require_whole(names, verdict)
    guard.settle()
    return stall


def _require_whole(names: Names, verdict: health.Verdict) -> None:
    if verdict == "without-primary":
        raise _primary_dropped(names)
    if verdict == "without-secondary":
        raise SecondaryDroppedError(
            f"A secondary of {names.name} failed a write just now, so they were uncoupled.",
            hint="Run the command again: it catches them up and couples them again.",
        )
    if verdict == "not-known":
        raise BusyError(f"The kernel has an I/O error of {names.name} before it.", hint="Try again in a moment.")


def _judged(target: Device, guard: Guard, table: Table, verdict: health.Verdict | None) -> health.Verdict:
    """Have ready what a suspended lower is to be resumed with, if anything failed by a write that was under way just
    now. Returns the verdict that this comes to."""
    if verdict == "without-secondary" and table == guard.fallback:
        return "whole"  # nobody is coupled by it
    if verdict == "without-secondary":  # a new raid1 would take it for whole
        try:
            target.load(guard.fallback)
        except DmsoftError:  # the primary's disk is gone as well
            verdict = "not-known"
    if verdict not in ("whole", "without-secondary"):  # the raid1 goes on, as only it has that
        target.clear()
    if verdict == "without-primary":
        with contextlib.suppress(DmsoftError):
            guard.owes(health.hold_out_primary(target))
    return verdict or "not-known"


def leg_labels(names: Names) -> list[str]:
    """Labels of all secondaries that have a leg in the kernel."""
    prefix = f"{names.prefix}leg-"
    found = [info.uuid.removeprefix(prefix) for info in devices(prefix)]
    return [label for label in found if "-" not in label]  # one with a dash lies under a leg


def leg_alive(node: Node) -> bool:
    """Whether the device exists with a live table and is not suspended."""
    info = device(node).info()
    return info is not None and info.live_table and not info.suspended


def leads_to(node: Node, number: str) -> bool:
    """Whether the device stands on the device of that number. An old disk keeps its number while a leg holds it, so a
    disk that came back has another one."""
    if not leg_alive(node):
        return False
    major, minor = number.split(":")
    return (int(major), int(minor)) in device(node).deps()


def tidy(names: Names) -> None:
    """Take down what the live lower does not stand on: a raid1 that waits in the inactive slot because an attach was
    killed, and the slots of it or of a former one."""
    with locked(names.mirror_uuid, "kernel", timeout=_SWAP_SECONDS, name=names.name):
        info = device(names.lower).info()
        if info is not None and info.inactive_table:
            device(names.lower).clear()
        used = set(device(names.lower).deps()) if info is not None and info.live_table else set()
    parts = [*(names.slot(i) for i in range(2 * SLOTS_PER_SET)), names.primary]
    with contextlib.suppress(BusyError):  # a former raid1 may take its time; the next one uses other slots
        dismantle([node for node in parts if _number(node) not in used])


def _number(node: Node) -> tuple[int, int] | None:
    info = device(node).info()
    return None if info is None else (info.major, info.minor)


def require_primary(names: Names) -> None:
    """Raise `PrimaryDroppedError` if the raid1 goes on without the primary.

    After a write error md leaves the primary out and keeps what is written on the secondaries alone. A linear lower
    would bring the older copy back, and the next resync would overwrite the newer one with it.
    """
    if goes_without_primary(names):
        raise _primary_dropped(names)


def goes_without_primary(names: Names) -> bool:
    """Whether there is a raid1 that goes on without the primary."""
    with locked(names.mirror_uuid, "kernel", timeout=_SWAP_SECONDS, name=names.name):
        return health.goes_without_primary(device(names.lower))


def _primary_dropped(names: Names) -> PrimaryDroppedError:
    return PrimaryDroppedError(
        f"A write to the primary of {names.name} failed, and what was written since is on its secondaries alone.",
        hint=f"Save what is on {names.top.path} elsewhere now, while the mirror runs; then replace the primary.",
    )


def leg_health(names: Names, node: Node, *, asleep: bool = False) -> str | None:
    """The raid1's letter for the leg on that node (A, a, D or -), None when it has no such leg, and when it is
    suspended, unless ``asleep``."""
    with locked(names.mirror_uuid, "kernel", timeout=_SWAP_SECONDS, name=names.name):
        status = health.raid_status(device(names.lower), asleep=asleep)
        leg = device(node).info()
        if status is None or leg is None:
            return None
        (line,) = device(names.lower).table()
        target = line.segment().target
        if not isinstance(target, Raid1):
            return None
        positions = {each.data: index for index, each in enumerate(target.legs)}
        index = positions.get(leg.number)
        return None if index is None else status.health[index]
