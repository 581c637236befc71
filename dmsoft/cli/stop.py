# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft stop``."""

import click

from dmsoft.cli.options import dry_run_option, json_option
from dmsoft.errors import DmsoftError, UsageError
from dmsoft.report.output import emit, say


@click.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Stop every mirror that runs.")
@dry_run_option
@json_option
def stop(name: str | None, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Stop the mirror NAME; its device must not be in use.

    What others took down, by dmsetup say, is put in order as well. With --all those that can be stopped are, and the
    first error of another decides the exit status.
    """
    from dmsoft.mirror.stop import stoppable

    if everything == (name is not None):
        raise UsageError("Name one mirror, or give --all.", hint="Try 'dmsoft stop --help'.")
    first = None
    for each in stoppable() if name is None else [name]:
        try:
            _stop(each, dry_run=dry_run, as_json=as_json)
        except DmsoftError as err:
            first = first or err
            if err is not first:
                say(f"{each}: {err.message}", err=True)
    if first is not None:
        raise first


def _stop(name: str, *, dry_run: bool, as_json: bool) -> None:
    from dmsoft.mirror.stop import standing
    from dmsoft.mirror.stop import stop as take_down

    if dry_run:
        nodes = standing(name)
        if as_json:
            emit({"name": name, "devices": nodes})
        else:
            say(f"Would remove {', '.join(nodes)}." if nodes else f"{name} is not running.")
        return
    done = take_down(name)
    if as_json:
        emit({"name": name, "was_running": done.was_running, "closed": done.closed})
    elif done.closed:
        say(f"{name} was not stopped by dmsoft; its record is closed now.")
    else:
        say(f"{name} is stopped." if done.was_running else f"{name} was not running.")
