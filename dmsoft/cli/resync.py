# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft resync``."""

from typing import TYPE_CHECKING

import click

from dmsoft.cli.options import cancel_event, dry_run_option, json_option, max_stall_option, rate_option
from dmsoft.report.output import emit
from dmsoft.report.progress import reporter

if TYPE_CHECKING:
    from dmsoft.resync.pace import Limit


@click.command(short_help="Copy to the secondaries of NAME what they miss.")
@click.argument("name")
@click.argument("labels", nargs=-1, metavar="[LABEL]...")
@max_stall_option
@click.option("--direct", is_flag=True, help="Do not use the journals: faster, and no whole copy until the end.")
@rate_option
@dry_run_option
@json_option
def resync(
    name: str, labels: tuple[str, ...], max_stall: float, direct: bool, rate: "Limit", dry_run: bool, as_json: bool
) -> None:
    """Copy to the secondaries of NAME (all that are here, or those named) what they miss.

    Can be cancelled at any time: what was promised stays true, and the next run goes on.
    """
    from dmsoft.mirror.sync import Request
    from dmsoft.mirror.sync import resync as catch_up
    from dmsoft.report.resync import show

    with reporter(as_json=as_json, dry_run=dry_run) as watch:
        outcome, error = catch_up(Request(name, labels, max_stall, dry_run, direct, rate=rate), watch, cancel_event())
    if as_json:
        emit(outcome)
    else:
        show(outcome, dry_run=dry_run)
    if error is not None:
        raise error
