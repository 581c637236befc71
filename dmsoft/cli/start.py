# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft start``."""

import click

from dmsoft.cli.options import dry_run_option, json_option
from dmsoft.report.output import emit, say, tables


@click.command()
@click.argument("name")
@dry_run_option
@json_option
def start(name: str, dry_run: bool, as_json: bool) -> None:
    """Start the mirror NAME. A secondary that is not here is no failure."""
    from dmsoft.mirror.start import start as bring_up
    from dmsoft.mirror.start import tables as wanted

    if dry_run:
        lines = [line for each in wanted(name) for line in each.lines()]
        if as_json:
            emit({"name": name, "tables": lines})
        else:
            tables(lines)
        return
    done = bring_up(name)
    if as_json:
        emit(done)
        return
    say(f"{done.device} was running already." if done.already else f"{done.device} is running.")
    if done.doubt and not done.untracked:
        say(f"Tracking began anew, because {done.doubt}. Every secondary is unknown: the next resync compares it.")
    if done.untracked:
        say(f"Nothing is tracked: {done.untracked}.")
    for label in done.missing:
        say(f"{label} is not here.")
    for label, problem in done.problems:
        say(f"{label} is not used: {problem}")
