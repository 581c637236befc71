# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon's workers do, each in a process of its own: the verbs' own functions, and looks."""

import contextlib
import threading

from dmsoft.dm.failures import EraOrderError, SuspendedError
from dmsoft.dm.targets import EraStatus
from dmsoft.errors import DmsoftError
from dmsoft.member.payload import Mode
from dmsoft.mirror import alone, bulletin, locate, loss, lower, observe, plug, shed, start, sync
from dmsoft.mirror.locate import Assembly
from dmsoft.mirror.lock import locked, yield_on_sigterm
from dmsoft.mirror.names import Names
from dmsoft.mirror.progress import Silent
from dmsoft.mirror.running import device, is_active, is_plain, is_tracked
from dmsoft.mirror.sync import Outcome, Request
from dmsoft.mirror.views import MirrorView, SecondaryView
from dmsoft.monitor.facts import (
    Action,
    CaughtUp,
    Facts,
    Marked,
    Mended,
    Part,
    Pulse,
    Result,
    SecondaryFacts,
    Shed,
    Tracking,
)

# Above this the metadata are looked after; the kernel digests what fills them within seconds.
_FILL = 0.75


def do(action: Action, names: Names, cancelled: threading.Event) -> Result:
    """Raises what the verb raises."""
    match action.kind:
        case "look":
            return look(names)
        case "pulse":
            left_out = lower.goes_without_primary(names)
            return Pulse(_tracking(names), tuple(shed.failing(names)), left_out)
        case "mark":
            with locked(names.mirror_uuid, "operation", name=names.name, verb="monitor"):
                marked = alone.mark(names)
                return Marked(None if marked is None else tuple(marked))
        case "shed":
            return Shed(tuple(shed.shed(names)))
        case "mend":
            done = start.start(names.name)
            return Mended(done.doubt, done.untracked)
        case "catch-up":
            return catch_up(names, action.labels, cancelled)


def look(names: Names) -> Facts:
    """Everything, from the headers of the disks that are here."""
    seen = locate.census()
    view = observe.view_of(names.name, names.mirror_uuid, seen, _own_word())
    assembly = None
    with contextlib.suppress(DmsoftError):
        assembly = locate.assemble(names.name, seen)
    tracked = assembly is not None and assembly.primary.payload.tracker.doubt is None
    return Facts(
        view.active, tracked, tuple(_facts(names, view, each, assembly) for each in view.secondaries), view.alerts,
        assembly is not None,
    )  # fmt: skip


def _own_word() -> bulletin.Word:
    """What the daemon itself said, but for its alerts, which it does not want to hear back."""
    word = bulletin.read()
    said = {} if word is None else word.bulletin.mirrors
    held = {uuid: bulletin.Said(each.held) for uuid, each in said.items()}
    return bulletin.Word(bulletin.Bulletin(0, held), alive=True)


def _facts(names: Names, mirror: MirrorView, view: SecondaryView, assembly: Assembly | None) -> SecondaryFacts:
    placed = None if assembly is None else assembly.secondaries.get(view.label)
    here = None
    if placed is not None and not plug.waits(names, view.label, placed.number):
        here = placed.number
        with contextlib.suppress(OSError):
            here = plug.appearance(placed.number)
    token = None if placed is None else placed.payload.sync.token
    mode: Mode = "write-behind" if view.mode == "write-behind" else "periodic"
    return SecondaryFacts(
        view.label, view.state, mode, view.interval_seconds or 0.0, here, token, view.lag_seconds,
        view.synced_era is not None,
    )  # fmt: skip


def _tracking(names: Names) -> Tracking:
    """How the record of written blocks is; a mirror that goes on without one is for looks to tell."""
    try:
        if not is_active(names):
            return "ok"
        if not is_tracked(names):
            return "ok" if is_plain(names) else "failed"  # what fails all that comes waits to be mended
        return _recorded(names) if loss.can_be_asked(names) else "failed"
    except SuspendedError:
        return "suspended"
    except EraOrderError:  # whoever was about to replace the table was killed
        return "failed"


def _recorded(names: Names) -> Tracking:
    with locked(names.mirror_uuid, "kernel", timeout=30, name=names.name):
        lower.require_awake(names)
        (line,) = device(names.top).status()
        lost = loss.suspected(names)
    status = EraStatus.parse(line.text)
    if status.failed or lost:
        return "failed"
    return "filling" if status.used > _FILL * status.total else "ok"


def catch_up(names: Names, labels: tuple[str, ...], cancelled: threading.Event) -> CaughtUp:
    """The secondaries of ``labels``, as `dmsoft attach` does it: a disk in doubt waits for a person. What fails of one
    does not keep the others."""
    yield_on_sigterm()
    outcome, error = sync.resync(Request(names.name, labels, unattended=True), Silent(), cancelled)
    if error is not None and not outcome.secondaries:
        raise error
    return _told(outcome)


def _told(outcome: Outcome) -> CaughtUp:
    parts = tuple(
        Part(each.label, each.kind, each.bytes_copied, each.consistent_as_of, each.error)
        for each in outcome.secondaries
    )
    return CaughtUp(parts, outcome.seconds, outcome.stall_ms, outcome.converged)
