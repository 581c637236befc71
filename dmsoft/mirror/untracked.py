# SPDX-License-Identifier: GPL-2.0-or-later
"""A mirror that goes on without tracking, and the way back.

The metadata of dm-era can fill up or fail, and then writes to the top fail with them. What can still be had is the
primary: tracking is given up, the top becomes a plain linear device, every secondary is unknown. A kernel or stack
that fails the canary never gets further than that. While it lasts, `Tracker.doubt` in the primary's header says why,
each resync compares every block and promises nothing, and `status` raises an alert.

Back: a new tracker life on fresh metadata, after the canary. Its id is durable before the metadata are zeroed, and the
doubt is taken from the header last of all.
"""

import contextlib
import logging
from collections.abc import Iterator

from dmsoft.dm import memory
from dmsoft.dm.device import Device
from dmsoft.dm.targets import Table
from dmsoft.era.errors import EraBusyError
from dmsoft.errors import DeviceError, DmsoftError, MetadataError, NotFoundError
from dmsoft.member import header
from dmsoft.member.gate import GatedDevice, open_exclusive
from dmsoft.member.refusal import GateHeldError, GateUnknownError
from dmsoft.mirror import attach, canary, loss, tracker
from dmsoft.mirror.barrier import DEADLINE_SECONDS, EraLostError
from dmsoft.mirror.execute import discards_off, dismantle, ensure, require_no_discards
from dmsoft.mirror.guard import Guard, resume_top
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names
from dmsoft.mirror.plan import base, metadata_place, record, untracked_top
from dmsoft.mirror.running import NoRoomError, Running, device, is_plain, is_shielded, is_tracked, node_path, write

log = logging.getLogger(__name__)

FAILED = "the era metadata failed"
_METADATA_BLOCK = 4096
_LOCK_SECONDS = 30.0
# Between why tracking was given up and why it could not be begun anew.
_AND = ", and then: "


def trouble(running: Running) -> str | None:
    """Why the running mirror does not track, or will not for long, or in vain; None if all is well.

    Full metadata are given time to be digested first. The answer to it is `mend`.
    """
    doubt = running.payload.tracker.doubt or running.assembly.doubt
    if doubt is not None:
        return doubt.rstrip(".")
    if not is_tracked(running.names):
        return "tracking is off"
    if running.era_status().failed:
        return FAILED
    try:
        running.await_room()
        with running.era_reader() as reader, contextlib.suppress(EraBusyError):
            reader.written_since(0)  # all of it: the kernel may go on with what it holds in memory
    except NoRoomError:
        return "the era metadata is full" if not running.era_status().failed else FAILED
    except (DeviceError, MetadataError, NotFoundError) as err:
        return f"the era metadata cannot be read ({err.message.rstrip('.')})"
    return None


def lately_doubted(running: Running) -> str | None:
    """Why nothing is known of what was written to a mirror that runs, as far as that can be told without waiting: what
    came up since it was started."""
    return running.assembly.doubt or (FAILED if loss.suspected(running.names) else None)


def mend(running: Running, guard: Guard) -> str | None:
    """If tracking is in trouble, give it up and begin it anew. Returns what was wrong, None if nothing was.

    Afterwards ``Tracker.doubt`` says why nothing is tracked if it could not be begun: the primary goes on either way.
    """
    reason = trouble(running)
    if reason is None:
        return None
    if is_tracked(running.names) or running.payload.tracker.doubt is None:
        give_up(running, guard, reason)
    restore(running, guard)
    return reason


def give_up(running: Running, guard: Guard, reason: str) -> None:
    """Go on without tracking: the header first, then the top. Idempotent.

    Raises `DeviceError` if the header cannot be written; the top stays as it is then.
    """
    with running.writing():
        running.withdraw(tracker.revoked(running.payload, reason, tracked=False))
    if not is_plain(running.names):
        _swap(running, guard, untracked_top(running.payload, shielded=is_shielded(running.names)).table)


@contextlib.contextmanager
def given_up_on_failure(running: Running, guard: Guard, during: str = "during a resync") -> Iterator[None]:
    """The block works on a mirror that tracks. If it fails, of whatever, and the era metadata has, then the primary's
    writes fail as well: tracking is given up before the error goes on its way. Enter it while no barrier is open."""
    try:
        yield
    except (DeviceError, MetadataError, NotFoundError) as err:
        failed = isinstance(err, EraLostError)
        with contextlib.suppress(DmsoftError):  # what the block failed of matters more
            failed = failed or (is_tracked(running.names) and running.era_status().failed)
        if failed:
            try:
                give_up(running, guard, f"{FAILED} {during}")
            except DmsoftError as why:
                log.warning("tracking could not be given up: %s", why.message)
        raise


def restore(running: Running, guard: Guard) -> str | None:
    """Begin a new tracker life under a running mirror whose tracking was given up; why it could not be, else None."""
    reason = running.payload.tracker.doubt or "tracking is off"
    try:
        wrong = _restore(running, guard, reason)
    except DmsoftError as err:
        wrong = err.message.rstrip(".")
    if wrong is not None:
        give_up(running, guard, f"{reason.split(_AND)[0]}{_AND}{wrong}")
    return wrong


def _restore(running: Running, guard: Guard, reason: str) -> str | None:
    slot_set = attach.free_slot_set(running)
    shielded = is_shielded(running.names)
    parts = running.assembly.primary, running.assembly.metadata
    under, top = record(*parts), base(*parts, shielded=shielded)[-1]
    _clear_top(running.names)
    with running.writing():
        running.withdraw(tracker.revoked(running.payload, reason, tracked=False))
        canary.clear(running, slot_set)
    if (wrong := canary.prove(running, slot_set)) is not None:
        return wrong
    dismantle([each.node for each in under])  # they may stand on a disk that is gone, and remember that it failed
    zero_metadata(running)
    loss.forget(running.names)
    ensure(under)
    # Loaded before the suspend, unlike an era over an era: nobody else writes these metadata.
    _swap(running, guard, top.table)
    require_no_discards(running.names.top)
    if (wrong := canary.reads_the_top(running)) is not None:
        return wrong
    hold_era(running)
    return None


def zero_metadata(running: Running) -> None:
    """Zero block 0, which tells the kernel to format. Raises `DeviceError`, `NotFoundError`, `RefusedError`."""
    metadata = running.assembly.metadata
    _, region = metadata_place(running.assembly.primary, metadata)
    with _gated(running) as disk:
        if metadata is not None:  # nobody else writes this header, should a copy of it have been overwritten
            header.write_withdrawn(disk, metadata.payload, running.assembly.key)
        what = "The primary" if metadata is None else "The metadata device"
        write(disk, bytes(_METADATA_BLOCK), region.offset, what)


def refused(running: Running) -> str | None:
    """Why the kernel may not write to the device of the metadata, None if it may: it is used for something else by now,
    or is something else. Raises `GateHeldError` and `GateUnknownError` for what may be over in a moment: to begin
    tracking anew for it would cost a compare of every block."""
    if running.assembly.metadata is None:
        return None  # it is the primary, which passes the gate for its header
    try:
        with _gated(running):
            return None
    except (GateHeldError, GateUnknownError):
        raise
    except DmsoftError as err:
        return err.message.rstrip(".")


def _gated(running: Running) -> contextlib.AbstractContextManager[GatedDevice]:
    payload, metadata = running.payload, running.assembly.metadata
    number, _ = metadata_place(running.assembly.primary, metadata)
    member = payload if metadata is None else metadata.payload
    return open_exclusive(
        node_path(number), purpose="member", expect=member.identity, member_uuid=member.member_uuid,
        own_uuid_prefix=running.names.prefix,
    )  # fmt: skip


def hold_era(running: Running) -> None:
    """Permissions are taken away, whichever copy counts: from here on the kernel may not format, and metadata from
    before this start, which lacks its marks, is not taken for this life's after a crash. What is tracked counts.

    Raises `DeviceError`, also if the metadata has failed meanwhile."""
    status = running.era_status()
    if status.failed:
        raise DeviceError("The era metadata failed just now.", hint="Look at the health of the disk they lie on.")
    era = status.era
    with running.writing():
        held = running.payload.tracker.replace(formatted=True, era_floor=era, doubt=None)
        members = tuple(tracker.bounded(record, era - 1) for record in running.payload.members)
        running.withdraw(running.payload.replace(tracker=held, members=members))


def _swap(running: Running, guard: Guard, table: Table) -> None:
    """Replace the top's table while it is in use. In between nothing forks and nothing faults, and the guard stands by.

    Raises `TrackingLostError` if the new table is an era that does not begin: the top is plain then.
    """
    names, top = running.names, device(running.names.top)
    if not is_shielded(names):
        discards_off(names.lower)  # it may have had another table since, and the top's limits are made anew now
    with locked(names.mirror_uuid, "kernel", timeout=_LOCK_SECONDS, name=names.name), memory.locked():
        top.load(table)
        guard.arm()
        try:
            top.suspend(lockfs=False)
            guard.hurry(DEADLINE_SECONDS)
            cookie = resume_top(top, guard.way_out)
        except BaseException:
            _unless_suspended(top, guard)
            raise
        guard.disarm()
    if cookie is not None:
        cookie.wait()


def _clear_top(names: Names) -> None:
    """Take a table out of the top's inactive slot, where one that was killed left it: it holds the record open."""
    top = device(names.top)
    with locked(names.mirror_uuid, "kernel", timeout=_LOCK_SECONDS, name=names.name):
        if top.require().inactive_table:
            top.clear()


def _unless_suspended(top: Device, guard: Guard) -> None:
    """After an error: if the top stands still it is the guard's turn, else nothing may wait in its inactive slot."""
    info = top.require()
    if not info.suspended:
        guard.disarm()
        with contextlib.suppress(DmsoftError):
            top.clear()
