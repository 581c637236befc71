# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft wait``."""

import click

from dmsoft.cli.options import DurationType, cancel_event, json_option
from dmsoft.report.output import emit, say


@click.command(short_help="Wait until the secondary LABEL is current, attached or away.")
@click.argument("name")
@click.argument("label")
@click.option(
    "--until", type=click.Choice(["current", "attached", "away"]), default="current", show_default=True,
    help="What to wait for; a secondary that is attached counts as current.",
)  # fmt: skip
@click.option(
    "--timeout", type=DurationType(), default=None, metavar="TIME", help="Give up after this. [default: never]"
)
@json_option
def wait(name: str, label: str, until: str, timeout: float | None, as_json: bool) -> None:
    """Wait until the secondary LABEL of NAME is as wanted; changes nothing by itself.

    Ends with an error when the time is over (exit status 1), or when it has diverged and so never will be (8).
    """
    from dmsoft.mirror.waiting import wait_until

    done = wait_until(name, label, until, timeout, cancel_event())
    if as_json:
        emit(done)
    else:
        say(f"{label} is {done.state}.")
