# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft status``."""

import click

from dmsoft.cli.options import json_option
from dmsoft.report.output import emit

MISSED = 9


@click.command(short_help="Show what runs, and what each secondary misses.")
@click.argument("name", required=False)
@json_option
@click.pass_context
def status(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """Show every mirror, or the mirror NAME: what runs, and what each secondary misses.

    Exit status 9 when a promise is missed or a disk failed or is unknown; ordinary lag and absent disks are 0.
    """
    from dmsoft.mirror.observe import status as observe

    view = observe(name)
    if as_json:
        emit(view)
    else:
        from dmsoft.report.status import show

        show(view)
    if not all(mirror.healthy for mirror in view.mirrors):
        ctx.exit(MISSED)
