# SPDX-License-Identifier: GPL-2.0-or-later
"""The only module that starts other programs: argument lists, a clean environment, a time limit on every call."""

import logging
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from dmsoft.errors import DeviceError

log = logging.getLogger(__name__)

# Nothing of the caller's environment reaches a child: its output is parsed, and dmsoft runs as root.
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


class CommandError(DeviceError):
    """A program that dmsoft needs failed.

    It could not be started, took too long, or ended with an error; the message has its name and its last words. Install
    it if it is missing, otherwise see the kernel log.
    """

    code = "command"


def run(
    argv: Sequence[str], *, success: Sequence[int] = (0,), timeout: float = 60, data: bytes | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """Run ``argv`` to its end and return its output; ``data`` is its standard input, ``environment`` what it has beside
    the usual one. Raises `CommandError`."""
    log.debug("+ %s", shlex.join(argv))
    try:
        done = subprocess.run(
            argv, env={**(environment or {}), **_ENVIRONMENT}, capture_output=True, timeout=timeout, check=False,
            input=data or b"",
        )  # fmt: skip
    except FileNotFoundError as err:
        raise CommandError(f"{argv[0]} is not installed.", hint=f"Install the package that has {argv[0]}.") from err
    except subprocess.TimeoutExpired as err:
        raise CommandError(f"{argv[0]} did not end within {timeout:.0f} seconds.") from err
    if done.returncode not in success:
        raise CommandError(f"{shlex.join(argv)} failed: {describe_failure(done)}")
    return done


def describe_failure(done: subprocess.CompletedProcess[bytes]) -> str:
    """One line about an unexpected end: the signal or status, and the last line the program wrote."""
    how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    said = (done.stderr or done.stdout or b"").decode(errors="replace").strip().splitlines()
    return f"{how}: {said[-1]}" if said else how
