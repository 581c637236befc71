# SPDX-License-Identifier: GPL-2.0-or-later
"""What md says of the legs of the raid1 in a mirror's lower, of which the primary is the last.

It is asked what md has left out, and never what a leg holds.
"""

from dmsoft.dm.device import Device
from dmsoft.dm.targets import RaidStatus


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
    """Whether the raid1 has left the primary out, or writes it anew from the others: a resume has md try again to use
    it, if its slot can be read, and until that copy has ended the others alone have what is newest."""
    status = raid_status(lower, asleep=asleep)
    return status is not None and (status.health[-1] == "D" or (status.health[-1] == "a" and "A" in status.health))
