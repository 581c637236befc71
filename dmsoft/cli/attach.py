# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft attach``."""

import click

from dmsoft.cli.options import DurationType, cancel_event, dry_run_option, json_option, max_stall_option
from dmsoft.report.output import emit, say
from dmsoft.report.progress import reporter


@click.command(short_help="Bring the disk DEV, which appeared, back to its mirror.")
@click.argument("device", metavar="DEV")
@click.option(
    "--wait", type=DurationType(), default="30s", show_default=True, metavar="TIME",
    help="How long another command may hold the mirror.",
)  # fmt: skip
@max_stall_option
@dry_run_option
@json_option
def attach(device: str, wait: float, max_stall: float, dry_run: bool, as_json: bool) -> None:
    """Bring the disk DEV back to its mirror, if it is proven to be a member of one of this host; else leave it alone.

    What udev runs for a disk that is plugged in: a secondary is caught up, a primary starts its mirror.
    """
    from dmsoft.hotplug.arrival import arrived
    from dmsoft.report.resync import show

    with reporter(as_json=as_json, dry_run=dry_run) as watch:
        found, error = arrived(device, watch, cancel_event(), max_stall=max_stall, wait=wait, dry_run=dry_run)
    if as_json:
        emit(found)
    if error is not None:
        raise error
    if as_json:
        return
    if found.resync is not None:
        show(found.resync, dry_run=dry_run)
    what = f"{device} ({found.role} of {found.name})"
    say(f"{what}: {found.verdict}, because {found.reason}.", hang=2)
