# SPDX-License-Identifier: GPL-2.0-or-later
"""Status again and again: in place on a terminal, one after the other elsewhere."""

import contextlib
import io
import sys
from collections.abc import Callable

from dmsoft.mirror.views import StatusView
from dmsoft.report.output import console, emit, say
from dmsoft.report.status import show


class _Screen(io.StringIO):
    """What would have been standard output, with the colours that a terminal gets."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def watch(look: Callable[[], StatusView], pause: Callable[[], bool], *, as_json: bool) -> StatusView:
    """Show what ``look`` sees until ``pause`` says no; returns what was seen last."""
    if as_json or not sys.stdout.isatty():
        return _snapshots(look, pause, as_json=as_json)
    from rich.live import Live
    from rich.text import Text

    with Live(console=console(), auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        while True:
            view = look()
            live.update(Text.from_ansi(drawn(view)), refresh=True)
            if not pause():
                break
    show(view)
    return view


def drawn(view: StatusView) -> str:
    """The tables as a terminal is sent them."""
    screen = _Screen()
    with contextlib.redirect_stdout(screen):
        show(view)
    return screen.getvalue()


def _snapshots(look: Callable[[], StatusView], pause: Callable[[], bool], *, as_json: bool) -> StatusView:
    while True:
        view = look()
        if as_json:
            emit(view)
        else:
            show(view)
            say("")
        if not pause():
            return view
