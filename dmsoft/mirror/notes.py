# SPDX-License-Identifier: GPL-2.0-or-later
"""What the primary's header is told of a run: its tokens before a secondary carries them, and what came of it."""

from collections.abc import Sequence

from dmsoft.errors import NotFoundError
from dmsoft.mirror import plug
from dmsoft.mirror.job import Job
from dmsoft.mirror.running import Running


def pending(running: Running, jobs: Sequence[Job]) -> None:
    """The primary learns every token before a secondary carries it. A secondary's present token, once it has been
    believed, is the confirmed one from here on: the last run may have died before it could say so."""
    payload = running.payload
    for each in jobs:
        record = payload.member(each.label)
        if record is None:
            raise NotFoundError(f"{running.names.name} has no secondary {each.label}.")
        believed = each.decision.kind == "incremental"
        confirmed = each.payload.sync.token if believed else record.token_confirmed
        sync = each.payload.sync
        if sync.doubt is None and record.sync.doubt is not None:
            sync = sync.doubted(record.sync.doubt)
        elif sync.doubt is None and each.decision.kind == "compare":  # an S of another history, while it is away
            sync = sync.doubted(each.decision.reason)
        payload = payload.with_member(
            record.replace(
                token_pending=each.token, token_confirmed=confirmed, sync=sync, away_since=None,
                pending_most=None, sequence=each.header.sequence, suspect=None,
            )
        )  # fmt: skip
        plug.forget(running.names, each.label)
    running.grant(payload)


def untracked(running: Running, jobs: Sequence[Job]) -> None:
    payload = running.payload
    for each in jobs:
        record = payload.member(each.label)
        if record is not None and each.error is None:
            payload = payload.with_member(record.replace(sync=each.payload.sync, sequence=each.header.sequence))
    running.grant(payload)


def confirmed(running: Running, jobs: Sequence[Job], rate: int | None) -> None:
    payload = running.payload
    floor = payload.tracker.era_floor
    for each in jobs:
        record = payload.member(each.label)
        if record is None or each.payload.sync.token != each.token:
            continue
        payload = payload.with_member(
            record.replace(
                token_pending=None, token_confirmed=each.token, sync=each.payload.sync, rate=rate or record.rate,
                sequence=each.header.sequence,
            )
        )  # fmt: skip
        floor = max(floor, each.payload.sync.era or 0)
    running.grant(payload.replace(tracker=payload.tracker.replace(era_floor=floor)))
