# SPDX-License-Identifier: GPL-2.0-or-later
"""A primary that md left out before the machine went down: its raid slots still tell.

After a write error on the primary md goes on with the secondaries alone, and what is written from then on only they
have. While the raid1 runs its status says so (`dmsoft.mirror.lower.require_primary`); after a crash the slots do, in
which md notes a failed leg before it acknowledges the next write. (With the primary's disk gone, it cannot: see
`dmsoft.mirror.alone`.) The mirror starts with the primary as it is, which is then the older copy: a history of its own
keeps it from being copied over the newer one.
"""

import os

from dmsoft.dm.raid1 import Superblock
from dmsoft.errors import DeviceError
from dmsoft.member.disk import Disk, FdDisk, open_for_read
from dmsoft.member.payload import Primary
from dmsoft.member.regions import SLOTS, slot
from dmsoft.mirror.names import new_uuid
from dmsoft.mirror.running import Running, node_path, write

_HEAD_BYTES = 4096


def notice(running: Running) -> bool:
    """Look at the slots before anything else uses them; if they say so, part the primary's history from that of its
    secondaries. Call it while nothing of the mirror stands. Raises `DeviceError`.

    What a mirror that never ran finds there is of an earlier one on that disk.
    """
    payload = running.payload
    dropped = payload.tracker.formatted and _is_dropped(running)
    if payload.tracker.formatted and not dropped:
        return False
    with running.writing():
        if dropped:
            # They know the generation that is left out here, and the primary does not any more: diverged.
            running.withdraw(payload.replace(generation=(*payload.generation[:-1], new_uuid())))
        for index in range(SLOTS):
            try:
                write(running.primary, bytes(_HEAD_BYTES), slot(payload, index).offset, "The primary")
            except DeviceError:  # the next attach meets that again, and needs it
                if _says_dropped(_superblock(running.primary, slot(payload, index).offset)):
                    raise  # or each start would part the histories anew
    return dropped


def _is_dropped(running: Running) -> bool:
    fd = open_for_read(node_path(running.assembly.primary.number))
    try:
        return says_dropped(FdDisk(fd), running.payload)
    finally:
        os.close(fd)


def says_dropped(disk: Disk, payload: Primary) -> bool:
    """Whether any slot says that the last leg of its raid, which is the primary, has failed, or its own that md was
    writing it anew.

    Any, because no such leg ever comes back, and the slot of a leg that failed is not written any more. One that cannot
    be read says nothing, and keeps no other from saying it.
    """
    found = (_superblock(disk, slot(payload, index).offset) for index in range(SLOTS))
    return any(map(_says_dropped, found))


def _says_dropped(found: Superblock | None) -> bool:
    return found is not None and found.lacks(found.legs - 1)


def _superblock(disk: Disk, offset: int) -> Superblock | None:
    try:
        return Superblock.parse(disk.pread(_HEAD_BYTES, offset))
    except OSError:
        return None
