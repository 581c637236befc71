# SPDX-License-Identifier: GPL-2.0-or-later
"""A header as a person can read it."""

from rich.table import Table

from dmsoft.member.examination import Examination
from dmsoft.report.output import console
from dmsoft.units import format_size

_AUTHENTIC = {True: "yes", False: "NO: not signed with this host's key", None: "not known: this host has no key for it"}


def show(device: str, found: Examination) -> None:
    out = console()
    out.print(f"[bold]{device}[/bold]  {found.role} of the mirror {found.mirror_name}, {format_size(found.size_bytes)}")
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in _facts(found):
        table.add_row(f"  {name}", value)
    out.print(table)
    for problem in found.problems:
        out.print(f"  [red]problem[/red]: {problem}")


def _facts(found: Examination) -> list[tuple[str, str]]:
    rows = [
        ("mirror", found.mirror_uuid),
        ("member", found.member_uuid),
        ("created", found.created),
        ("authentic", _AUTHENTIC[found.authentic]),
        ("copies", "; ".join(f"{c.slot}: {c.status}{_sequence(c.sequence)}{_why(c.reason)}" for c in found.copies)),
    ]
    rows += [
        (f"region {name}", f"{format_size(r.length)} at byte {r.offset}")
        for name, r in sorted(found.regions.items(), key=lambda item: item[1].offset)
    ]
    if found.sync is not None:
        sync = found.sync
        rows.append(("label", found.label or "-"))
        rows.append(("synced", "never copied" if sync.era is None else f"every write before era {sync.era}"))
        rows.append(
            ("whole", f"yes, as of {sync.consistent_as_of}" if sync.consistent else "no: a copy is or was under way")
        )
        if sync.doubt:
            rows.append(("doubt", sync.doubt))
    for record in found.members or ():
        era = "never copied" if record.sync.era is None else f"before era {record.sync.era}"
        rows.append((f"secondary {record.label}", f"{record.mode}, {record.via.type}, {era}, {record.member_uuid}"))
    return rows


def _sequence(number: int | None) -> str:
    return "" if number is None else f" (sequence {number})"


def _why(reason: str | None) -> str:
    return f", {reason}" if reason else ""
