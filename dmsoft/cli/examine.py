# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft examine``."""

import click

from dmsoft.cli.options import json_option
from dmsoft.report.output import emit


@click.command()
@click.argument("device", metavar="DEV")
@json_option
def examine(device: str, as_json: bool) -> None:
    """Show the dmsoft header on DEV. Nothing in it is believed, and nothing is changed."""
    from dmsoft.member.examination import examine as look

    found = look(device)
    if as_json:
        emit(found)
    else:
        from dmsoft.report.examine import show

        show(device, found)
