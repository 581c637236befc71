# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft verify``."""

from typing import TYPE_CHECKING

import click

from dmsoft.cli.options import DurationType, cancel_event, json_option, rate_option
from dmsoft.report.output import emit
from dmsoft.report.progress import reporter

if TYPE_CHECKING:
    from dmsoft.resync.pace import Limit


@click.command(short_help="Compare what should be equal on the secondaries of NAME.")
@click.argument("name")
@click.argument("labels", nargs=-1, metavar="[LABEL]...")
@rate_option
@click.option("--for", "limit", type=DurationType(), default=None, metavar="TIME",
              help="Stop after this time; the next verify goes on there.")  # fmt: skip
@click.option("--restart", is_flag=True, help="Begin with the first block, wherever the last verify came to.")
@click.option("--repair", is_flag=True, help="After a mismatch compare everything, and copy the primary's side.")
@json_option
def verify(
    name: str, labels: tuple[str, ...], rate: "Limit", limit: float | None, restart: bool, repair: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare the clean blocks of secondaries with the primary's, byte for byte.

    Of all secondaries of NAME that are here, or those named, while the mirror is in use. Goes on where the last one
    ended.
    """
    from dmsoft.mirror.verify import Wanted
    from dmsoft.mirror.verify import verify as compare
    from dmsoft.report.verify import show

    with reporter(as_json=as_json) as watch:
        found, error = compare(Wanted(name, labels, rate, limit, restart, repair), watch, cancel_event())
    if as_json:
        emit(found)
    else:
        show(found)
    if error is not None:
        raise error
