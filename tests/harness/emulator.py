# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU to run: the installed one, or a newer one of Debian's backports, unpacked into a cache and never installed.

QEMU 10 starts programs and answers udev's cookies two to four times as fast as the 7.2 of Debian 12, when it emulates.
It uses the firmware and the libraries of the installed one.
"""

import functools
import re
import sys
import tempfile
from pathlib import Path

from tests.harness import archive
from tests.harness.cached import cache_folder, exclusive
from tests.harness.errors import HarnessError

_PROGRAM = "qemu-system-x86_64"
_FAST = 10
# Where there is a faster one for a Debian that has none, by the name of the Debian.
_SUITES = {"bookworm": "bookworm-backports"}


@functools.cache
def find() -> str:
    """The program's name or path, fetched on first use; the installed one where no other can be had.

    Raises `HarnessError` if none is installed.
    """
    suite = _SUITES.get(_debian())
    if suite is None or _major(_PROGRAM) >= _FAST:
        return _PROGRAM
    program = cache_folder() / "qemu" / suite / "usr/bin" / _PROGRAM
    try:
        if not program.exists():
            _fetch(cache_folder() / "qemu", suite)
        _major(str(program))
    except HarnessError as error:
        print(f"dev: going on with the installed QEMU, which is slower: {error}", file=sys.stderr, flush=True)
        return _PROGRAM
    return str(program)


def major(said: str) -> int:
    """The first number of the version that QEMU says it has. Raises `HarnessError` if it says none."""
    found = re.match(r"QEMU emulator version (\d+)\.", said)
    if found is None:
        raise HarnessError(f"{_PROGRAM} says no version; run ./dev setup")
    return int(found[1])


def _major(program: str) -> int:
    return major(archive.call(program, "--version"))


def _debian() -> str:
    """The name of this Debian, empty where there is none."""
    found = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    return found[1] if found else ""


def _fetch(cache: Path, suite: str) -> None:
    with exclusive(cache), tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as name:
        # Another run may have fetched it while this one waited.
        if (cache / suite).exists():
            return
        print(f"dev: fetching QEMU of {suite} into {cache} (once)", file=sys.stderr, flush=True)
        folder = Path(name)
        tree = folder / "tree"
        for package in archive.Apt(folder, [suite]).download(f"qemu-system-x86/{suite}"):
            archive.unpack(package, tree)
        tree.rename(cache / suite)
