# SPDX-License-Identifier: GPL-2.0-or-later
"""What a raid1 still has to write behind, made small before the lower is suspended.

A suspend of the raid1 waits for every behind write, and meanwhile the primary's writes wait for it. So a delay leg
lets go of what it holds first, and a leg whose disk is slow gets a while to catch up; one whose disk hangs is left
coupled, and as it is: the suspend of a leg would hang as well.
"""

import errno
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dmsoft.dm.device import Device
from dmsoft.dm.targets import Delay, DelayClass, Linear, single
from dmsoft.errors import BusyError, DeviceError
from dmsoft.mirror import hung
from dmsoft.mirror.execute import device
from dmsoft.mirror.guard import Guard
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names

_LOCK_SECONDS = 30.0
# From the suspend of a leg to its resume nothing is waited for.
_LEG_SECONDS = 5.0
_WINDOW_SECONDS = 0.1
_DEVICES = Path("/sys/dev/block")
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

    Returns the labels of delay legs, which are linear afterwards. Raises `BacklogError` with everything coupled still,
    and all legs as they were unless one fell behind after it was asked; `DeviceError` if that cannot be told.
    """
    for label in labels:  # all of them, before anything is changed
        _require_answers(names, label)
    changed = [label for label in labels if _let_go(names, label, guard)]
    for label in labels:
        settle(names, label)
    return changed


def _require_answers(names: Names, label: str) -> None:
    """A delay does not count what it holds as under way, so its disk is asked. Raises `BacklogError`."""
    delay = _delay(device(names.leg(label)))
    if delay is None:
        settle(names, label)
        return
    way = _way(delay)
    if _keeps_a_read(way.device):
        raise _too_far(label, "does not answer")
    _settle(label, way.device)


def _let_go(names: Names, label: str, guard: Guard) -> bool:
    """Replace dm-delay by linear: as it is suspended it sends on at once what it holds, and waits for that."""
    target = device(names.leg(label))
    if (delay := _delay(target)) is None:
        return False
    way = _way(delay)
    with locked(names.mirror_uuid, "kernel", timeout=_LOCK_SECONDS, name=names.name):
        info = target.info()
        if info is None or not info.live_table or info.suspended or _delay(target) != delay:
            return False
        target.load(single(target.table()[0].length, Linear(way.device, way.offset)))
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


def _delay(target: Device) -> Delay | None:
    info = target.info()
    if info is None or not info.live_table:
        return None
    (line,) = target.table()
    found = line.segment().target if line.kind == Delay.kind else None
    return found if isinstance(found, Delay) else None


def _way(delay: Delay) -> Delay | DelayClass:
    """Where its writes go; a delay's table, unlike a raid1's, is what was loaded."""
    return delay.write or delay


def settle(names: Names, label: str) -> None:
    """Give one leg a while until little is under way on it. Raises `BacklogError`."""
    info = device(names.leg(label)).info()
    if info is not None:
        _settle(label, info.number)


def _settle(label: str, number: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (left := expected(lambda: requests(number), time.sleep)) > _SHORT_SECONDS:
        if time.monotonic() < deadline:
            continue
        if left <= LONGEST_SECONDS:
            return
        what = "does not answer" if left == float("inf") else f"has writes for {left:.0f} s before it"
        raise _too_far(label, what)


def _too_far(label: str, what: str) -> BacklogError:
    return BacklogError(
        f"The disk of {label} {what}, and to uncouple it the primary would have to wait for that.",
        hint="Try again when less is written to the mirror, or unplug that disk.",
    )


def requests(number: str, devices: Path = _DEVICES) -> tuple[int, int]:
    """Requests under way on a device, and those it has done so far (Documentation/block/stat.rst); none for a device
    that is not there. One that somebody has suspended counts none of those that it keeps, and does none.

    Nothing else of the device is read, as a disk's serial number comes from the disk. Raises `DeviceError`.
    """
    try:
        suspended = _flag(devices / number / "dm/suspended")
        words = (devices / number / "stat").read_text().split()
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return 0, 0
        raise DeviceError(
            f"What is under way on the device {number} cannot be read: {err.strerror}.", hint="Try again."
        ) from err
    under_way, done = int(words[8]), int(words[0]) + int(words[4])
    return (max(1, under_way) if suspended else under_way), done


def _flag(file: Path) -> bool:
    try:
        return file.read_text().strip() == "1"
    except FileNotFoundError:  # not of device-mapper
        return False


def _keeps_a_read(number: str) -> bool:
    """Whether somebody has asked that disk in vain."""
    device = (_DEVICES / number).resolve()
    return hung.has_thread((device.parent if (device / "partition").exists() else device).name)


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
