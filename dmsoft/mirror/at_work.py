# SPDX-License-Identifier: GPL-2.0-or-later
"""What is at work on a mirror at this moment, and how far it is: its operation lock says who, its progress the rest."""

import msgspec

from dmsoft.mirror.lock import holder
from dmsoft.mirror.progress import published
from dmsoft.mirror.times import stamp


class RunView(msgspec.Struct, frozen=True):
    """The command at work on a mirror, of process ``pid``. What comes after ``since`` is of the copy that it has under
    way, if it has one: how far its present phase is, and of the requests of this pass how many wait or are under way,
    are dealt with, and failed. Sizes are bytes, times RFC 3339 UTC."""

    verb: str
    pid: int
    since: str
    labels: tuple[str, ...] = ()
    phase: str | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    bytes_queued: int | None = None
    bytes_per_second: int | None = None
    seconds_left: float | None = None
    requests_pending: int | None = None
    requests_done: int | None = None
    requests_failed: int | None = None

    @property
    def share(self) -> float | None:
        """How much of the present phase is done, 0 to 1."""
        return self.bytes_done / self.bytes_total if self.bytes_done is not None and self.bytes_total else None

    @property
    def copies(self) -> bool:
        """Whether it writes to its secondaries: a verify only reads."""
        return self.phase not in (None, "verify")


def at_work(mirror_uuid: str) -> RunView | None:
    """Who holds the mirror's operation lock and how far that is; None when nobody does."""
    held = holder(mirror_uuid)
    if held is None:
        return None
    since, said = stamp(held.since), published(mirror_uuid)
    if said is None or said.pid != held.pid:
        return RunView(held.verb, held.pid, since)
    queue = said.queue
    return RunView(
        held.verb, held.pid, since, said.labels, said.phase, said.bytes_done, said.bytes_total, said.bytes_queued,
        said.bytes_per_second, said.seconds_left, *(() if queue is None else (queue.pending, queue.done, queue.failed)),
    )  # fmt: skip
