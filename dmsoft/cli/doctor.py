# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft doctor``."""

import click

from dmsoft.cli.options import json_option
from dmsoft.report.output import emit, say

FAILS = 3


@click.command(short_help="Measure what this kernel really does, on scratch devices in memory.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Measure what matters to mirrors, on scratch devices in memory, and look at what surrounds them.

    No other device is touched.

    Exit status 3 if something fails that mirrors rely on.
    """
    from dmsoft.doctor.checkup import checkup

    found = checkup(lambda text: None if as_json else say(text, err=True))
    if as_json:
        emit(found)
    else:
        from dmsoft.report.doctor import show

        show(found)
    if found.health == "fail":
        ctx.exit(FAILS)
