# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft eject``."""

import click

from dmsoft.cli.options import cancel_event, dry_run_option, json_option, max_stall_option
from dmsoft.report.output import emit, say
from dmsoft.report.progress import reporter


@click.command(short_help="Catch up the secondary LABEL and make it safe to unplug.")
@click.argument("name")
@click.argument("label")
@max_stall_option
@dry_run_option
@json_option
def eject(name: str, label: str, max_stall: float, dry_run: bool, as_json: bool) -> None:
    """Catch up the secondary LABEL of NAME, then let go of its disk, so that it can be unplugged as a whole copy.

    It is *away* from then on, which is no fault; what it misses is known, and `resync` catches it up when it is back.
    """
    from dmsoft.mirror.departure import eject as let_go
    from dmsoft.report.output import time_text
    from dmsoft.report.resync import show

    with reporter(as_json=as_json, dry_run=dry_run) as watch:
        done = let_go(name, label, watch, cancel_event(), max_stall=max_stall, dry_run=dry_run)
    if as_json:
        emit(done)
        return
    show(done.resync, dry_run=dry_run)
    if not dry_run and done.consistent_as_of is not None:
        as_of = time_text(done.consistent_as_of)
        say(f"{label} ({done.device}) is safe to unplug: a whole copy as of {as_of}.", hang=2)
