# SPDX-License-Identifier: GPL-2.0-or-later
"""What a copy met that it could not get past, as the error of the secondary it is for."""

from collections.abc import Sequence

from dmsoft.errors import DeviceError
from dmsoft.mirror.job import Job
from dmsoft.resync.extents import Request

_NAMED = 5


class UnreadableError(DeviceError):
    """Parts of the primary could not be read; all the rest was copied.

    No other secondary had them either. The secondaries keep what they had of those blocks and stay stale there. The
    primary is failing: look at the kernel log and its SMART state now, and save what you can.
    """

    code = "primary-unreadable"


def of_target(job: Job, err: OSError) -> DeviceError:
    """Why the secondary could not be written."""
    if job.journal is None:
        return DeviceError(f"Writing to {job.label} failed: {err.strerror}.")
    return DeviceError(
        f"Writing to the journal of {job.label} failed: {err.strerror}.",
        hint="Look at the disk's health; `dmsoft resync --direct` does without the journal.",
    )


def of_source(unread: Sequence[Request], block_bytes: int) -> UnreadableError:
    """Which blocks of the primary nobody could read."""
    blocks = sorted({each.offset // block_bytes for each in unread})
    named = ", ".join(map(str, blocks[:_NAMED])) + (", ..." if len(blocks) > _NAMED else "")
    what = f"block {named}" if len(blocks) == 1 else f"{len(blocks)} blocks ({named})"
    return UnreadableError(
        f"The primary could not be read at {what}, and no secondary here has it; the rest was copied.",
        hint="The secondaries stay stale. Look at the primary's health now, and save what you can.",
    )
