# SPDX-License-Identifier: GPL-2.0-or-later
"""The way out of an era that cannot go on: the top becomes a plain linear device, and nothing is tracked any more.

dm-era has no other. When its metadata is full or fails, it fails the writes that it should mark, and once suspended it
cannot be resumed. What comes first is always the same: the tracker life is revoked in both copies of the primary's
header, flushed. Only then may a write go past the tracking; so no crash in between leaves an incremental copy possible.

If the header cannot be written either, because the primary is gone or takes no writes any more, the top cannot go on
at all. For a while that is tried again; then it gets a table that fails whatever comes, so that what uses the mirror
has an error, as it would on a bare disk, and does not wait for ever.

All that is needed is opened beforehand, since it may have to happen while the root file system is frozen: in the guard
process as well as inside a barrier.
"""

import contextlib
from dataclasses import dataclass

from dmsoft.dm.device import Device
from dmsoft.dm.failures import CookieTimeoutError
from dmsoft.dm.targets import Error, Table, single
from dmsoft.errors import DeviceError, MetadataError, NotFoundError
from dmsoft.member import header
from dmsoft.member.gate import GatedDevice
from dmsoft.member.payload import Primary
from dmsoft.mirror import tracker

STUCK = "the kernel could not begin a new era"


class TrackingLostError(DeviceError):
    """The record of which blocks were written could not go on, so the mirror goes on without it.

    The primary is used as before, and no write is lost on it. Nothing is known of any secondary any more. Run `dmsoft
    resync`: it begins tracking anew, where the disk of the record allows it, and compares every block.
    """

    code = "tracking-lost"


@dataclass(frozen=True, slots=True)
class WayOut:
    """``disk`` is the primary, open for writing; ``plain`` the table of a top that tracks nothing."""

    disk: GatedDevice
    key: bytes
    top: Device
    plain: Table

    def revoke(self, reason: str) -> Primary:
        """Say in both copies of the header that nothing is tracked; returns it. Raises `DeviceError`."""
        payload = header.require(self.disk, key=self.key).payload
        if not isinstance(payload, Primary):
            raise MetadataError(f"{self.disk.name} is not the primary any more.")
        if payload.tracker.doubt is None:
            payload = tracker.revoked(payload, reason, tracked=False)
        # Also if it says so already: whoever wrote it may have died between the two copies.
        header.write_withdrawn(self.disk, payload, self.key)
        return payload

    def take(self, *, at_any_cost: bool = False) -> None:
        """From a suspended top that cannot be resumed: revoke, then make it plain; ``at_any_cost``: if that cannot be,
        let it fail what comes. Raises `DeviceError`."""
        table = self.plain
        try:
            self.revoke(STUCK)
        except (DeviceError, MetadataError, NotFoundError):
            if not at_any_cost:
                raise
            table = single(self.plain[0].length, Error())
        self.top.load(table)
        with contextlib.suppress(CookieTimeoutError):
            self.top.resume()
