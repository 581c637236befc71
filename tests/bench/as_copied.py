# SPDX-License-Identifier: GPL-2.0-or-later
"""A mirror as it would be after its first copy, for disks that hold nothing but zeros: of some it would take days."""

from dmsoft.member import header
from dmsoft.mirror.job import gate
from dmsoft.mirror.locate import assemble
from dmsoft.mirror.names import new_uuid
from dmsoft.mirror.running import Running


def assume_equal(name: str, label: str) -> None:
    """Have the secondary ``label`` of the mirror ``name``, which runs, say that it has everything."""
    running = Running.of(assemble(name))
    record, token = running.payload.member(label), new_uuid()
    assert record is not None
    sync = record.sync.replace(
        era=running.current_era(), tracker=running.payload.tracker.id, token=token, consistent=True,
        consistent_as_of="2026-01-01T00:00:00Z",
    )  # fmt: skip
    with gate(running, record) as (gated, found, _):
        header.write_granted(gated, found.payload.replace(sync=sync), running.assembly.key)
    with running.writing():
        running.grant(running.payload.with_member(record.replace(sync=sync, token_confirmed=token)))
