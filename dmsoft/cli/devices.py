# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft devices``."""

import click

from dmsoft.cli.options import json_option
from dmsoft.report.output import emit


@click.command()
@click.option("--primary", metavar="DEV", help="Judge secondaries for this primary: as large, and another disk.")
@click.option("--all", "everything", is_flag=True, help="Show empty devices and those that dmsoft made as well.")
@json_option
def devices(primary: str | None, everything: bool, as_json: bool) -> None:
    """Show what each block device could become, and why not. Nothing is changed."""
    from dmsoft.member.survey import survey

    found = survey(primary)
    if as_json:
        emit(found)
    else:
        from dmsoft.report.devices import show

        show(found, everything=everything)
