# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft remove``."""

import click

from dmsoft.cli.options import confirm, dry_run_option, json_option, yes_option
from dmsoft.report.output import emit, say


@click.command(short_help="Take the secondary LABEL out of the mirror NAME.")
@click.argument("name")
@click.argument("label")
@dry_run_option
@yes_option
@json_option
def remove(name: str, label: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Take the secondary LABEL out of the mirror NAME and wipe its header."""
    from dmsoft.mirror.members import remove as take_out

    here = take_out(name, label, dry_run=True)
    if not dry_run:
        confirm(f"{label} will not be a copy of {name} any more. Go on?", yes=yes)
        here = take_out(name, label)
    if as_json:
        emit({"name": name, "label": label, "header_wiped": here and not dry_run})
    elif dry_run:
        say(f"Would remove {label} from {name}" + (" and wipe its header." if here else "; its disk is not here."))
    elif here:
        say(f"{label} is no part of {name} any more; its header is wiped.")
    else:
        say(f"{label} is no part of {name} any more. Its disk was not here: wipe its first MiB before using it anew.")
