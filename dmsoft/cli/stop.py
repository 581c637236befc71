# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft stop``."""

import click

from dmsoft.cli.options import dry_run_option, json_option
from dmsoft.report.output import emit, say


@click.command()
@click.argument("name")
@dry_run_option
@json_option
def stop(name: str, dry_run: bool, as_json: bool) -> None:
    """Stop the mirror NAME; its device must not be in use."""
    from dmsoft.mirror.start import standing
    from dmsoft.mirror.start import stop as take_down

    if dry_run:
        nodes = standing(name)
        if as_json:
            emit({"name": name, "devices": nodes})
        else:
            say(f"Would remove {', '.join(nodes)}." if nodes else f"{name} is not running.")
        return
    was_running = take_down(name)
    if as_json:
        emit({"name": name, "was_running": was_running})
    else:
        say(f"{name} is stopped." if was_running else f"{name} was not running.")
