# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft monitor``."""

import click

from dmsoft.cli.options import json_option


@click.command(short_help="Keep all mirrors as promised, until told to end: the daemon.")
@json_option
def monitor(as_json: bool) -> None:
    """Keep all mirrors that run as promised, until told to end.

    Catches up what lags, comes back or is doubtful, uncouples what fails, and looks after the tracking. Each event is
    one line of JSON on standard error, with and without --json.
    """
    from dmsoft.monitor.daemon import Daemon
    from dmsoft.monitor.notify import Notifier

    Daemon(Notifier.from_environment()).run()
