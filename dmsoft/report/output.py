# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output: JSON one object a line, plain text, and a console for tables that knows when it is piped."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import Console

PIPED_COLUMNS = 100


def emit(value: object) -> None:
    """One compact JSON object and a newline."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    click.echo(text)


def tables(lines: Iterable[str]) -> None:
    """Device-mapper tables, one line each, to be copied as they are."""
    for line in lines:
        click.echo(line)


def console(*, stderr: bool = False) -> "Console":
    """A console on standard output or error; without a terminal it writes plain text at a fixed width."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=None if stream.isatty() else PIPED_COLUMNS)
