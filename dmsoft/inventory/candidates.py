# SPDX-License-Identifier: GPL-2.0-or-later
"""What each device could become, decided from facts alone. Sizes are bytes.

The codes are the gate's where the gate would say the same; ``blivet`` is a reason that only blivet has.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from msgspec import Struct

from dmsoft.inventory.signatures import Signature
from dmsoft.inventory.sysfs import BlockDevice
from dmsoft.inventory.usage import Use
from dmsoft.units import format_size

Role = Literal["primary", "secondary", "cache"]
ROLES: Final[tuple[Role, ...]] = ("primary", "secondary", "cache")

_HOTPLUG_BUSES: Final = frozenset({"usb", "mmc", "firewire"})
_MEMORY_KINDS: Final = frozenset({"ram", "zram"})


class Reason(Struct, frozen=True):
    """Why not, or what to mind: ``text`` is a phrase."""

    code: str
    text: str


class Facts(Struct, frozen=True):
    """What is known of a device. ``member``: what it is in which mirror; ``doubt``: why its contents are not known;
    ``advice``: what blivet says of it; ``other``: further reasons, such as that it is the chosen primary itself.
    """

    device: BlockDevice
    by_id: tuple[str, ...] = ()
    uses: tuple[Use, ...] = ()
    signatures: tuple[Signature, ...] = ()
    member: str | None = None
    doubt: str | None = None
    advice: tuple[str, ...] = ()
    other: tuple[Reason, ...] = ()


class Verdict(Struct, frozen=True):
    """``with_force``: not usable as it is, but all that is against it is what ``--force`` erases."""

    usable: bool
    with_force: bool = False
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[Reason, ...] = ()


class Candidate(Struct, frozen=True):
    """A device and the verdicts on it."""

    path: str
    kind: str
    size_bytes: int
    read_only: bool
    removable: bool
    rotational: bool
    model: str | None
    serial: str | None
    bus: str | None
    parent: str | None
    by_id: tuple[str, ...]
    member: str | None
    blivet: tuple[str, ...]
    roles: dict[Role, Verdict]
    name: str
    dm_uuid: str | None = None

    @property
    def usable(self) -> bool:
        return any(verdict.usable for verdict in self.roles.values())


def judge(facts: Facts, minimum: Mapping[Role, int]) -> Candidate:
    """What the device of ``facts`` could become, given the least size that each role needs."""
    device = facts.device
    shared = _reasons(facts)
    return Candidate(
        path=f"/dev/mapper/{device.dm_name}" if device.dm_name else device.path,
        kind=device.kind,
        size_bytes=device.size_bytes,
        read_only=device.read_only,
        removable=_unpluggable(device),
        rotational=device.rotational,
        model=device.model,
        serial=device.serial,
        bus=device.bus,
        parent=device.parent,
        by_id=facts.by_id,
        member=facts.member,
        blivet=facts.advice,
        roles={role: _verdict(device, role, shared, minimum[role]) for role in ROLES},
        name=device.name,
        dm_uuid=device.dm_uuid,
    )


def _verdict(device: BlockDevice, role: Role, shared: Sequence[Reason], minimum_bytes: int) -> Verdict:
    reasons = list(shared)
    if 0 < device.size_bytes < minimum_bytes:
        reasons.append(Reason("gate-too-small", f"too small ({format_size(minimum_bytes)} needed)"))
    return Verdict(
        usable=not reasons,
        with_force=bool(reasons) and all(reason.code == "gate-signature" for reason in reasons),
        reasons=tuple(reasons),
        warnings=tuple(_warnings(device, role)),
    )


def _reasons(facts: Facts) -> list[Reason]:
    """Everything that keeps the device from any role, the most telling first."""
    device = facts.device
    found = [Reason("gate-member", facts.member)] if facts.member else []
    found += [Reason(f"gate-{use.kind}", use.text) for use in facts.uses]
    found += facts.other
    if device.kind == "cdrom":
        found.append(Reason("gate-readonly", "a CD or DVD drive"))
    elif device.size_bytes == 0:
        empty = "no file behind it" if device.kind == "loop" else "no size (no medium)"
        found.append(Reason("gate-too-small", empty))
    elif device.read_only:
        found.append(Reason("gate-readonly", "read-only"))
    if facts.doubt:
        found.append(Reason("gate-unknown", facts.doubt))
    found += _contents(device, facts.signatures)
    if not found:
        # Where the probes found nothing, blivet is a second opinion; where they did, it only says it again.
        found += [Reason("blivet", f"blivet says {text}") for text in facts.advice]
    return found


def _contents(device: BlockDevice, signatures: Sequence[Signature]) -> list[Reason]:
    found = []
    for one in signatures:
        text = f"holds a {one}" if one.is_table else f"holds {one}"
        if one.is_table and device.partitions:
            count = len(device.partitions)
            text += f" with {count} partition{'s' if count > 1 else ''}"
        found.append(Reason("gate-signature", text))
    return found


def _warnings(device: BlockDevice, role: Role) -> list[Reason]:
    found = []
    if role != "secondary" and _unpluggable(device):
        found.append(Reason("removable", "removable, and the mirror needs it"))
    if role == "cache" and device.rotational:
        found.append(Reason("rotational", "rotates: a slow cache"))
    if device.kind in _MEMORY_KINDS:
        found.append(Reason("volatile", "memory: empty after a power cut"))
    return found


def _unpluggable(device: BlockDevice) -> bool:
    return device.removable or device.bus in _HOTPLUG_BUSES
