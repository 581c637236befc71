# SPDX-License-Identifier: GPL-2.0-or-later
"""What the demo says, and the commands it runs before everybody's eyes."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

COLUMNS = 80
_INDENT = 2
_LIMIT_SECONDS = 300


class DemoError(Exception):
    """Something went another way than the demo promises: it ends there, and fails."""


def environment() -> dict[str, str]:
    """For the commands shown: this width, and byte code kept, so that only the first start of each is slow."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return env | {"COLUMNS": str(COLUMNS - _INDENT), "PYTHONUNBUFFERED": "1"}


class Stage:
    """Tells the story on standard output, 80 columns wide unless a terminal says otherwise."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else COLUMNS
        self._console = Console(highlight=False, width=width)
        self._began = time.monotonic()
        self._chapter = 0

    @property
    def seconds(self) -> float:
        """Since the story began."""
        return time.monotonic() - self._began

    def act(self, title: str) -> None:
        self._line()
        self._line(f"== {title} ".ljust(COLUMNS, "="), "bold")

    def chapter(self, title: str) -> None:
        self._chapter += 1
        self._line()
        self._line(f"{self._chapter}. {title}", "bold")

    def say(self, text: str) -> None:
        for line in wrapped(text, self._console.width - _INDENT):
            self._line(" " * _INDENT + line)

    def good(self, text: str) -> None:
        """A check that held."""
        first, *rest = wrapped(text, self._console.width - _INDENT - 4)
        self._console.print(Text(" " * _INDENT) + Text("OK", style="bold green") + Text(f"  {first}"), soft_wrap=True)
        for line in rest:
            self._line(" " * (_INDENT + 4) + line)

    def command(self, argv: Sequence[str]) -> None:
        """Show a command as one would type it."""
        for line in shown(argv, COLUMNS - _INDENT):
            self._line(" " * _INDENT + line, "cyan")

    def _line(self, text: str = "", style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def blank(self) -> None:
        self._line()

    def table(self, table: Table) -> None:
        self._console.print(Padding(table, (0, 0, 0, _INDENT)))

    def run(self, *argv: str, ok: Sequence[int] = (0,)) -> float:
        """Show a command, run it, show what it says as it says it; returns seconds. Raises `DemoError`."""
        self.blank()
        self.command(argv)
        start = time.monotonic()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(),
            text=True, errors="replace",
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            self._line(" " * _INDENT + line.rstrip())
        status = process.wait(_LIMIT_SECONDS)
        if status not in ok:
            raise DemoError(f"{argv[0]} {argv[1]} ended with status {status}")
        return time.monotonic() - start


def quiet(*argv: str) -> str:
    """Run a command nobody needs to watch; returns its output. Raises `DemoError` with what it said."""
    # cp --parents finds the folders of absolute names only from the root folder.
    done = subprocess.run(
        argv, capture_output=True, text=True, env=environment(), timeout=_LIMIT_SECONDS, check=False, cwd="/"
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise DemoError(f"{shlex.join(argv[:6])} ended with status {done.returncode}: {said[-1] if said else ''}")
    return done.stdout


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` columns; a number stays with its unit."""
    held = re.sub(r"(\d) (s|%|B|[KMGT]iB)\b", "\\1\u00a0\\2", text)
    lines = textwrap.wrap(held, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def shown(argv: Sequence[str], width: int) -> list[str]:
    """The command as one would type it, broken before options so that no line is wider than ``width``."""
    groups: list[str] = []
    for word in argv:
        last = groups[-1].split() if groups else []
        value_of_option = len(last) == 1 and last[0].startswith("--") and last[0] not in ("--yes", "--readonly")
        if value_of_option or (not word.startswith("-") and (len(groups) == 1 and len(argv) > 1)):
            groups[-1] += " " + shlex.quote(word)
        else:
            groups.append(shlex.quote(word))
    lines = ["$ " + groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) + 3 <= width:
            lines[-1] += " " + group
        else:
            lines[-1] += " \\"
            lines.append("      " + group)
    return lines
