# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting and stopping a mirror: the stack into the kernel and out, with the era metadata checked on the way in and
sealed on the way out."""

import contextlib
import time

import msgspec

from dmsoft.dm.device import devices
from dmsoft.dm.kernel import require_targets
from dmsoft.errors import BusyError, DmsoftError, MetadataError, NotFoundError
from dmsoft.inventory.sysfs import block_device
from dmsoft.inventory.usage import Usage
from dmsoft.member import regions
from dmsoft.member.gate import open_exclusive
from dmsoft.member.payload import MemberRecord, Tracker
from dmsoft.mirror import attach, job, locate, lower, registry, tracker
from dmsoft.mirror.execute import device, discards_off, dismantle, ensure, require_no_discards
from dmsoft.mirror.guard import resume_left
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names, Node, new_uuid
from dmsoft.mirror.plan import Wanted, base, bottom_up, leg, lower_linear
from dmsoft.mirror.running import Running, flush, is_active, metadata_place, node_path
from dmsoft.units import SECTOR

_METADATA_BLOCK = 4096
_UDEV_SECONDS = 5.0
_KERNEL_SECONDS = 30.0


class Started(msgspec.Struct, frozen=True):
    """What `start` did. ``doubt``: why tracking began anew, so that every secondary is unknown; ``missing`` and
    ``problems``: secondaries that are not here or cannot be used, which is no failure of the start."""

    name: str
    device: str
    already: bool
    doubt: str | None = None
    missing: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()


def tables(name: str) -> list[Wanted]:
    """What `start` would make: base stack and the legs of the secondaries that are here. Changes nothing."""
    assembly = locate.assemble(name)
    payload = assembly.primary.payload
    wanted = base(assembly.primary, assembly.metadata)
    for record in payload.members:
        placed, cache = assembly.secondaries.get(record.label), assembly.caches.get(record.label)
        if placed is not None and (cache is not None or record.via.type != "writecache"):
            wanted += leg(payload, record, placed, cache, assembly.primary_device.logical_block_bytes)
    return wanted


def start(name: str) -> Started:
    """Start the mirror: exit is clean when only secondaries are missing. Idempotent.

    Raises for a primary that is missing, in use, not authentic or damaged; nothing stands in the kernel then.
    """
    require_targets(["era", "linear"])
    with locked(uuid_of(name), "operation", name=name):
        return started(Running.of(locate.assemble(name)))


def started(running: Running) -> Started:
    """`start` for a caller that holds the operation lock."""
    already = is_active(running.names)
    if already:
        _resume_left(running)
    doubt = None if already else _bring_up(running)
    if not running.payload.tracker.formatted:  # a start that was killed came no further than the kernel
        _hold_era(running, running.era_status().era)
    missing, problems = [], [(label, err.message) for label, err in running.assembly.problems.items()]
    for record in running.payload.members:
        if record.label in running.assembly.problems:
            continue
        if record.label not in running.assembly.secondaries:
            missing.append(record.label)
            continue
        try:
            _welcome(running, record)
        except DmsoftError as err:
            problems.append((record.label, err.message))
    registry.register(running.payload)
    return Started(running.names.name, running.names.top.path, already, doubt, tuple(missing), tuple(problems))


def _resume_left(running: Running) -> None:
    """A command held the mirror still, and both it and its guard died."""
    names = running.names
    with locked(names.mirror_uuid, "kernel", timeout=_KERNEL_SECONDS, name=names.name):
        top, fallback = device(names.top, inner=False), lower_linear(running.assembly.primary).table
        resume_left(top, device(names.lower), fallback)


def _bring_up(running: Running) -> str | None:
    """Check the era metadata, withdraw what does not hold while the mirror runs, load the stack."""
    names = running.names
    leftovers = [*inner_nodes(names), names.top]
    dismantle(leftovers)
    doubt = _check_tracker(running)
    wanted = base(running.assembly.primary, running.assembly.metadata)
    try:
        ensure(wanted[:-1])
        discards_off(names.lower)
        ensure(wanted[-1:], inner=False)
        require_no_discards(names.top)
        status = running.era_status()
        if status.failed or status.era < running.payload.tracker.era_floor:
            raise MetadataError(
                f"The era metadata of {names.name} cannot be used: the kernel shows era {status.era}.",
                hint="Look at the kernel log, then start again.",
            )
        _hold_era(running, status.era)
    except BaseException:
        with contextlib.suppress(DmsoftError):
            dismantle([wanted[0].node, wanted[1].node, names.top])
        raise
    return doubt


def _hold_era(running: Running, era: int) -> None:
    """Permissions are taken away, whichever copy counts: from here on the kernel may not format, and metadata from
    before this start, which lacks its marks, is not taken for this life's after a crash."""
    with running.writing():
        held = running.payload.tracker.replace(formatted=True, era_floor=era)
        members = tuple(_bounded(record, era - 1) for record in running.payload.members)
        running.withdraw(running.payload.replace(tracker=held, members=members))


def _bounded(record: MemberRecord, era: int) -> MemberRecord:
    """A run that was cut off promised no era above ``era``, the last one before this start; one that went on after the
    image was taken that the primary was put back from did."""
    unbounded = record.token_pending is not None and record.pending_most is None
    return record.replace(pending_most=era) if unbounded else record


def _check_tracker(running: Running) -> str | None:
    """Judge the era metadata and write into the primary's header what follows, before the kernel touches any of it.

    From here on the digest of the clean stop is gone. In doubt a new tracker life begins: its id is durable before the
    metadata is zeroed, and every secondary is unknown.
    """
    payload = running.payload
    found = _look(running)
    doubt = running.assembly.doubt or tracker.doubt(
        payload.tracker, found,
        block_sectors=payload.block_bytes // SECTOR,
        nr_blocks=regions.nr_blocks(running.data.length, payload.block_bytes),
    )  # fmt: skip
    with running.writing():
        if doubt is None:
            running.withdraw(payload.replace(tracker=payload.tracker.replace(clean_digest=None)))
            return None
        unknown = tuple(_doubted(record, doubt) for record in payload.members)
        fresh = type(payload.tracker)(id=new_uuid())
        running.withdraw(payload.replace(tracker=fresh, members=unknown))
    _zero_metadata(running)
    return doubt


def _doubted(record: MemberRecord, reason: str) -> MemberRecord:
    """The record of a secondary that is unknown now: no token counts. One never copied has nothing to doubt."""
    sync = record.sync if record.sync.era is None else record.sync.replace(doubt=reason[:200])
    return record.replace(sync=sync, token_pending=None, token_confirmed=None)


def _look(running: Running) -> tracker.Found:
    """Read the metadata as it lies on the disk; every block of it is verified."""
    with running.era_reader() as reader:
        zero, digest = reader.is_zero(), reader.block_digest()
        if zero:
            return tracker.Found(zero, digest, None)
        try:
            superblock = reader.superblock()
            reader.check_space_map()
            if superblock.nr_blocks:
                reader.written_since(0)
        except MetadataError as err:
            return tracker.Found(zero, digest, None, err.message)
    return tracker.Found(zero, digest, superblock)


def _zero_metadata(running: Running) -> None:
    """Zero block 0, which tells the kernel to format."""
    payload, metadata = running.payload, running.assembly.metadata
    number, region = metadata_place(running.assembly.primary, metadata)
    member = payload if metadata is None else metadata.payload
    with open_exclusive(
        node_path(number), purpose="member", expect=member.identity, member_uuid=member.member_uuid,
        own_uuid_prefix=running.names.prefix,
    ) as disk:  # fmt: skip
        disk.pwrite(bytes(_METADATA_BLOCK), region.offset)
        flush(disk, "The primary" if metadata is None else "The metadata device")


def _welcome(running: Running, record: MemberRecord) -> None:
    """A secondary that is here: compare a sample with what it claims, and claim it with its leg."""
    label = record.label
    with job.opened(running, record, running.era_status().era):
        pass  # opening compares the sample; what differs has been withdrawn on the disk by now
    attach.claim(running, label)


def stop(name: str) -> bool:
    """Stop the mirror; returns whether it was running. Raises `BusyError` while somebody uses its device.

    A mirror whose primary is gone is taken down all the same; its metadata is checked like after a crash then.
    """
    uuid = uuid_of(name)
    with locked(uuid, "operation", name=name):
        names = Names(name, uuid)
        active = is_active(names)
        if active:
            require_unused(names)
            with contextlib.suppress(NotFoundError):
                stopped(Running.of(locate.assemble(name)))
        dismantle([*inner_nodes(names), names.top])
        return active


def standing(name: str) -> list[str]:
    """Names of the mirror's devices in the kernel, top first."""
    names = Names(name, uuid_of(name))
    top = [names.top.name] if device(names.top).info() is not None else []
    return [*top, *(node.name for node in reversed(inner_nodes(names)))]


def uuid_of(name: str) -> str:
    """The uuid of a mirror whose primary may be gone by now."""
    known = next((entry.mirror_uuid for entry in registry.entries() if entry.name == name), None)
    return known or locate.primary_of(name, locate.census()).payload.mirror_uuid


def stopped(running: Running) -> None:
    """`stop` for a caller that holds the operation lock, on a mirror that is running and not in use.

    Removing the top archives the era; then the metadata is final, and its digest goes into the header. Removing the
    lower waits for behind writes, which go into the caches; those are written back while their legs still stand.
    """
    names, payload = running.names, running.payload
    lower.require_primary(names)
    coupled = lower.attached_labels(names, [record.label for record in payload.members])
    dismantle([names.top])
    dismantle([names.lower])
    with contextlib.suppress(DmsoftError):  # a cache that cannot be drained costs time later: S never counted on it
        attach.drain_caches(running, coupled)
    dismantle(inner_nodes(names))
    with running.writing():
        running.flush_primary()
        with contextlib.suppress(MetadataError):  # damaged metadata stay without a digest: the next start judges them
            running.grant(payload.replace(tracker=_sealed(running)))


def _sealed(running: Running) -> Tracker:
    """The tracker with the digest of the metadata as they lie there now. Raises `MetadataError`."""
    with running.era_reader() as reader:
        superblock, digest = reader.superblock(), reader.block_digest()
    known = running.payload.tracker
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


def inner_nodes(names: Names) -> list[Node]:
    """Every device of the mirror but its top, bottom up: those standing with its uuid prefix."""
    standing = [Node(info.name, info.uuid) for info in devices(names.prefix)]
    return bottom_up(names, [node for node in standing if node.uuid != names.top.uuid])
