# SPDX-License-Identifier: GPL-2.0-or-later
"""The stale blocks of one secondary as a table."""

from rich.table import Table

from dmsoft.mirror.missing import Missing
from dmsoft.report.maps import line
from dmsoft.report.output import count, echo, say, show_table, speaks_unicode
from dmsoft.units import format_size


def show(name: str, label: str, missing: Missing) -> None:
    say(_sentence(name, label, missing))
    if not missing.extents:
        return
    if min(missing.stale_map) < 100:
        echo(f"  {line(missing.stale_map, unicode=speaks_unicode())}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("first block", "blocks", "from byte", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    for first, blocks in missing.extents:
        table.add_row(
            str(first), str(blocks), str(first * missing.block_bytes), format_size(blocks * missing.block_bytes)
        )
    show_table(table)


def _sentence(name: str, label: str, missing: Missing) -> str:
    runs = count(len(missing.extents), "run")
    if missing.asked:
        blocks = count(missing.stale_blocks, "block")
        return (
            f"{format_size(missing.stale_bytes)} of {name} ({blocks} of {format_size(missing.block_bytes)} in {runs}) "
            f"were written in era {missing.since_era} or later. As for {label}: {missing.reason}."
        )
    if not missing.extents:
        return f"{label} misses nothing of {name}: {missing.reason}."
    amount = f"{format_size(missing.stale_bytes)} of {name}"
    if missing.since_era is None:
        return f"{label} counts as missing all {amount}: {missing.reason}."
    blocks = f"{count(missing.stale_blocks, 'block')} of {format_size(missing.block_bytes)}"
    return f"{label} misses {amount} ({blocks} in {runs}): {missing.reason}."
