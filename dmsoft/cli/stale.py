# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft stale``."""

import click

from dmsoft.cli.options import json_option
from dmsoft.errors import UsageError
from dmsoft.report.output import emit, tables


@click.command(short_help="List the blocks that the secondary LABEL misses.")
@click.argument("name")
@click.argument("label")
@click.option(
    "--since", type=click.IntRange(0), metavar="ERA", help="List what was written in that era or later instead."
)
@click.option(
    "--format", "style", type=click.Choice(["table", "ranges", "dd", "mapfile"]), default="table", show_default=True,
    help="ranges: OFFSET LENGTH in bytes. dd: operands for dd. mapfile: a domain for ddrescue.",
)  # fmt: skip
@json_option
def stale(name: str, label: str, since: int | None, style: str, as_json: bool) -> None:
    """List the blocks of the mirror NAME that the secondary LABEL misses, as runs of era blocks."""
    from dmsoft.mirror.missing import missing

    if as_json and style != "table":
        raise UsageError("--json and --format exclude each other.", hint="Give one of them.")
    found = missing(name, label, since)
    if as_json:
        emit(found)
    elif style == "table":
        from dmsoft.report.stale import show

        show(name, label, found)
    else:
        from dmsoft.report.ranges import FORMATS

        tables(FORMATS[style](name, label, found))
