# SPDX-License-Identifier: GPL-2.0-or-later
"""The primary's header as a run writes it, beside a guard that may write it as well."""

import os
from pathlib import Path
from typing import cast

import pytest

from dmsoft.dm.targets import EraStatus
from dmsoft.era.sizing import era_blocks
from dmsoft.member import header, regions
from dmsoft.member.gate import GatedDevice
from dmsoft.member.payload import Primary
from dmsoft.mirror import running as running_module
from dmsoft.mirror.locate import Assembly
from dmsoft.mirror.plan import Placed, names_of
from dmsoft.mirror.running import NoRoomError, Running
from dmsoft.mirror.wayout import TrackingLostError, WayOut
from tests import mirror_model
from tests.journal_model import KEY, RecordedDisk


class Metadata:
    """The room of era metadata, as the kernel tells it each time; the clock goes on while somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seen: tuple[int, int]) -> None:
        """``seen``: metadata blocks that are free, and those of undigested writesets; the last answer stays."""
        self.seen = list(seen)
        self.clock = 0.0
        payload = mirror_model.primary()
        placed = Placed(payload, mirror_model.PRIMARY_NUMBER)
        assembly = Assembly(placed, cast("object", None), KEY, None, {}, {}, {}, {})  # type: ignore[arg-type]
        self.running = Running(assembly, names_of(payload))
        self.least = era_blocks(regions.nr_blocks(self.running.data.length, self.running.block_bytes))
        monkeypatch.setattr(Running, "era_status", self._status)
        monkeypatch.setattr(Running, "_undigested_blocks", lambda _: self.seen[0][1])
        monkeypatch.setattr(running_module.time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(running_module.time, "sleep", self._sleep)

    def _status(self, *_: object) -> EraStatus:
        free = self.seen[0][0]
        return EraStatus(used=10_000 - free, total=10_000, era=5) if free >= 0 else EraStatus(failed=True)

    def _sleep(self, seconds: float) -> None:
        self.clock += seconds
        if len(self.seen) > 1:
            self.seen.pop(0)


def test_a_barrier_waits_while_what_fills_the_metadata_is_digested(monkeypatch: pytest.MonkeyPatch) -> None:
    """For minutes, if need be, as long as it becomes less."""
    metadata = Metadata(monkeypatch, *((400, waiting) for waiting in range(1000, 90, -1)))
    metadata.running.await_room()
    assert metadata.seen[0] == (400, 100), "a quarter of what is free"
    assert metadata.clock > 2 * running_module._DIGEST_SECONDS


@pytest.mark.parametrize("state", ["not digested", "full", "failed"])
def test_no_barrier_begins_that_could_not_end(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = Metadata(monkeypatch, (4000, 0))
    metadata.running.await_room()
    metadata.seen = [{"not digested": (4000, 1001), "full": (metadata.least - 1, 0), "failed": (-1, 0)}[state]]
    with pytest.raises(NoRoomError):
        metadata.running.await_room()
    assert metadata.clock == pytest.approx(0 if state == "failed" else running_module._DIGEST_SECONDS, abs=0.2)


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
