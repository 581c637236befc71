# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command inherits from its caller, made such that it misleads nobody: `inherit` is for the program, `settle`
for every command line."""

import io
import os
import signal
import sys

from dmsoft.errors import UsageError


def inherit() -> None:
    """Files, signals and the mask of new files."""
    _keep_standard_files()
    # With an ignored SIGCHLD every program ends with status 0, a probe that failed as well.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Nobody else may write the files that root leaves in /run and /etc.
    os.umask(os.umask(0o022) | 0o022)


def _keep_standard_files() -> None:
    """Of a caller that closed his own the next disk to be opened would be standard error, and the first message, of
    libdevmapper say, the end of its header."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the program runs


def settle(arguments: list[str]) -> None:
    """The terminal and the words. Raises `UsageError` for words that are no text: they could be neither shown nor put
    into a header or JSON."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a sign must not end a command
    for name in ("COLUMNS", "LINES"):
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdigit() and len(value) <= 4):
            os.environ.pop(name, None)
    for number, word in enumerate(arguments, 1):
        try:
            word.encode()
        except UnicodeEncodeError as err:
            raise UsageError(f"Word {number} of the command line is not UTF-8.", hint="Write it as text.") from err
