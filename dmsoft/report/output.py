# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output: JSON one object a line, plain text, and tables.

Text is wrapped at words for a terminal (or for COLUMNS, if that is set) and never for a pipe, where a line is a line.
Whatever came from a disk or a device's name may hold control characters; none gets to the terminal.
"""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
import msgspec

from dmsoft.errors import DeviceError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPED_COLUMNS = 1000  # nothing is cut or folded there


def emit(value: object) -> None:
    """One compact JSON object and a newline. It is ASCII, all else is escaped: the same in every locale, and nothing to
    any terminal."""
    text = msgspec.json.encode(value).decode()
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if c.isascii() and c.isprintable() else json.dumps(c)[1:-1] for c in text)
    echo(text)


def say(text: str, *, err: bool = False, hang: int = 0) -> None:
    """Print a paragraph; what is wrapped goes on ``hang`` columns further in. Raises as `echo`."""
    columns, line = _columns(err=err), clean(text)
    if columns is None or len(line) <= columns:
        echo(line, err=err)
        return
    indent = " " * (len(line) - len(line.lstrip()))
    for part in textwrap.wrap(
        line, columns, subsequent_indent=indent + " " * hang, break_long_words=False, break_on_hyphens=False
    ):
        echo(part, err=err)


def echo(line: str, *, err: bool = False) -> None:
    """Print a line as it is. Raises `DeviceError` if standard output takes no more, and BrokenPipeError. What standard
    error does not take is lost: a full /var/log must not end a resync."""
    try:
        click.echo(line, err=err)
    except BrokenPipeError:
        if not err:
            raise
    except OSError as failed:
        if not err:
            raise DeviceError(
                f"The answer could not be written: {failed.strerror}.", hint="`dmsoft status` says how things stand."
            ) from failed


def tables(lines: Iterable[str]) -> None:
    """Device-mapper tables, one line each, to be copied as they are."""
    for line in lines:
        echo(line)


def clean(text: str) -> str:
    """The text with a question mark for every character that is not printable. A line end is none: whoever names a disk
    must not be able to add lines to what is said of it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def count(number: int, noun: str) -> str:
    """``1 block``, ``2 blocks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def time_text(stamp: str) -> str:
    """A time of a header (RFC 3339, UTC) as a person reads it."""
    return stamp.replace("T", " ").removesuffix("Z") + " UTC"


def console(*, err: bool = False) -> "Console":
    """A console on standard output or error; without a terminal it writes plain text."""
    from rich.console import Console

    width = _columns(err=err) or _PIPED_COLUMNS
    return Console(stderr=err, highlight=False, markup=False, width=width)


def show_table(table: "Table", *, indent: int = 2) -> None:
    """Print a table ``indent`` columns in, without the blanks it pads its lines with."""
    from rich.padding import Padding

    out = console()
    with out.capture() as captured:
        out.print(Padding(table, (0, 0, 0, indent), expand=False))
    for line in captured.get().splitlines():
        echo(line.rstrip())


def speaks_unicode() -> bool:
    """Whether standard output is a terminal that shows more than ASCII."""
    name = next((value for key in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(key))), "")
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return sys.stdout.isatty() and encoding == "utf8" and "utf8" in name.lower().replace("-", "")


def _columns(*, err: bool) -> int | None:
    """Where lines end: the terminal's width or COLUMNS, None for a pipe."""
    stream = sys.stderr if err else sys.stdout
    if os.environ.get("COLUMNS", "").isdecimal() or stream.isatty():
        return max(40, shutil.get_terminal_size().columns)
    return None
