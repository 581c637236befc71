# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a mirror.

All gates pass before the first byte is written. Headers are written primary first, so that whatever a crash leaves
behind can be found by its mirror's uuid and repeated or destroyed; an error in the middle takes everything back.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from dmsoft.dm.failures import NameTakenError
from dmsoft.dm.kernel import require_targets
from dmsoft.errors import DmsoftError, UsageError
from dmsoft.member import header, keys, regions
from dmsoft.member.distinct import distinct
from dmsoft.member.gate import GatedDevice, open_exclusive
from dmsoft.member.payload import (
    MAX_SECONDARIES,
    MAX_SECONDS,
    AnyPayload,
    Cache,
    MemberRecord,
    Metadata,
    MetadataRecord,
    Mode,
    Primary,
    Secondary,
    Tracker,
    Via,
)
from dmsoft.mirror import locate, registry
from dmsoft.mirror.execute import dismantle
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names, check_label, check_name, new_uuid
from dmsoft.mirror.plan import Placed, Wanted, base, check_coupled, leg, likely_shielded, names_of
from dmsoft.mirror.running import Running
from dmsoft.mirror.start import inner_nodes, started
from dmsoft.mirror.times import now
from dmsoft.units import format_size

DEFAULT_BLOCK_BYTES = regions.default_block_bytes(0)
"""Of all but very large disks."""
DEFAULT_INTERVAL = 300.0


@dataclass(frozen=True, slots=True)
class SecondarySpec:
    """A secondary as asked for. ``cache`` is the device of a writecache leg, ``delay_ms`` of a delay leg;
    ``interval`` in seconds; ``journal_bytes`` None takes the default; ``expect``: seconds that it may be away."""

    label: str
    device: str
    mode: Mode = "periodic"
    cache: str | None = None
    delay_ms: int | None = None
    interval: float = DEFAULT_INTERVAL
    journal_bytes: int | None = None
    expect: float | None = None


@dataclass(frozen=True, slots=True)
class MirrorSpec:
    """A mirror as asked for; sizes in bytes, ``interval`` in seconds; ``block_bytes`` None takes the default."""

    name: str
    primary: str
    secondaries: tuple[SecondarySpec, ...]
    mode: Mode = "periodic"
    interval: float = DEFAULT_INTERVAL
    block_bytes: int | None = None
    metadata: str | None = None
    force: bool = False

    @property
    def devices(self) -> list[str]:
        """Every device that becomes a member."""
        return [self.primary, *([self.metadata] if self.metadata else []), *devices_of(self.secondaries)]


class Created(msgspec.Struct, frozen=True):
    """A mirror that `create` made, or would make: ``tables`` are the exact lines; ``untracked``: why nothing is
    tracked."""

    name: str
    uuid: str
    device: str
    size_bytes: int
    block_bytes: int
    secondaries: tuple[str, ...]
    tables: tuple[str, ...]
    untracked: str | None = None


def create(spec: MirrorSpec, *, dry_run: bool = False) -> Created:
    """Write the headers and start the mirror; nothing is copied. With ``dry_run`` every check, and no change.

    Raises whatever the gate says, `TooSmallError`, `NameTakenError`, `UsageError`; nothing is changed then.
    """
    check_name(spec.name)
    _check_labels([each.label for each in spec.secondaries])
    if spec.block_bytes is not None:
        _check_block_size(spec.block_bytes)
    _check_interval(spec.interval)
    distinct(spec.devices)
    require_targets(["era", "linear"])
    unfinished = _unfinished(spec)
    if unfinished is None:
        _check_name_free(spec.name)
    names = Names(spec.name, unfinished or new_uuid())
    mirror_uuid = names.mirror_uuid
    with locked(mirror_uuid, "operation", name=spec.name, verb="create"), contextlib.ExitStack() as undo:
        if unfinished is not None and not dry_run:
            dismantle_all(names)
        own = names.prefix if unfinished is not None and dry_run else None
        with contextlib.ExitStack() as stack:
            opened = {
                path: stack.enter_context(
                    open_exclusive(path, purpose="new", force=spec.force, replaces=unfinished, own_uuid_prefix=own)
                ) for path in spec.devices
            }  # fmt: skip
            headers = _headers(spec, mirror_uuid, opened)
            created = _preview(spec, headers, opened)
            if dry_run:
                return created
            key = _key(mirror_uuid, undo)
            for path, payload in headers.items():
                opened[path].clear()
                undo.callback(wipe_quietly, path, payload.member_uuid)
                header.write_first(opened[path], payload, key)
        # Before the headers go, or they could not: what stands would hold the disks, and its key would be lost.
        undo.callback(dismantle_quietly, names)
        done = started(Running.of(locate.assemble(spec.name)))
        undo.pop_all()
    return msgspec.structs.replace(created, untracked=done.untracked)


def _check_labels(labels: Sequence[str]) -> None:
    if not labels:
        raise UsageError("A mirror needs at least one secondary.", hint="Name one with --secondary [LABEL=]DEV.")
    for label in labels:
        check_label(label)
    if len(set(labels)) != len(labels):
        raise UsageError("Two secondaries have the same label.", hint="Give each one its own: --secondary LABEL=DEV.")
    if len(labels) > MAX_SECONDARIES:
        raise UsageError(f"A mirror has at most {MAX_SECONDARIES} secondaries.")


def _check_block_size(size_bytes: int) -> None:
    if size_bytes % 4096 or not 4096 <= size_bytes <= regions.MAX_BLOCK_BYTES:
        raise UsageError(
            f"Blocks of {format_size(size_bytes)} cannot be tracked.",
            hint="Choose a multiple of 4 KiB, from 4K to 2G; 1M suits most disks.",
        )


def _check_interval(seconds: float) -> None:
    if not 0 <= seconds <= MAX_SECONDS:
        raise UsageError(f"An interval of {seconds:.0f} seconds is too long.", hint="Choose one such as 30s, 5m or 1d.")


def devices_of(secondaries: Sequence[SecondarySpec]) -> list[str]:
    """Every device that the secondaries name: their disks and their caches."""
    return [path for each in secondaries for path in (each.device, each.cache) if path is not None]


def _check_name_free(name: str) -> None:
    if any(entry.name == name for entry in registry.entries()) or any(
        member.payload.mirror_name == name for member in locate.census().primaries()
    ):
        raise NameTakenError(
            f"There is a mirror named {name} already.", hint="Choose another name, or `dmsoft destroy` that one first."
        )
    if os.path.lexists(f"/dev/mapper/{name}"):
        raise NameTakenError(f"/dev/mapper/{name} exists already.", hint="Choose another name.")


def _unfinished(spec: MirrorSpec) -> str | None:
    """The uuid of a mirror of that name whose create died on that primary before it first ran: it is made anew.

    Only a header with this host's signature says so: a forged one could name a mirror that is alive.
    """
    try:
        found = header.read(spec.primary, key=keys.load).header
    except DmsoftError:
        return None
    payload = None if found is None or not found.verified else found.payload
    if not isinstance(payload, Primary) or payload.mirror_name != spec.name or payload.tracker.formatted:
        return None
    return payload.mirror_uuid


def _key(mirror_uuid: str, undo: contextlib.ExitStack) -> bytes:
    known = keys.load(mirror_uuid)
    if known is not None:
        return known
    undo.callback(keys.remove, mirror_uuid)
    return keys.create(mirror_uuid)


def _headers(spec: MirrorSpec, mirror_uuid: str, opened: Mapping[str, GatedDevice]) -> dict[str, AnyPayload]:
    """The header of every device by its path, the primary's first."""
    disk = opened[spec.primary]
    block_bytes = spec.block_bytes or regions.default_block_bytes(disk.size_bytes)
    layout = regions.primary_layout(disk.size_bytes, block_bytes, separate_metadata=spec.metadata is not None)
    primary = Primary(
        mirror_uuid=mirror_uuid, mirror_name=spec.name, member_uuid=new_uuid(), identity=disk.identity,
        regions=layout, created=now(), mode=spec.mode, interval_seconds=spec.interval, block_bytes=block_bytes,
        tracker=Tracker(id=new_uuid()), generation=(new_uuid(),),
    )  # fmt: skip
    rest: dict[str, AnyPayload] = {}
    if spec.metadata is not None:
        where = opened[spec.metadata]
        blocks = regions.nr_blocks(layout["data"].length, block_bytes)
        record = MetadataRecord(new_uuid(), where.identity)
        primary = primary.replace(metadata=record)
        rest[spec.metadata] = Metadata(
            mirror_uuid=mirror_uuid, mirror_name=spec.name, member_uuid=record.member_uuid, identity=where.identity,
            regions=regions.metadata_layout(where.size_bytes, blocks), created=now(),
        )  # fmt: skip
    for each in spec.secondaries:
        headers, member = secondary_headers(each, primary, opened)
        primary = primary.with_member(member)
        rest |= headers
    return {spec.primary: primary, **rest}


def secondary_headers(
    spec: SecondarySpec, primary: Primary, opened: Mapping[str, GatedDevice]
) -> tuple[dict[str, AnyPayload], MemberRecord]:
    """The headers of one new secondary and its cache by path, and the primary's record of it.

    Raises `UsageError` for what a header cannot hold, `TooSmallError`.
    """
    _check_interval(spec.interval)
    check_coupled(sum(record.mode == "write-behind" for record in primary.members) + (spec.mode == "write-behind"))
    disk = opened[spec.device]
    data = primary.regions["data"]
    uuid, name, created = primary.mirror_uuid, primary.mirror_name, now()
    secondary = Secondary(
        mirror_uuid=uuid, mirror_name=name, created=created,
        member_uuid=new_uuid(), identity=disk.identity, label=spec.label, block_bytes=primary.block_bytes,
        generation=primary.generation,
        regions=regions.secondary_layout(
            disk.size_bytes, data_bytes=data.length, reserve_bytes=data.offset, journal_bytes=spec.journal_bytes
        ),
    )  # fmt: skip
    headers: dict[str, AnyPayload] = {spec.device: secondary}
    via = Via(type="delay", delay_ms=spec.delay_ms) if spec.delay_ms is not None else Via()
    if spec.cache is not None:
        store = opened[spec.cache]
        cache = Cache(
            mirror_uuid=uuid, mirror_name=name, created=created,
            member_uuid=new_uuid(), identity=store.identity, label=spec.label,
            secondary_uuid=secondary.member_uuid, regions=regions.cache_layout(store.size_bytes),
        )  # fmt: skip
        headers[spec.cache] = cache
        via = Via(type="writecache", cache_uuid=cache.member_uuid, cache_identity=store.identity)
    record = MemberRecord(
        label=spec.label, member_uuid=secondary.member_uuid, identity=disk.identity, mode=spec.mode, via=via,
        interval_seconds=spec.interval, expect_seconds=spec.expect,
    )  # fmt: skip
    return headers, record


def _preview(spec: MirrorSpec, headers: Mapping[str, AnyPayload], opened: Mapping[str, GatedDevice]) -> Created:
    primary, metadata = headers[spec.primary], headers.get(spec.metadata or "")
    if not isinstance(primary, Primary):
        raise TypeError("the first header is the primary's")
    placed = Placed(primary, number_of(opened[spec.primary]))
    where = Placed(metadata, number_of(opened[spec.metadata or ""])) if isinstance(metadata, Metadata) else None
    wanted = base(placed, where, shielded=likely_shielded())
    block_bytes = opened[spec.primary].device.logical_block_bytes
    for each in spec.secondaries:
        wanted += preview_leg(each, primary, headers, opened, block_bytes)
    return Created(
        spec.name, primary.mirror_uuid, names_of(primary).top.path, primary.regions["data"].length,
        primary.block_bytes, tuple(each.label for each in spec.secondaries),
        tuple(line for one in wanted for line in one.lines()),
    )  # fmt: skip


def preview_leg(
    spec: SecondarySpec, primary: Primary, headers: Mapping[str, AnyPayload], opened: Mapping[str, GatedDevice],
    block_bytes: int,
) -> list[Wanted]:  # fmt: skip
    """The tables of a leg that does not exist yet."""
    record, secondary, cache = primary.member(spec.label), headers[spec.device], headers.get(spec.cache or "")
    if record is None or not isinstance(secondary, Secondary):
        raise TypeError("the headers are not those of this secondary")
    store = Placed(cache, number_of(opened[spec.cache or ""])) if isinstance(cache, Cache) else None
    return leg(primary, record, Placed(secondary, number_of(opened[spec.device])), store, block_bytes)


def number_of(disk: GatedDevice) -> str:
    return f"{disk.device.major}:{disk.device.minor}"


def wipe_member(path: str, member_uuid: str) -> None:
    """Wipe the header of that member, through the gate: it must be that member and not in use."""
    with open_exclusive(path, purpose="member", member_uuid=member_uuid) as disk:
        header.wipe(disk)


def wipe_quietly(path: str, member_uuid: str) -> None:
    """Take back a header that was just written; one that is not there any more is no error."""
    with contextlib.suppress(DmsoftError):
        wipe_member(path, member_uuid)


def dismantle_quietly(names: Names) -> None:
    with contextlib.suppress(DmsoftError):
        dismantle_all(names)


def dismantle_all(names: Names) -> None:
    """Remove every device of the mirror that stands, whatever state it is in."""
    dismantle([*inner_nodes(names), names.top])
