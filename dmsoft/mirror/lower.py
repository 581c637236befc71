# SPDX-License-Identifier: GPL-2.0-or-later
"""Swapping what lies under the top: linear for raid1 and back, while the primary goes on.

Swaps and questions to the raid1 are made under the mirror's kernel lock.
"""

import contextlib
from collections.abc import Sequence

from dmsoft.dm.targets import Raid1, RaidStatus
from dmsoft.errors import BusyError
from dmsoft.mirror.execute import device, dismantle
from dmsoft.mirror.guard import Guard, resume_watched
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import SLOTS_PER_SET, Names, Node

_SWAP_SECONDS = 30.0


def raid_status(names: Names) -> RaidStatus | None:
    """The raid1's own view of its legs (never trusted for staleness); None when the lower is linear or missing."""
    lower = device(names.lower)
    info = lower.info()
    if info is None or info.suspended or not info.live_table:
        return None
    (line,) = lower.status()
    return RaidStatus.parse(line.text) if line.kind == "raid" else None


def is_raid(names: Names) -> bool:
    """Whether the live lower couples anything, suspended or not."""
    lower = device(names.lower)
    return lower.info() is not None and any(line.kind == "raid" for line in lower.table())


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

    The top is not suspended: I/O waits in the lower for the moment of the swap. Should this process die or hang in
    between, the guard does the rest.
    """
    target = device(names.lower)
    with locked(names.mirror_uuid, "kernel", timeout=_SWAP_SECONDS, name=names.name):
        target.load(guard.fallback)
        guard.arm()
        try:
            target.suspend(lockfs=False)
        except BaseException:
            guard.disarm()
            target.clear()
            raise
        guard.deadline(_SWAP_SECONDS)
        cookie = resume_watched(guard.helper, target)
        guard.disarm()
    cookie.wait()
    with contextlib.suppress(BusyError):  # the old table may take its time; the next one uses other slots
        dismantle([*(names.slot(i) for i in range(2 * SLOTS_PER_SET)), names.primary])


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


def leg_health(names: Names, label: str) -> str | None:
    """The raid1's letter for that leg (A, a, D or -), None when it has no such leg."""
    with locked(names.mirror_uuid, "kernel", timeout=_SWAP_SECONDS, name=names.name):
        status = raid_status(names)
        leg = device(names.leg(label)).info()
        if status is None or leg is None:
            return None
        (line,) = device(names.lower).table()
    target = line.segment().target
    if not isinstance(target, Raid1):
        return None
    positions = {each.data: index for index, each in enumerate(target.legs)}
    index = positions.get(leg.number)
    return None if index is None else status.health[index]
