# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft recover``."""

import click

from dmsoft.cli.options import cancel_event, dry_run_option, json_option
from dmsoft.report.output import emit
from dmsoft.report.progress import reporter


@click.command(short_help="Make the secondary DEV a whole copy by itself, when its primary is lost.")
@click.argument("device", metavar="DEV")
@dry_run_option
@json_option
def recover(device: str, dry_run: bool, as_json: bool) -> None:
    """Make the secondary on DEV a whole copy without its primary, and say how to read it.

    Of a resync that was cut off at its very end the rest is in the journal of the secondary; it is put in place.
    """
    from dmsoft.mirror.survivor import recover as make_whole
    from dmsoft.report.survivor import show

    with reporter(as_json=as_json, dry_run=dry_run) as watch:
        found, error = make_whole(device, watch, cancel_event(), dry_run=dry_run)
    if as_json:
        emit(found)
    else:
        show(found, dry_run=dry_run)
    if error is not None:
        raise error
