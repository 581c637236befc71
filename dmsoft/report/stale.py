# SPDX-License-Identifier: GPL-2.0-or-later
"""The stale blocks of one secondary as a table."""

from rich.table import Table

from dmsoft.mirror.missing import Missing
from dmsoft.report.output import console
from dmsoft.units import format_size


def show(name: str, label: str, missing: Missing) -> None:
    out = console()
    since = "nothing is known of it" if missing.since_era is None else f"since era {missing.since_era}"
    total = sum(count for _, count in missing.extents)
    out.print(
        f"{label} misses {total} blocks of {format_size(missing.block_bytes)} of {name} "
        f"({format_size(missing.stale_bytes)}), {since}."
    )
    if not missing.extents:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("  first block", "blocks", "from byte", "size"):
        table.add_column(column, justify="right")
    for first, count in missing.extents:
        table.add_row(
            str(first), str(count), str(first * missing.block_bytes), format_size(count * missing.block_bytes)
        )
    out.print(table)
