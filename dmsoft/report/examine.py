# SPDX-License-Identifier: GPL-2.0-or-later
"""A header as a person can read it."""

from rich.table import Table
from rich.text import Text

from dmsoft.member.examination import CopyView, Examination
from dmsoft.member.payload import MemberRecord, Sync
from dmsoft.member.record import Record
from dmsoft.report.output import clean, say, show_table, time_text
from dmsoft.units import format_size

_AUTHENTIC = {True: "yes", False: "NO: not signed with this host's key", None: "not known: this host has no key for it"}


def show(device: str, found: Examination) -> None:
    say(f"{device}: {found.role} of the mirror {found.mirror_name}, {format_size(found.size_bytes)}", hang=2)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in _facts(found):
        table.add_row(Text(clean(name)), Text(clean(value)))
    show_table(table)
    for problem in found.problems:
        say(f"  problem: {problem}", hang=2)


def _facts(found: Examination) -> list[tuple[str, str]]:
    rows = [
        ("mirror", found.mirror_uuid),
        ("member", found.member_uuid),
        ("created", time_text(found.created)),
        ("authentic", _AUTHENTIC[found.authentic]),
        *((f"copy {copy.slot}", _copy(copy)) for copy in found.copies),
    ]
    rows += [
        (f"{name} region"[:40], f"{format_size(region.length)} at byte {region.offset}")
        for name, region in sorted(found.regions.items(), key=lambda item: item[1].offset)
    ]
    if found.sync is not None:
        rows += [("label", found.label or "-"), *_sync(found.sync), *_journal(found.journal)]
    return rows + [(f"secondary {record.label}", _record(record)) for record in found.members or ()]


def _copy(copy: CopyView) -> str:
    text = copy.status if copy.sequence is None else f"{copy.status}, sequence {copy.sequence}"
    return f"{text}: {copy.reason}" if copy.reason else text


def _sync(sync: Sync) -> list[tuple[str, str]]:
    if sync.consistent and sync.consistent_as_of is not None:
        whole = f"yes, as of {time_text(sync.consistent_as_of)}"
    else:
        whole = "no: a copy is or was under way" if sync.era is not None else "no: it was never copied to the end"
    rows = [("holds", _holds(sync)), ("whole", whole)]
    if sync.partial is not None:
        rows += [("beyond", f"what it misses before block {sync.partial.below}, as of era {sync.partial.until}")]
    return [*rows, ("doubt", sync.doubt)] if sync.doubt else rows


def _journal(record: Record | None) -> list[tuple[str, str]]:
    if record is None:
        return []
    size = format_size(record.length)
    if not record.committed:
        return [("journal", f"{size} of a resync that was cut off; the next one goes on with it")]
    as_of = time_text(record.sync.consistent_as_of or "-")
    return [("journal", f"committed, {size}, yet to be applied: then the disk is whole as of {as_of}")]


def _record(record: MemberRecord) -> str:
    return f"{record.mode}, {record.via.type}, {_holds(record.sync)}, member {record.member_uuid}"


def _holds(sync: Sync) -> str:
    return "nothing yet" if sync.era is None else f"every write before era {sync.era}"
