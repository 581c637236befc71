# SPDX-License-Identifier: GPL-2.0-or-later
"""What came of a verify, a line each."""

from dmsoft.mirror.verify import Checked, Verified
from dmsoft.report.output import say
from dmsoft.units import format_duration, format_size

_NAMED = 5


def show(found: Verified) -> None:
    for each in found.secondaries:
        say(f"{each.label}: {_line(each)}", hang=2)
    say(f"{format_size(sum(each.bytes for each in found.secondaries))} compared in {format_duration(found.seconds)}.")


def _line(found: Checked) -> str:
    if found.skipped is not None:
        return f"not verified; {found.skipped}."
    compared = f"{found.blocks} clean blocks compared, {format_size(found.bytes)}"
    where = "to the end" if found.complete else f"up to block {found.next_block}"
    if not found.mismatches:
        return f"{compared}, {where}; all equal."
    extents = ", ".join(_extent(*extent) for extent in found.mismatches[:_NAMED])
    more = ", ..." if len(found.mismatches) > _NAMED else ""
    text = f"{compared}, {where}; different: {extents}{more}."
    if found.repaired_bytes is not None:
        text += f" The primary's side was copied, {format_size(found.repaired_bytes)}."
    return text


def _extent(first: int, count: int) -> str:
    return f"block {first}" if count == 1 else f"blocks {first} to {first + count - 1}"
