# SPDX-License-Identifier: GPL-2.0-or-later
"""What a raid1 still has to write behind, made small before the lower is suspended.

A suspend of the raid1 waits for every behind write, and meanwhile the primary's writes wait for it. So a delay leg
lets go of what it holds first, and a leg whose disk is slow gets a while to catch up; one that hangs is left coupled.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dmsoft.dm.targets import Delay, Linear, Table, single
from dmsoft.errors import BusyError
from dmsoft.mirror.execute import device
from dmsoft.mirror.guard import Guard
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names, Node
from dmsoft.units import Sectors

_LOCK_SECONDS = 30.0
# From the suspend of a leg to its resume nothing is waited for.
_LEG_SECONDS = 5.0
_WINDOW_SECONDS = 0.1
# So long a backlog is no matter; so long it is waited to become that short; so long the primary waits at most.
_SHORT_SECONDS = 0.1
_PATIENCE_SECONDS = 10.0
LONGEST_SECONDS = 3.0


class BacklogError(BusyError):
    """A secondary is too far behind with what the kernel still writes to it.

    To uncouple it now, the primary would have to wait until all of that is written, or for ever if the disk hangs. It
    stays as it is. Try again when less is written to the mirror, or unplug the disk if it does not answer any more.
    """

    code = "backlog"


def shrink(names: Names, labels: Sequence[str], guard: Guard) -> list[str]:
    """Make what is still to be written to the coupled legs of ``labels`` so little that the lower can be suspended.

    Returns the labels of delay legs, which are linear afterwards. Raises `BacklogError` with everything coupled still.
    """
    changed = [label for label in labels if _let_go(names, names.leg(label), guard)]
    for label in labels:
        settle(names, label)
    return changed


def _let_go(names: Names, node: Node, guard: Guard) -> bool:
    """Replace dm-delay by linear: as it is suspended it sends on at once what it holds."""
    target = device(node)
    with locked(names.mirror_uuid, "kernel", timeout=_LOCK_SECONDS, name=names.name):
        info = target.info()
        if info is None or not info.live_table or info.suspended:
            return False
        (line,) = target.table()
        if line.kind != "delay":
            return False
        target.load(_direct(line.segment().target, line.length))
        guard.arm()
        try:
            target.suspend(lockfs=False)
            guard.hurry(_LEG_SECONDS)
            cookie = target.resume(wait=False)
        finally:
            if not target.require().suspended:  # else it is the guard's turn
                guard.disarm()
                target.clear()
    if cookie is not None:
        cookie.wait()
    return True


def _direct(target: object, length: Sectors) -> Table:
    """The way of the writes without the delay; a delay's table, unlike a raid1's, is what was loaded."""
    if not isinstance(target, Delay):
        raise TypeError(f"{target} is no delay")
    way = target.write or target
    return single(length, Linear(way.device, way.offset))


def settle(names: Names, label: str) -> None:
    """Give one leg a while until little is under way on it. Raises `BacklogError`."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    node = names.leg(label)
    while (left := expected(lambda: requests(node), time.sleep)) > _SHORT_SECONDS:
        if time.monotonic() < deadline:
            continue
        if left <= LONGEST_SECONDS:
            return
        what = "does not answer" if left == float("inf") else f"has writes for {left:.0f} s before it"
        raise BacklogError(
            f"The disk of {label} {what}, and to uncouple it the primary would have to wait for that.",
            hint="Try again when less is written to the mirror, or unplug that disk.",
        )


def requests(node: Node) -> tuple[int, int]:
    """Requests under way on a device, and those it has done so far (Documentation/block/stat.rst); none for a device
    that is not there. One that somebody has suspended counts none of those that it keeps, and does none."""
    info = device(node).info()
    if info is None:
        return 0, 0
    words = Path(f"/sys/dev/block/{info.number}/stat").read_text().split()
    under_way, done = int(words[8]), int(words[0]) + int(words[4])
    return (max(1, under_way) if info.suspended else under_way), done


def expected(look: Callable[[], tuple[int, int]], sleep: Callable[[float], None]) -> float:
    """Seconds until what is under way now will be done, at the rate of a short while; infinite if nothing moves."""
    under_way, before = look()
    if not under_way:
        return 0.0
    sleep(_WINDOW_SECONDS)
    under_way, after = look()
    if not under_way:
        return 0.0
    return under_way * _WINDOW_SECONDS / (after - before) if after > before else float("inf")
