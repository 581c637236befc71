# SPDX-License-Identifier: GPL-2.0-or-later
"""A secondary that leaves for a while: caught up, uncoupled, let go of, and only then safe to unplug.

What counts is in the headers: the secondary's says which point in time it is, the primary's since when it is away.
"""

import threading

import msgspec

from dmsoft.errors import DeviceError, NotFoundError
from dmsoft.mirror import alone, locate, plug, sync
from dmsoft.mirror.execute import dismantle
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names
from dmsoft.mirror.plan import leg_nodes
from dmsoft.mirror.progress import Reporter
from dmsoft.mirror.running import Running
from dmsoft.mirror.start import uuid_of
from dmsoft.mirror.sync import Outcome, Request
from dmsoft.mirror.times import now


class NotCaughtUpError(DeviceError):
    """The disk could not be caught up, because more is written to the mirror than is copied.

    It is still a part of the mirror, and unplugged now it would be no copy of one moment. Run the command again when
    there is less load, or with a longer --max-stall.
    """

    code = "not-caught-up"


class Ejected(msgspec.Struct, frozen=True):
    """A secondary that may be unplugged; ``resync`` is what was copied for it."""

    name: str
    label: str
    device: str
    consistent_as_of: str | None
    safe_to_unplug: bool
    resync: Outcome


def eject(
    name: str, label: str, reporter: Reporter, cancelled: threading.Event, *, max_stall: float, dry_run: bool = False
) -> Ejected:
    """Catch the secondary up, uncouple it and let go of its disk.

    Raises `NotFoundError` when it is not here, `NotCaughtUpError`, and whatever a resync raises; it stays a part of the
    running mirror then.
    """
    uuid = uuid_of(name)
    with locked(uuid, "operation", name=name, verb="eject"):
        alone.require_primary(Names(name, uuid), dry_run=dry_run)
        running = Running.of(locate.assemble(name))
        running.require_active()
        wanted = Request(name, (label,), max_stall, dry_run, leaving=True)
        outcome, error = sync.resynced(running, wanted, reporter, cancelled)
        if error is not None:
            raise error
        (part,) = [each for each in outcome.secondaries if each.label == label]
        if not dry_run:
            if not outcome.converged or part.consistent_as_of is None:
                raise NotCaughtUpError(
                    f"{label} could not be caught up: writes outrun the copy.",
                    hint="Do not unplug it. Try again when there is less load, or with a longer --max-stall.",
                )
            if not _let_go(running, label):
                reporter.note(
                    f"It cannot be noted that {label} was let go of (before Linux 5.15, or /run is full): it counts as "
                    f"plugged in again at once. If dmsoftd runs, stop it until the disk is unplugged."
                )
        device = running.assembly.devices[label].path
        return Ejected(name, label, device, part.consistent_as_of, not dry_run, outcome)


def _let_go(running: Running, label: str) -> bool:
    """Returns whether it is noted that the disk was let go of."""
    names, record = running.names, running.payload.member(label)
    if record is None:
        raise NotFoundError(f"{names.name} has no secondary {label}.")
    dismantle(leg_nodes(names, label))
    noted = plug.note(names, label, running.assembly.secondaries[label].number)
    with running.writing():
        running.grant(running.payload.with_member(record.replace(away_since=now())))
    return noted
