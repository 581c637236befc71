# SPDX-License-Identifier: GPL-2.0-or-later
"""The primary's header as a run writes it, beside a guard that may write it as well."""

import os
from pathlib import Path
from typing import cast

import pytest

from dmsoft.member import header
from dmsoft.member.gate import GatedDevice
from dmsoft.member.payload import Primary
from dmsoft.mirror.locate import Assembly
from dmsoft.mirror.plan import Placed, names_of
from dmsoft.mirror.running import Running
from dmsoft.mirror.wayout import TrackingLostError, WayOut
from tests import mirror_model
from tests.journal_model import KEY, RecordedDisk


def test_what_a_guard_revoked_is_not_promised_again(tmp_path: Path) -> None:
    """It took the way out at the very end of a barrier, whose owner goes on with what it read before."""
    disk = RecordedDisk(tmp_path / "primary", b"")
    os.truncate(disk.path, mirror_model.SIZE)
    payload = mirror_model.primary()
    gated = cast(GatedDevice, disk)
    header.write_first(disk, payload, KEY)
    placed = Placed(payload, mirror_model.PRIMARY_NUMBER)
    assembly = Assembly(placed, cast("object", None), KEY, None, {}, {}, {}, {})  # type: ignore[arg-type]
    running = Running(assembly, names_of(payload), gated)
    running.grant(payload.replace(interval_seconds=7.0))
    assert running.payload.interval_seconds == 7.0
    WayOut(gated, KEY, cast("object", None), ()).revoke("stuck")  # type: ignore[arg-type]
    with pytest.raises(TrackingLostError):
        running.grant(payload.replace(interval_seconds=8.0))
    found = header.require(disk, key=KEY).payload
    assert isinstance(found, Primary) and found.tracker.doubt == "stuck" and found.tracker.id != mirror_model.TRACKER
    disk.close()
