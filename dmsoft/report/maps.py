# SPDX-License-Identifier: GPL-2.0-or-later
"""A device on one line: how much of each part of it is stale."""

from collections.abc import Sequence

# From nothing to everything; the first and the last mean exactly that.
_UNICODE = " ▁▂▃▄▅▆▇█"
_PLAIN = " .:-=+*%#"


def line(percents: Sequence[int], *, unicode: bool) -> str:
    """The map between brackets, one character for each of ``percents`` (0 to 100, see `dmsoft.era.spread`)."""
    signs = _UNICODE if unicode else _PLAIN
    most = len(signs) - 2
    cells = (
        signs[0] if percent <= 0 else signs[-1] if percent >= 100 else signs[1 + (percent - 1) * most // 99]
        for percent in percents
    )
    return f"[{''.join(cells)}]"
