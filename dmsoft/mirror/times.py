# SPDX-License-Identifier: GPL-2.0-or-later
"""The time as headers and JSON have it."""

import datetime


def now() -> str:
    """RFC 3339, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
