# SPDX-License-Identifier: GPL-2.0-or-later
"""Members that come and go for good, and the end of a mirror: add, remove, destroy."""

import contextlib

from dmsoft.errors import NotFoundError, UsageError
from dmsoft.member import header, keys
from dmsoft.member.distinct import distinct
from dmsoft.member.gate import open_exclusive
from dmsoft.member.payload import MAX_SECONDARIES, Primary
from dmsoft.mirror import alone, attach, locate, lower, plug, registry
from dmsoft.mirror.create import (
    SecondarySpec,
    devices_of,
    dismantle_all,
    preview_leg,
    secondary_headers,
    wipe_member,
    wipe_quietly,
)
from dmsoft.mirror.execute import dismantle
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names, check_label
from dmsoft.mirror.plan import leg_nodes
from dmsoft.mirror.running import Running, guard_of, is_active, node_path
from dmsoft.mirror.start import started, uuid_of
from dmsoft.mirror.stop import require_unused


def add(name: str, spec: SecondarySpec, *, force: bool = False, dry_run: bool = False) -> list[str]:
    """Add a secondary to a mirror, running or not; it begins ``stale`` with S none. Returns its leg's tables."""
    check_label(spec.label)
    with locked(uuid_of(name), "operation", name=name, verb="add"):
        running = Running.of(locate.assemble(name))
        running.require_undoubted()
        payload = running.payload
        if payload.member(spec.label) is not None:
            raise UsageError(f"{name} already has a secondary {spec.label}.", hint="Choose another label.")
        if len(payload.members) >= MAX_SECONDARIES:
            raise UsageError(f"{name} has {MAX_SECONDARIES} secondaries, and that is the most there can be.")
        distinct(devices_of([spec]), beside=[running.assembly.primary_device, *running.assembly.devices.values()])
        with contextlib.ExitStack() as undo:
            with contextlib.ExitStack() as stack:
                opened = {
                    path: stack.enter_context(open_exclusive(path, purpose="new", force=force))
                    for path in devices_of([spec])
                }
                headers, record = secondary_headers(spec, payload, opened)
                wider = payload.with_member(record)
                block_bytes = running.assembly.primary_device.logical_block_bytes
                tables = [
                    line for one in preview_leg(spec, wider, headers, opened, block_bytes) for line in one.lines()
                ]
                if dry_run:
                    return tables
                for path, member in headers.items():
                    opened[path].clear()
                    undo.callback(wipe_quietly, path, member.member_uuid)
                    header.write_first(opened[path], member, running.assembly.key)
            with running.writing():
                running.grant(wider)
            undo.pop_all()
        plug.forget(running.names, spec.label)  # of an earlier one of that label, on the same disk maybe
        fresh = Running.of(locate.assemble(name))
        if is_active(fresh.names):
            started(fresh)
        return tables


def free_label(name: str) -> str:
    """The first of s1, s2 and so on that no secondary of the mirror has."""
    taken = {record.label for record in locate.assemble(name).primary.payload.members}
    return next(label for n in range(1, MAX_SECONDARIES + 2) if (label := f"s{n}") not in taken)


def remove(name: str, label: str, *, dry_run: bool = False) -> bool:
    """Take a secondary out of the mirror; returns whether its header could be wiped (its disk is here)."""
    uuid = uuid_of(name)
    with locked(uuid, "operation", name=name, verb="remove"), alone.marking(Names(name, uuid), dry_run=dry_run):
        running = Running.of(locate.assemble(name))
        running.require_undoubted()
        record = running.payload.member(label)
        if record is None:
            known = ", ".join(each.label for each in running.payload.members) or "none"
            raise NotFoundError(f"{name} has no secondary {label}.", hint=f"It has {known}.")
        paths = _present(running, label)
        if dry_run:
            return bool(paths)
        if label in lower.attached_labels(running.names, [label]):
            running.require_active()
            with guard_of(running, coupled=True) as guard:
                attach.detach(running, [label], guard)
        else:
            lower.tidy(running.names)  # a raid1 that waits for its turn may hold the leg
        dismantle(leg_nodes(running.names, label))
        with running.writing():
            running.withdraw(running.payload.without_member(label))
        for path, member_uuid in paths:
            wipe_member(path, member_uuid)
        return bool(paths)


def _present(running: Running, label: str) -> list[tuple[str, str]]:
    """Path and member uuid of the secondary's disk and cache, those that are here."""
    found = []
    for placed in (running.assembly.secondaries.get(label), running.assembly.caches.get(label)):
        if placed is not None:
            found.append((node_path(placed.number), placed.payload.member_uuid))
    return found


def destroy(name: str, *, dry_run: bool = False) -> list[str]:
    """End a mirror: stop it and wipe the header of every member that is here; returns their paths. A copy of a header
    on another device, or one that is not signed, is left as it is.

    Also ends what a create that died left behind. Raises `BusyError` while its device is in use.
    """
    seen = locate.census()
    mirror_uuid = _uuid_to_destroy(name, seen)
    with locked(mirror_uuid, "operation", name=name, verb="destroy"):
        names = Names(name, mirror_uuid)
        members = [m for m in seen.members if m.payload.mirror_uuid == mirror_uuid and m.is_genuine()]
        if is_active(names):
            require_unused(names)
        if dry_run:
            return [m.device.path for m in members]
        dismantle_all(names)
        # The primary goes last: as long as it is there, the mirror can still be found and destroyed again.
        for member in sorted(members, key=lambda m: isinstance(m.payload, Primary)):
            wipe_member(member.device.path, member.payload.member_uuid)
        keys.remove(mirror_uuid)
        registry.forget(name)
        plug.end(names)
        return [m.device.path for m in members]


def _uuid_to_destroy(name: str, seen: locate.Census) -> str:
    """By primary if it is here, else by any member or the registry: what is left must be possible to end."""
    try:
        return locate.primary_of(name, seen).payload.mirror_uuid
    except NotFoundError:
        found = {m.payload.mirror_uuid for m in seen.members if m.payload.mirror_name == name}
        found |= {entry.mirror_uuid for entry in registry.entries() if entry.name == name}
        if len(found) != 1:
            raise
        return found.pop()
