# SPDX-License-Identifier: GPL-2.0-or-later
"""What a job says of its secondary when a write to it fails."""

from types import SimpleNamespace
from typing import NoReturn, cast

import pytest

from dmsoft.era.blocks import BlockSet
from dmsoft.errors import DeviceError, NotFoundError
from dmsoft.member import header
from dmsoft.member.gate import GatedDevice
from dmsoft.member.payload import Partial, Region, Sync
from dmsoft.mirror.decision import Decision
from dmsoft.mirror.job import Job, _owed
from dmsoft.mirror.running import Running
from tests.mirror_model import TOKEN, TRACKER, primary, record, secondary

SYNCED = Sync(era=5, tracker=TRACKER, token=TOKEN, consistent=True)


class NoFlush:
    """A disk, as far as a promise needs one."""

    def flush(self) -> None:
        pass


def test_a_promise_that_was_not_written_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The primary copies what a job says, to answer for the disk when it is away."""

    def fail(*_: object) -> None:
        raise DeviceError("The header could not be written.")

    monkeypatch.setattr(header, "write_granted", fail)
    payload = secondary(primary(record("s1")), "s1", sync=SYNCED)
    owed = BlockSet.empty(4)
    decision = Decision("incremental", "it is behind", 5)
    disk = cast(GatedDevice, NoFlush())
    found = header.Header(1, payload, True)
    job = Job("s1", found, disk, b"", decision, owed, owed, "8" * 32, attach=False, spoiled=True)
    with pytest.raises(DeviceError):
        job.promise(9, TRACKER, as_of=None)
    assert job.payload.sync == SYNCED


def test_who_needs_every_block_asks_nothing_of_a_record_that_is_gone() -> None:
    def gone() -> NoReturn:
        raise NotFoundError("The metadata device is not here.")

    running = SimpleNamespace(data=Region(0, 9 << 20), block_bytes=1 << 20, era_reader=gone)
    for kind in ("full", "compare"):
        assert _owed(cast(Running, running), Decision(kind, "why")) == BlockSet.full(9)
    for decision in (Decision("incremental", "why", 5), Decision("full", "goes on", None, Partial(3, 2))):
        with pytest.raises(NotFoundError):
            _owed(cast(Running, running), decision)
