# SPDX-License-Identifier: GPL-2.0-or-later
"""Letting go of legs that failed: the lower becomes linear, and the primary is alone with its writer again.

md goes on without a leg that failed a write, and keeps it: its superblock and bitmap writes, its flushes of the others
and a later look at the leg can all wait for a disk that is not there. Whoever is well is coupled again by the next
resync.

No disk but the primary is read for it, since another may hang.
"""

from pathlib import Path

from dmsoft.errors import NotFoundError
from dmsoft.inventory.sysfs import HOST
from dmsoft.mirror import alone, attach, locate, lower
from dmsoft.mirror.execute import device
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names
from dmsoft.mirror.plan import leg_nodes
from dmsoft.mirror.running import Running, guard_of


def failing(names: Names) -> list[str]:
    """Labels of coupled secondaries that md has dropped or whose disk is gone, in alphabetical order."""
    coupled = lower.attached_labels(names, lower.leg_labels(names)) if lower.is_raid(names) else []
    return sorted(
        label for label in coupled if lower.leg_health(names, names.leg(label)) == "D" or _is_gone(names, label)
    )


def shed(names: Names) -> list[str]:
    """Uncouple everything if a leg fails, and take down the legs that do; returns their labels, none if all are well.

    Raises `BusyError` while another command is at work, `PrimaryDroppedError`, and whatever the swap raises.
    """
    if not failing(names):
        return []
    with locked(names.mirror_uuid, "operation", name=names.name, verb="monitor"), alone.marking(names):
        found = failing(names)
        if found:
            running = Running.of(locate.assemble(names.name, locate.census([HOST.by_number(*_primary(names))])))
            with guard_of(running, coupled=True) as guard:
                attach.detach(running, found, guard)
        return found


def _primary(names: Names) -> tuple[int, int]:
    """Major and minor of the disk that the raid1's last leg stands on."""
    for number in device(names.primary).deps():
        return number
    raise NotFoundError(f"The primary of {names.name} is not here.", hint="`dmsoft status` says what is.")


def _is_gone(names: Names, label: str) -> bool:
    """Whether a leg stands on a disk that was unplugged: it keeps its number, but the system does not list it."""
    mine = {info.number for node in leg_nodes(names, label) if (info := device(node).info()) is not None}
    under = {
        f"{major}:{minor}"
        for node in leg_nodes(names, label)
        if device(node).info() is not None
        for major, minor in device(node).deps()
    }
    return any(not Path(f"/sys/dev/block/{number}").exists() for number in under - mine)
