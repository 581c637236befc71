# SPDX-License-Identifier: GPL-2.0-or-later
"""Stopping a mirror: the stack out of the kernel, and its era metadata sealed."""

import contextlib
import time
from collections.abc import Iterator

import msgspec

from dmsoft.dm.device import devices
from dmsoft.errors import BusyError, DeviceError, DmsoftError, MetadataError, NotFoundError
from dmsoft.inventory.sysfs import block_device
from dmsoft.inventory.usage import Usage
from dmsoft.member.payload import AnyPayload, Primary, Tracker
from dmsoft.mirror import alone, attach, locate, loss, lower, plug, registry, tracker, untracked
from dmsoft.mirror.execute import device, dismantle
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import PREFIX, Names
from dmsoft.mirror.running import Running, is_active, is_tracked
from dmsoft.mirror.start import inner_nodes, uuid_of

_UDEV_SECONDS = 5.0


class Stopped(msgspec.Struct, frozen=True):
    """What `stop` did. ``closed``: others had taken the mirror down, and its record is closed now."""

    name: str
    was_running: bool
    closed: bool = False


def stop(name: str, *, timeout: float = 0) -> Stopped:
    """Stop the mirror, and close the record of one that others took down. ``timeout``: seconds for which another
    command may hold it.

    Raises `BusyError` while somebody uses its device, and `PrimaryDroppedError` while its secondaries alone hold the
    newest data. Else a mirror whose primary is gone is taken down all the same; its metadata is checked like after a
    crash then.
    """
    uuid = uuid_of(name)
    with locked(uuid, "operation", timeout=timeout, name=name, verb="stop"):
        names = Names(name, uuid)
        active = is_active(names)
        lost = loss.remember(names)
        if active:
            alone.require_primary(names)  # also when its disk is gone, and nothing on it can tell the next start
            if lost:
                _disown(names)
            require_unused(names)
            alone.require_primary(names)  # the last writer's close may have flushed
            with contextlib.suppress(NotFoundError):
                running = Running.of(locate.assemble(name))
                stopped(running, lost=lost)
                plug.note(names, plug.PRIMARY, running.assembly.primary.number)
        else:
            alone.mark(names)  # nobody can save what only the secondaries have from a mirror without its device
        dismantle([*inner_nodes(names), names.top])
        closed = not active and _closed(names, lost=lost)
        plug.end(names)
        return Stopped(name, active, closed)


def _disown(names: Names) -> None:
    """Of a mirror whose record may lack marks, have the header say so at once: it may not be stopped in the end, as
    it is in use at a shutdown, and what is noted in /run is gone after that."""
    with contextlib.suppress(NotFoundError):
        running = Running.of(locate.assemble(names.name))
        _revoke(running)


def _revoke(running: Running) -> None:
    if running.payload.tracker.doubt is None:
        with running.writing():
            running.withdraw(tracker.revoked(running.payload, untracked.FAILED, tracked=False))


def stoppable() -> Iterator[str]:
    """Names of the mirrors that `stop` has work with: those whose top stands, in alphabetical order, then those started
    in this boot, whose top was removed by others and the record left open. For these every disk is read, so they wait
    until the others are stopped."""
    standing = {info.uuid: info.name for info in devices(PREFIX) if info.uuid.endswith("-top")}
    begun = {entry.mirror_uuid for entry in registry.entries() if plug.has_begun(entry.mirror_uuid)}
    left = {uuid for uuid in begun if f"{PREFIX}{uuid}-top" not in standing}
    yield from sorted(standing.values())
    if left:
        found = [member for member in locate.census().primaries() if member.verified]
        payloads = [member.payload for member in found if member.payload.mirror_uuid in left]
        yield from sorted({payload.mirror_name for payload in payloads if _is_open(payload)})


def _is_open(payload: AnyPayload) -> bool:
    """Whether the header lacks the digest of a clean stop: the mirror runs, or was not stopped by `stop`."""
    if not isinstance(payload, Primary):
        return False
    return payload.tracker.formatted and payload.tracker.doubt is None and payload.tracker.clean_digest is None


def _closed(names: Names, *, lost: bool) -> bool:
    """Seal the metadata of a mirror whose devices others removed, as lvm2 does at shutdown; returns whether that was to
    be done and is.

    Removing the top archived the era, whoever did it, and the digest takes nothing back from what the next start
    checks; what keeps it from being written is for that to judge.
    """
    if not plug.has_begun(names.mirror_uuid):  # it may run on another machine now
        return False
    with contextlib.suppress(DmsoftError):
        running = Running.of(locate.assemble(names.name))
        if running.names == names and running.assembly.doubt is None and _is_open(running.payload):
            plug.note(names, plug.PRIMARY, running.assembly.primary.number)
            return _seal(running, lost=lost)
    return False


def standing(name: str) -> list[str]:
    """Names of the mirror's devices in the kernel, top first."""
    names = Names(name, uuid_of(name))
    top = [names.top.name] if device(names.top).info() is not None else []
    return [*top, *(node.name for node in reversed(inner_nodes(names)))]


def stopped(running: Running, *, lost: bool = False) -> None:
    """`stop` for a caller that holds the operation lock, on a mirror that is running and not in use.

    Removing the top archives the era; then the metadata is final, and its digest goes into the header, unless marks may
    be missing (``lost``). Removing the lower waits for behind writes, which go into the caches; those are written back
    while their legs still stand.
    """
    names, payload = running.names, running.payload
    # Somebody's guard took the way out, and a header of before that was written since.
    lost |= payload.tracker.doubt is None and not is_tracked(names)
    coupled = lower.attached_labels(names, [record.label for record in payload.members])
    dismantle([names.top])
    lost |= loss.remember(names, if_alive=True)
    if lost:  # at once: what follows may take minutes, and a power cut would forget it
        with contextlib.suppress(DmsoftError):
            _revoke(running)
    alone.mark(names)  # nobody writes any more: the last moment to see it
    dismantle([names.lower, names.shield])
    with contextlib.suppress(DmsoftError):  # a cache that cannot be drained costs time later: S never counted on it
        attach.drain_caches(running, coupled)
    dismantle(inner_nodes(names))
    _seal(running, lost=lost)


def _seal(running: Running, *, lost: bool) -> bool:
    """Put the digest of the metadata into the header; returns whether they are such that it can be. ``lost``: they may
    lack marks, and the header says that instead. One that somebody else wrote to stays as it is, for the next start."""
    if running.assembly.doubt is not None:
        return False
    if lost:
        _revoke(running)
        loss.forget(running.names)
        return False
    with running.writing():
        running.flush_primary()
        sealed = _sealed(running)
        if sealed is not None:
            running.grant(running.payload.replace(tracker=sealed))
    return sealed is not None


def _sealed(running: Running) -> Tracker | None:
    """The tracker with the digest of the metadata as they lie there now. None if nothing is tracked, and for metadata
    that are damaged or not here: the next start judges them."""
    known = running.payload.tracker
    if known.doubt is not None:
        return None
    try:
        with running.era_reader() as reader:
            superblock, digest = reader.superblock(), reader.block_digest()
    except (MetadataError, DeviceError, NotFoundError):
        return None
    return known.replace(clean_digest=digest, era_floor=max(known.era_floor, superblock.current_era))


def require_unused(names: Names) -> None:
    """Raise `BusyError` while the top is mounted, held or open. udev opens it for a moment after each writer's close,
    so an open alone is waited for a little."""
    target = device(names.top)
    deadline = time.monotonic() + _UDEV_SECONDS
    while (info := target.info()) is not None and info.open_count:
        uses = [use.text for use in Usage.read().uses(block_device(names.top.path))]
        if uses or time.monotonic() > deadline:
            how = "; ".join(uses) or f"{info.open_count} times open"
            raise BusyError(f"{names.top.path} is in use: {how}.", hint="Unmount or close it, then try again.")
        time.sleep(0.1)
