# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of ``dmsoft devices``, made to be read at 80 columns: a line for a device, if there is not much to say."""

from collections.abc import Iterable, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from dmsoft.inventory.candidates import ROLES, Candidate, Reason, Role
from dmsoft.member.survey import Survey
from dmsoft.report.output import clean, console
from dmsoft.units import format_size

_NAME_COLUMNS: Final = 26
_ROLE_COLUMNS: Final = len("secondary")
_EMPTY_KINDS: Final = frozenset({"loop", "zram", "ram", "floppy"})
_ORDER: Final = ("disk", "md", "dm", "loop")
# What device-mapper's users put before their uuids.
_DM_OWNERS: Final = {"LVM-": "LVM volume", "CRYPT-": "encrypted", "mpath-": "multipath", "DMSOFT-": "dmsoft"}
# Virtual disks say that they rotate; so the table would warn of every one. JSON has it.
_UNSAID: Final = frozenset({"rotational"})


def show(found: Survey, *, everything: bool) -> None:
    """Print the table; without ``everything`` leave out what is empty and what dmsoft made itself."""
    out = console()
    shown = [device for device in _in_order(found.devices) if everything or _is_worth_a_row(device)]
    if not shown:
        out.print("There is no block device here.")
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        # rich would rather fold a name that is to be typed than the text at the end.
        longest = min(_NAME_COLUMNS, max(len(device.path) for device in shown))
        table.add_column("device", overflow="fold", min_width=longest, max_width=longest)
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("can be", min_width=_ROLE_COLUMNS, max_width=_ROLE_COLUMNS)
        table.add_column("what it is: why not", overflow="fold")
        for device in shown:
            table.add_row(Text(clean(device.path)), format_size(device.size_bytes), can_be(device), _text(device))
        out.print(table)
    hidden = len(found.devices) - len(shown)
    if hidden:
        out.print(
            f"{hidden} empty or inner device{'s' if hidden > 1 else ''} not shown; --all shows them.", style="dim"
        )
    for sentence in found.missing:
        out.print(Text.assemble(("Not seen: ", "yellow"), clean(sentence)))


def can_be(device: Candidate) -> Text:
    """The roles the device can have: ``anything``, some, all at the price of what is on it, or none."""
    usable = _usable(device)
    if len(usable) == len(ROLES):
        return Text("anything", style="green")
    if usable:
        return Text(", ".join(usable), style="green")
    return Text("--force", style="yellow") if _forced(device) else Text("-", style="dim")


def because(device: Candidate) -> list[str]:
    """What keeps the device from a role, or is to be minded in it, a phrase each."""
    verdicts = device.roles
    everywhere = [reason for reason in verdicts["primary"].reasons if all(reason in verdicts[r].reasons for r in ROLES)]
    if everywhere:
        notes = [reason.text for reason in everywhere]
    elif not _usable(device):
        # Then it is its size, and the role that needs least of it says all.
        notes = [verdicts["cache"].reasons[0].text]
    else:
        notes = _by_role({role: verdicts[role].reasons for role in ROLES})
    minded = _usable(device) or _forced(device)
    return notes + _by_role({role: _said(verdicts[role].warnings) for role in minded})


def _said(warnings: Iterable[Reason]) -> list[Reason]:
    return [warning for warning in warnings if warning.code not in _UNSAID]


def _by_role(reasons: dict[Role, Sequence[Reason]]) -> list[str]:
    """Each text once, after the roles it is about unless it is about all of them."""
    texts: dict[str, list[Role]] = {}
    for role, found in reasons.items():
        for reason in found:
            texts.setdefault(reason.text, []).append(role)
    return [text if len(roles) == len(ROLES) else f"{', '.join(roles)}: {text}" for text, roles in texts.items()]


def _usable(device: Candidate) -> list[Role]:
    return [role for role in ROLES if device.roles[role].usable]


def _forced(device: Candidate) -> list[Role]:
    return [role for role in ROLES if device.roles[role].with_force]


def _text(device: Candidate) -> Text:
    notes = because(device)
    return Text.assemble(clean(_what(device)), *((": ", (clean("; ".join(notes)), "dim")) if notes else ()))


def _what(device: Candidate) -> str:
    """The kind, what it is attached to, and the name on its label."""
    if device.kind == "dm":
        return next((name for prefix, name in _DM_OWNERS.items() if (device.dm_uuid or "").startswith(prefix)), "dm")
    if device.kind != "disk":
        return device.kind
    return " ".join(word for word in (device.bus or "disk", device.model or device.serial) if word)


def _in_order(devices: Iterable[Candidate]) -> list[Candidate]:
    """Disks first, each with its partitions; then what is built on them."""
    kinds = {device.name: device.kind for device in devices}

    def rank(device: Candidate) -> int:
        kind = kinds.get(device.parent or device.name, device.kind)
        return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)

    return sorted(devices, key=rank)


def _is_worth_a_row(device: Candidate) -> bool:
    empty = device.size_bytes == 0 and device.kind in _EMPTY_KINDS
    return not empty and not (device.dm_uuid or "").startswith("DMSOFT-")
