# SPDX-License-Identifier: GPL-2.0-or-later
"""What ends a command of the developer's ends it in order."""

import signal

_ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def unwind(*numbers: signal.Signals) -> None:
    """Have these signals (default: all that end a program) raise SystemExit with 128 + N: as an exception one unwinds
    through the clean-up, and no VM and no temporary disk is left behind."""
    for number in numbers or _ENDS:
        signal.signal(number, _end)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)
