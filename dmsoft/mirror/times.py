# SPDX-License-Identifier: GPL-2.0-or-later
"""The time as headers and JSON have it."""

import datetime


def now() -> str:
    """RFC 3339, UTC, whole seconds."""
    return _text(datetime.datetime.now(datetime.UTC))


def stamp(seconds: float) -> str:
    """The same of a time in seconds since 1970, as `time.time` has it."""
    return _text(datetime.datetime.fromtimestamp(seconds, datetime.UTC))


def _text(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
