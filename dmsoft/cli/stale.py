# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft stale``."""

import click

from dmsoft.cli.options import json_option
from dmsoft.report.output import emit


@click.command(short_help="List the blocks that the secondary LABEL misses.")
@click.argument("name")
@click.argument("label")
@json_option
def stale(name: str, label: str, as_json: bool) -> None:
    """List the blocks of the mirror NAME that the secondary LABEL misses, as runs of era blocks."""
    from dmsoft.mirror.missing import missing

    found = missing(name, label)
    if as_json:
        emit(found)
    else:
        from dmsoft.report.stale import show

        show(name, label, found)
