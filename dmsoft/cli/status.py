# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft status``."""

import contextlib
from typing import TYPE_CHECKING

import click

from dmsoft.cli.options import cancel_event, json_option
from dmsoft.report.output import emit

if TYPE_CHECKING:
    from dmsoft.mirror.views import StatusView

MISSED = 9


@click.command(short_help="Show what runs, and what each secondary misses.")
@click.argument("name", required=False)
@click.option("--watch", "-w", is_flag=True, help="Show it again and again, until Ctrl-C.")
@json_option
@click.pass_context
def status(ctx: click.Context, name: str | None, watch: bool, as_json: bool) -> None:
    """Show every mirror, or the mirror NAME: what runs, and what each secondary misses.

    Exit status 9 when a promise is missed or a disk failed or is unknown; ordinary lag and absent disks are 0.
    """
    from dmsoft.mirror.observe import status as observe

    if watch:
        view = _watch(name, as_json=as_json)
    else:
        view = observe(name)
        if as_json:
            emit(view)
        else:
            from dmsoft.report.status import show

            show(view)
    if not all(mirror.healthy for mirror in view.mirrors):
        ctx.exit(MISSED)


def _watch(name: str | None, *, as_json: bool) -> "StatusView":
    from dmsoft.mirror.observe import status as observe
    from dmsoft.mirror.waiting import PAUSE_SECONDS, pauses
    from dmsoft.report.watch import watch

    with contextlib.ExitStack() as stack:
        pause = pauses(stack, cancel_event())
        return watch(lambda: observe(name), lambda: pause(PAUSE_SECONDS), as_json=as_json)
