# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting a mirror: its era metadata are checked, then the stack goes into the kernel."""

import contextlib

import msgspec

from dmsoft.dm.device import devices
from dmsoft.dm.failures import CookieTimeoutError
from dmsoft.dm.kernel import require_targets
from dmsoft.errors import DeviceError, DmsoftError, MetadataError
from dmsoft.member import regions
from dmsoft.member.payload import MemberRecord
from dmsoft.mirror import alone, attach, canary, dropped, job, locate, loss, plug, registry, tracker, untracked
from dmsoft.mirror.execute import device, discards_off, dismantle, ensure, require_no_discards, takes_discards
from dmsoft.mirror.guard import resume_left
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names, Node
from dmsoft.mirror.plan import Wanted, base, bottom_up, leg, likely_shielded, lower_linear, shield, untracked_top
from dmsoft.mirror.running import Running, guard_of, is_active, way_out_of
from dmsoft.mirror.untracked import hold_era, zero_metadata
from dmsoft.units import SECTOR

# Free at every start: what stood of the mirror was taken down before.
_SLOT_SET = 0
_KERNEL_SECONDS = 30.0


class Started(msgspec.Struct, frozen=True):
    """What `start` did. ``doubt``: why tracking began anew, so that every secondary is unknown; ``missing`` and
    ``problems``: secondaries that are not here or cannot be used, which is no failure of the start; ``untracked``: why
    nothing is tracked."""

    name: str
    device: str
    already: bool
    doubt: str | None = None
    missing: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()
    untracked: str | None = None


def tables(name: str) -> list[Wanted]:
    """What `start` would make: base stack and the legs of the secondaries that are here. Changes nothing."""
    assembly = locate.assemble(name)
    payload = assembly.primary.payload
    wanted = base(assembly.primary, assembly.metadata, shielded=likely_shielded())
    for record in payload.members:
        placed, cache = assembly.secondaries.get(record.label), assembly.caches.get(record.label)
        if placed is not None and (cache is not None or record.via.type != "writecache"):
            wanted += leg(payload, record, placed, cache, assembly.primary_device.logical_block_bytes)
    return wanted


def start(name: str, *, timeout: float = 0) -> Started:
    """Start the mirror: exit is clean when only secondaries are missing. Idempotent. ``timeout``: seconds for which
    another command may hold it.

    Raises for a primary that is missing, in use, not authentic or damaged; nothing stands in the kernel then.
    """
    require_targets(["era", "linear"])
    with locked(uuid_of(name), "operation", timeout=timeout, name=name, verb="start"):
        return started(Running.of(locate.assemble(name)))


def started(running: Running) -> Started:
    """`start` for a caller that holds the operation lock. Of a mirror that runs it mends the tracking."""
    already = is_active(running.names)
    plug.forget(running.names, plug.PRIMARY)
    plug.begin(running.names)
    if already:
        _resume_left(running)
        running.require_active()  # one that stands on a disk which is gone cannot be mended
    doubt = _mended(running) if already else _bring_up(running)
    tracker_now = running.payload.tracker
    if tracker_now.doubt is None and not tracker_now.era_floor:  # a start was killed before it could say so
        hold_era(running)
    missing, problems = [], [(label, err.message) for label, err in running.assembly.problems.items()]
    for record in running.payload.members:
        if record.label in running.assembly.problems:
            continue
        placed = running.assembly.secondaries.get(record.label)
        if placed is None:
            missing.append(record.label)
            continue
        if plug.waits(running.names, record.label, placed.number):
            continue
        try:
            _welcome(running, record)
        except DmsoftError as err:
            problems.append((record.label, err.message))
    with contextlib.suppress(OSError):  # a convenience: a full /etc is no failure of a mirror that runs
        registry.register(running.payload)
    return Started(
        running.names.name, running.names.top.path, already, doubt, tuple(missing), tuple(problems),
        running.payload.tracker.doubt,
    )  # fmt: skip


def _mended(running: Running) -> str | None:
    """Why tracking began anew, or was given up, under a mirror that runs."""
    if untracked.trouble(running) is None:
        return None
    with guard_of(running, coupled=False) as guard:
        return untracked.mend(running, guard)


def _resume_left(running: Running) -> None:
    """A command held the mirror still, and both it and its guard died."""
    names = running.names
    legs = tuple(device(names.leg(record.label)) for record in running.payload.members)
    infos = [each.info() for each in (device(names.top), device(names.lower), *legs)]
    if not any(info is not None and info.suspended for info in infos):
        return
    with locked(names.mirror_uuid, "kernel", timeout=_KERNEL_SECONDS, name=names.name):
        fallback = lower_linear(running.assembly.primary).table
        resume_left(device(names.top), device(names.lower), fallback, legs, lambda: way_out_of(running))


def _bring_up(running: Running) -> str | None:
    """Check the era metadata, withdraw what does not hold while the mirror runs, load the stack.

    Tracking that fails does not keep the primary from its user: then the top comes without it.
    """
    names = running.names
    alone.mark(names)  # a raid1 whose top others removed is the only witness
    lost = loss.remember(names)
    dismantle([*inner_nodes(names), names.top])
    dropped.notice(running)
    doubt = _check_tracker(running, lost=lost)
    try:
        ensure([lower_linear(running.assembly.primary)])
        discards_off(names.lower)
        shielded = takes_discards(names.lower)
        try:
            wrong = doubt if running.payload.tracker.doubt is not None else _track(running, shielded=shielded)
            if wrong is None:
                hold_era(running)
        except CookieTimeoutError:
            raise  # a slow udev is no reason to compare every block
        except (DeviceError, MetadataError) as err:
            wrong = err.message.rstrip(".")
        if wrong is None:
            return doubt
        _go_without(running, wrong, shielded=shielded)
    except BaseException:
        with contextlib.suppress(DmsoftError):
            loss.remember(names)
            dismantle([*inner_nodes(names), names.top])
        raise
    return wrong


def _track(running: Running, *, shielded: bool) -> str | None:
    """Load what is above the lower; why its tracking cannot be trusted, None if it can.

    The canary comes before the top: nobody may have written to it by then.
    """
    names, floor = running.names, running.payload.tracker.era_floor
    wanted = base(running.assembly.primary, running.assembly.metadata, shielded=shielded)
    if (wrong := canary.prove(running, _SLOT_SET)) is not None:
        return f"this kernel's tracking cannot be trusted: {wrong}"
    ensure(wanted[:-1])
    ensure(wanted[-1:], inner=False)
    require_no_discards(names.top)
    era = running.era_status().era
    return canary.reads_the_top(running) or (f"the era went back from {floor} to {era}" if era < floor else None)


def _go_without(running: Running, reason: str, *, shielded: bool) -> None:
    """Load a top without tracking; in the header, that comes first, also before the top that failed its check is taken
    down: somebody may have it open by now, and then it stays."""
    names = running.names
    with running.writing():
        running.withdraw(tracker.revoked(running.payload, reason, tracked=False))
    dismantle([names.top])
    ensure([shield(running.payload)] if shielded else [])
    ensure([untracked_top(running.payload, shielded=shielded)], inner=False)
    require_no_discards(names.top)


def _check_tracker(running: Running, *, lost: bool) -> str | None:
    """Judge the era metadata and write into the primary's header what follows, before the kernel touches any of it.

    From here on the digest of the clean stop is gone. In doubt a new tracker life begins: its id is durable before the
    metadata is zeroed, and every secondary is unknown. If the metadata cannot be zeroed, or their device is used for
    something else by now, `Tracker.doubt` says so.
    """
    payload = running.payload
    doubt = doubt_of(running) or (untracked.FAILED if lost else None)
    refusal = untracked.refused(running) if doubt is None else None  # else it is gated to be zeroed
    wrong = doubt or refusal
    with running.writing():
        if wrong is None:
            running.withdraw(payload.replace(tracker=payload.tracker.replace(clean_digest=None)))
        else:
            running.withdraw(tracker.revoked(payload, wrong, tracked=refusal is None))
            loss.forget(running.names)
        canary.clear(running, _SLOT_SET)
    if doubt is None:
        return refusal
    try:
        zero_metadata(running)
    except DmsoftError as err:
        doubt = f"{doubt}; {err.message.rstrip('.')}"
        with running.writing():
            running.withdraw(tracker.revoked(running.payload, doubt, tracked=False))
    return doubt


def doubt_of(running: Running) -> str | None:
    """Why nothing is known of what was written to a mirror that is stopped: its header or its metadata are not what
    they were. Raises `NotFoundError` if the device of the metadata is not here, but for a mirror whose tracking is
    given up: it loses nothing by starting without."""
    payload = running.payload
    if running.assembly.doubt is not None or payload.tracker.doubt is not None:
        return running.assembly.doubt or payload.tracker.doubt
    if loss.suspected(running.names):
        return untracked.FAILED
    return tracker.doubt(
        payload.tracker, _look(running),
        block_sectors=payload.block_bytes // SECTOR,
        nr_blocks=regions.nr_blocks(running.data.length, payload.block_bytes),
    )  # fmt: skip


def _look(running: Running) -> tracker.Found:
    """Read the metadata as it lies on the disk; every block of it is verified."""
    zero, digest = False, ""
    try:
        with running.era_reader() as reader:
            zero, digest = reader.is_zero(), reader.block_digest()
            if zero:
                return tracker.Found(zero, digest, None)
            superblock = reader.superblock()
            reader.check_space_map()
            if superblock.nr_blocks:
                reader.written_since(0)
    except (MetadataError, DeviceError) as err:
        return tracker.Found(zero, digest, None, err.message.rstrip("."))
    return tracker.Found(zero, digest, superblock)


def _welcome(running: Running, record: MemberRecord) -> None:
    """A secondary that is here: compare a sample with what it claims, and claim it with its leg."""
    label = record.label
    with job.opened(running, record, running.current_era()) as opened:
        if opened.differs:
            # The disk says so by now. The primary remembers too: nobody but a person has it copied onto.
            reason = opened.decision.reason
            suspect = tracker.doubted(record, reason).replace(suspect=reason[:200])
            with running.writing():
                running.withdraw(running.payload.with_member(suspect))
    attach.claim(running, label)


def uuid_of(name: str) -> str:
    """The uuid of a mirror whose primary may be gone by now."""
    known = next((entry.mirror_uuid for entry in registry.entries() if entry.name == name), None)
    return known or locate.primary_of(name, locate.census()).payload.mirror_uuid


def inner_nodes(names: Names) -> list[Node]:
    """Every device of the mirror but its top, bottom up: those standing with its uuid prefix."""
    standing = [Node(info.name, info.uuid) for info in devices(names.prefix)]
    return bottom_up(names, [node for node in standing if node.uuid != names.top.uuid])
