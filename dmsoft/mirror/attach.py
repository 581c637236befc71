# SPDX-License-Identifier: GPL-2.0-or-later
"""Coupling secondaries to the lower in the kernel, and uncoupling them (write-behind mode).

Everything that takes time is prepared before the barrier: legs, zeroed raid slots, the raid1 table in the lower's
inactive slot. Inside the barrier there is one suspend and one resume of the lower. The raid1 always starts with fresh
metadata and ``nosync``: that both sides are equal is the engine's proof, never md's word.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dmsoft.dm.kernel import require_targets
from dmsoft.errors import BusyError, DeviceError, DmsoftError, KernelError, NotFoundError
from dmsoft.inventory.sysfs import block_device
from dmsoft.member.gate import open_exclusive
from dmsoft.member.payload import Cache
from dmsoft.member.regions import slot
from dmsoft.mirror import alone, backlog, lower
from dmsoft.mirror.execute import device, dismantle, ensure
from dmsoft.mirror.guard import Guard
from dmsoft.mirror.names import SLOTS_PER_SET, Node
from dmsoft.mirror.plan import Placed, leg, leg_nodes, raid
from dmsoft.mirror.running import Running, node_path, write
from dmsoft.units import SECTOR

# Superblock and the head of the bitmap: md takes the leg as new, and writes the rest itself.
_SLOT_HEAD_BYTES = 8192
_CACHE_HEAD_BYTES = 4096


@dataclass(slots=True)
class Attachment:
    """A raid1 that waits in the lower's inactive slot; ``swapped`` when it has become live."""

    labels: tuple[str, ...]
    swapped: bool = False


@contextlib.contextmanager
def prepared(running: Running, labels: Sequence[str]) -> Iterator[Attachment]:
    """Prepare to attach ``labels``, detached by now; what the block does not swap in is taken down again."""
    names = running.names
    alone.forget(names)
    slot_set = free_slot_set(running)
    wanted = raid(running.assembly.primary, labels, slot_set)
    parts, (top,) = wanted[:-1], wanted[-1:]
    attachment, made = Attachment(tuple(labels)), []
    try:
        for label in labels:
            made += ensure_leg(running, label)
        made += ensure(parts)
        _zero_slots(running, slot_set, len(labels) + 1)
        device(names.lower).load(top.table)
        yield attachment
    finally:
        if not attachment.swapped and not lower.is_raid(names):
            with contextlib.suppress(DmsoftError):
                device(names.lower).clear()
                dismantle(made)


def renew(running: Running, guard: Guard) -> float:
    """Put a new raid1 with the same legs in place of the one that runs: every write behind has ended by then, and later
    ones go on being sent in order, which a mere suspend and resume of the old one would end.

    Returns how long I/O waited, in seconds. Only inside `Running.writing`. Raises `BacklogError`, `DeviceError`,
    `PrimaryDroppedError`, `SecondaryDroppedError`, and `BusyError` while two old ones are still being taken down.
    """
    names = running.names
    labels = lower.attached_labels(names, [record.label for record in running.payload.members])
    slot_set = free_slot_set(running)
    *parts, top = raid(running.assembly.primary, labels, slot_set)
    for label in labels:
        backlog.settle(names, label)
    try:
        ensure(parts)
        _zero_slots(running, slot_set, len(labels) + 1)
        stall = lower.swap(names, guard, top.table)
    finally:
        lower.tidy(names)
    if not lower.is_raid(names):
        raise DeviceError(
            f"The secondaries of {names.name} had to be uncoupled: writes behind did not end in time.",
            hint="Run the command again: it catches them up and couples them again.",
        )
    return stall


def claim(running: Running, label: str) -> list[Node]:
    """Have the kernel hold a present secondary's disk for us: its leg, or what lies under a writecache leg. Returns the
    nodes made.

    The leg of a disk that was unplugged and came back still leads to the disk that is gone; it is made anew.
    """
    record, placed = running.payload.member(label), running.assembly.secondaries.get(label)
    if record is None or placed is None or label in lower.attached_labels(running.names, [label]):
        return []
    first = leg(running.payload, record, placed, running.assembly.caches.get(label), SECTOR)[0]
    if lower.leads_to(first.node, placed.number):
        return []
    dismantle(leg_nodes(running.names, label))
    return ensure([first])


def ensure_leg(running: Running, label: str) -> list[Node]:
    """Make the whole leg of a claimed secondary stand; returns the nodes made. A writecache starts out empty."""
    record, placed = running.payload.member(label), running.assembly.secondaries.get(label)
    if record is None or placed is None:
        raise NotFoundError(f"The secondary {label} of {running.names.name} is not here.", hint="Plug it in.")
    cache = running.assembly.caches.get(label)
    if record.mode == "write-behind" and record.via.type == "writecache":
        if cache is None:
            raise NotFoundError(f"The cache device of {label} is not here.", hint="Plug it in and try again.")
        dismantle([running.names.leg_cache(label), running.names.leg(label)])
        _reset_cache(running, cache)
    block_bytes = block_device(running.names.top.path).logical_block_bytes
    _check_block_size(placed.number, block_bytes, label, coupled=record.mode == "write-behind")
    return ensure(leg(running.payload, record, placed, cache, block_bytes))


def detach(running: Running, labels: Sequence[str], guard: Guard) -> None:
    """Uncouple every secondary: the lower becomes linear. Legs of ``labels`` are removed, so that no cache can write
    anything over what is copied to the disk afterwards. Raises `PrimaryDroppedError`, `BacklogError`."""
    changed: list[str] = []
    if lower.is_raid(running.names):
        lower.require_primary(running.names)
        coupled = lower.attached_labels(running.names, [record.label for record in running.payload.members])
        changed = backlog.shrink(running.names, coupled, guard)
        lower.detach(running.names, guard)
    else:
        lower.tidy(running.names)
    for label in labels:
        dismantle(leg_nodes(running.names, label))
    for label in set(changed) - set(labels):
        with contextlib.suppress(DmsoftError):  # one whose disk is gone is made anew when that comes back
            dismantle(leg_nodes(running.names, label))
            claim(running, label)


def drain_caches(running: Running, labels: Sequence[str]) -> None:
    """Have each writecache leg write everything to its disk, then flush the disk; raises `DeviceError`."""
    for label in labels:
        node = running.names.leg(label)
        if not lower.leg_alive(node):
            continue
        target = device(node)
        (line,) = target.table()
        if line.kind == "writecache":
            target.message("flush")


def _targets(running: Running, labels: Sequence[str]) -> list[str]:
    kinds = {record.via.type for record in running.payload.members if record.label in labels}
    return sorted(kinds - {"direct"})


def free_slot_set(running: Running) -> int:
    """A set of which no device stands: an old raid1 may still write to its own while it is destroyed."""
    for slot_set in (0, 1):
        nodes = [running.names.slot(slot_set * SLOTS_PER_SET + i) for i in range(SLOTS_PER_SET)]
        if all(device(node).info() is None for node in nodes):
            return slot_set
    raise BusyError(
        "Two former raid1 tables of this mirror are still being taken down by the kernel.",
        hint="One of their legs hangs; unplug that disk, or wait.",
    )


def _zero_slots(running: Running, slot_set: int, legs: int) -> None:
    first = slot_set * SLOTS_PER_SET
    disk = running.primary
    for index in range(first, first + legs):
        write(disk, bytes(_SLOT_HEAD_BYTES), slot(running.payload, index).offset, "The primary")


def _reset_cache(running: Running, cache: Placed[Cache]) -> None:
    payload = cache.payload
    with open_exclusive(
        node_path(cache.number),
        purpose="member",
        expect=payload.identity,
        member_uuid=payload.member_uuid,
        own_uuid_prefix=running.names.prefix,
    ) as disk:
        write(disk, bytes(_CACHE_HEAD_BYTES), payload.regions["data"].offset, "The cache device")


def _check_block_size(number: str, block_bytes: int, label: str, *, coupled: bool) -> None:
    theirs = block_device(node_path(number)).logical_block_bytes
    if coupled and theirs > block_bytes:
        raise DeviceError(
            f"{label} has logical blocks of {theirs} bytes and the mirror passes on requests of {block_bytes}.",
            hint="Use it in periodic mode, which always copies whole era blocks.",
        )


def check_kernel(running: Running, labels: Sequence[str]) -> None:
    """Refuse a kernel that lacks what these secondaries need or whose raid1 loses write-behind writes.

    Before anything is taken apart. Raises `KernelError`.
    """
    require_targets(["raid", *_targets(running, labels)])
    check_raid1()


def check_raid1() -> None:
    """Raise `KernelError` on a kernel whose raid1 is known to lose write-behind writes.

    From 6.14 to 6.16 the behind writes of a write-mostly leg were sent as reads; "md/raid1: fix data lost for
    writemostly rdev" mended that.
    """
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if (6, 14) <= release <= (6, 16):
        raise KernelError(
            f"The raid1 of kernel {os.uname().release} silently drops write-behind writes.",
            hint="Use periodic mode, or boot another kernel.",
        )
