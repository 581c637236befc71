# SPDX-License-Identifier: GPL-2.0-or-later
"""What the doctor found, made to be read at 80 columns."""

from rich.table import Table
from rich.text import Text

from dmsoft.doctor.finding import Checkup
from dmsoft.report.output import clean, say, show_table

_STYLES = {"ok": "green", "warning": "yellow", "fail": "bold red"}
_LAST = {
    "ok": "All is well.",
    "warning": "Mirrors work here; mind the warnings.",
    "fail": "Something that mirrors rely on does not work here.",
}


def show(checkup: Checkup) -> None:
    say(f"Linux {checkup.kernel}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found, and what it means")
    for each in checkup.findings:
        text = clean(f"{each.found[:1].upper()}{each.found[1:]}. {each.meaning}")
        table.add_row(each.check, Text(each.health, _STYLES[each.health]), Text(text))
    show_table(table)
    say(_LAST[checkup.health])
