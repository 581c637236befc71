# SPDX-License-Identifier: GPL-2.0-or-later
"""What md says of the legs of the raid1 in a mirror's lower, of which the primary is the last.

It is asked what md has left out, and never what a leg holds.
"""

import time
from typing import Literal

from dmsoft.dm.cookie import Cookie
from dmsoft.dm.device import Device, devices
from dmsoft.dm.targets import Error, Raid1, RaidStatus, single

Verdict = Literal["whole", "without-primary", "without-secondary", "not-known"]
_ASK_SECONDS = 0.5


def raid_status(lower: Device, *, asleep: bool = False) -> RaidStatus | None:
    """None when the lower is linear or missing, and when it is suspended, unless ``asleep``: dm-raid answers then too.

    Raises `DeviceError`, and `ValueError` for words that no kernel of ours says.
    """
    info = lower.info()
    if info is None or (info.suspended and not asleep) or not info.live_table:
        return None
    (line,) = lower.status(asleep=asleep)
    return RaidStatus.parse(line.text) if line.kind == "raid" else None


def goes_without_primary(lower: Device, *, asleep: bool = False) -> bool:
    """Whether the raid1 has left the primary out, or writes it anew from the others."""
    status = raid_status(lower, asleep=asleep)
    return status is not None and _lacks_primary(status)


def verdict(lower: Device) -> Verdict:
    """Of a suspended lower, whether what is in it writes the primary, and every secondary. Raises as `raid_status`.

    Of a raid1 with an error before it that md did not deal with, each leg that it has not dropped seems not to be in
    sync as long as it is suspended (rs_get_progress in drivers/md/dm-raid.c). So it is asked for a while, unless the
    primary is the only one left, which md does not drop.
    """
    deadline = time.monotonic() + _ASK_SECONDS
    while True:
        status = raid_status(lower, asleep=True)
        if status is not None and _lacks_primary(status):
            return "without-primary"
        left = "" if status is None else status.health.replace("D", "")
        if status is None or set(left) != {"a"} or len(left) == 1:
            return "whole" if status is None or "D" not in status.health else "without-secondary"
        if time.monotonic() >= deadline:
            return "not-known"
        time.sleep(_ASK_SECONDS / 20)


def _lacks_primary(status: RaidStatus) -> bool:
    return status.health[-1] == "D" or (status.health[-1] == "a" and "A" in status.health)


def hold_out_primary(lower: Device) -> Cookie | None:
    """Before the suspended raid1 is resumed, which has left the primary out: have it stay so.

    A resume has md try a failed leg again if its slot can be read (attempt_restore_of_faulty_devices in
    drivers/md/dm-raid.c), and then copy what it knows to be missing: from 6.12 on that lacks the place whose write
    failed. So the slot fails from now on; md does not write to that of a failed leg. The cookie is owed a wait. Raises
    `DeviceError`, and the slot is as it was.
    """
    (line,) = lower.table()
    target = line.segment().target
    if not isinstance(target, Raid1):
        return None
    for info in devices(f"{lower.uuid.removesuffix('lower')}slot"):
        if info.number == target.legs[-1].metadata:
            return _fail(Device(info.name, info.uuid, inner=True))
    return None


def _fail(slot: Device) -> Cookie | None:
    (line,) = slot.table()
    slot.load(single(line.length, Error()))
    try:
        slot.suspend(lockfs=False, flush=False)
        return slot.resume(wait=False)
    except BaseException:
        slot.clear()
        slot.resume(wait=False)  # a slot that is suspended would keep the raid1 so
        raise
