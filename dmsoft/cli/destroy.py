# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft destroy``."""

import click

from dmsoft.cli.options import confirm, dry_run_option, json_option, yes_option
from dmsoft.report.output import emit, say


@click.command(short_help="End the mirror NAME and wipe the headers of its members.")
@click.argument("name")
@dry_run_option
@yes_option
@json_option
def destroy(name: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """End the mirror NAME: stop it and wipe the header of every member that is here.

    The data stay on the disks, but nothing knows where any more.
    """
    from dmsoft.mirror.members import destroy as end

    paths = end(name, dry_run=True)
    if not dry_run:
        confirm(f"The headers on {', '.join(paths) or 'no disk'} will be wiped. Go on?", yes=yes)
        paths = end(name)
    if as_json:
        emit({"name": name, "devices": paths, "dry_run": dry_run})
    else:
        say(f"{'Would wipe' if dry_run else 'Wiped'} the headers on {', '.join(paths) or 'no disk'}.")
