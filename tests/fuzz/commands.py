# SPDX-License-Identifier: GPL-2.0-or-later
"""Odd command lines: each ends with a documented status, and with one sentence and a hint if it fails.

Here no device is to be seen, so that none can be touched: what is tried is how words are read. On a mirror and its
disks the same is done in a VM (``tests/vm/test_commands.py``).
"""

import contextlib
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import click

from dmsoft.cli import VERBS, dmsoft, run
from dmsoft.dm import libdevmapper
from dmsoft.inventory import blivet, sysfs
from dmsoft.member import keys
from dmsoft.mirror import bulletin, lock, plug, progress, registry
from tests.fuzz import odd
from tests.fuzz.tally import Tally

# With these a command goes on until it is told to end.
_ENDLESS = frozenset({"--watch", "-w"})
STATUSES = frozenset(range(11))
_ENVIRONMENT = {
    "COLUMNS": odd.WORDS, "LC_ALL": ("C", "POSIX", "C.UTF-8", "xx_XX.ISO-8859-1", *odd.WORDS), "LANG": odd.WORDS,
    "HOME": odd.WORDS, "TMPDIR": odd.WORDS, "PATH": odd.WORDS, "TERM": ("dumb", "xterm", *odd.WORDS),
    "NO_COLOR": odd.WORDS, "LINES": odd.WORDS, "NOTIFY_SOCKET": odd.WORDS, "WATCHDOG_USEC": odd.WORDS,
    "WATCHDOG_PID": odd.WORDS,
}  # fmt: skip


def fuzz(count: int, seed: int) -> Tally:
    """Try ``count`` command lines. Raises `AssertionError` at the first that ends otherwise."""
    chance, tally = random.Random(seed), Tally()
    with nowhere() as folder:
        words = _files(folder)
        while tally.count < count:
            line, environment = command_line(chance, words), {}
            if chance.random() < 0.3:
                environment = {name: chance.choice(_ENVIRONMENT[name]) for name in chance.sample(list(_ENVIRONMENT), 2)}
            what = f"seed {seed}, try {tally.count}, {shown(line)}, {environment}"
            with tally.bounded(what):
                status = ended(line, environment, encoding=chance.choice(["utf-8", "utf-8", "ascii", "latin-1"]))
            tally.ends[f"status {status}"] += 1
    return tally


def command_line(
    chance: random.Random,
    words: tuple[str, ...],
    share: float = 0.7,
    meant: Mapping[str, tuple[str, ...]] | None = None,
) -> list[str]:
    """A verb with some of its arguments and options; that share of their values is odd, the others are what is
    ``meant`` by the parameter's name, or any of ``words``."""
    verb = chance.choice(VERBS)
    command = dmsoft.get_command(click.Context(dmsoft), verb)
    assert command is not None
    line: list[str] = []
    for parameter in command.params:
        good = (meant or {}).get(parameter.name or "", words)
        if isinstance(parameter, click.Argument):
            line += [odd.word(good, chance, share) for _ in range(chance.choice([1, 1, 1, 1, 0, 2]))]
        elif isinstance(parameter, click.Option) and chance.random() < (0.9 if parameter.required else 0.25):
            line.append(chance.choice(parameter.opts))
            if not parameter.is_flag:
                kinds = tuple(parameter.type.choices) if isinstance(parameter.type, click.Choice) else good
                line.append(odd.word(tuple(map(str, kinds)), chance, share))
    if chance.random() < share / 2:
        line.insert(chance.randrange(len(line) + 1), chance.choice(odd.WORDS))
    if chance.random() < 0.1:
        chance.shuffle(line)
    line = [word for word in line if word not in _ENDLESS]
    if verb == "monitor":
        line = ["--help"]
    elif verb == "wait":
        line += ["--timeout", "0"]
    first = [chance.choice(odd.WORDS)] if chance.random() < 0.05 else []
    return [*first, verb if chance.random() < 0.95 else chance.choice(odd.WORDS), *line]


def ended(line: list[str], environment: Mapping[str, str] | None = None, *, encoding: str = "utf-8") -> int:
    """The status of a command line, whose output is looked at as well."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    with (
        mock.patch.dict(os.environ, {name: value.replace("\ud800", "") for name, value in (environment or {}).items()}),
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
    ):  # fmt: skip
        status = run(line)
        said, failed = (_text(stream) for stream in (out, err))
    assert status in STATUSES or status == 130, f"status {status}: {failed}"
    assert status != 1 or "--timeout" in line, f"unexpected: {failed}"
    for text in (said, failed):
        assert all(char.isprintable() or char == "\n" for char in text), repr(text)
    if status and "--json" in line and failed:
        json.loads(failed.splitlines()[-1])
    elif status not in (0, 3, 9, 130):
        assert any(line.startswith("Error:") for line in failed.splitlines()), failed
    assert "Traceback" not in failed
    return status


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    # click takes an ASCII stream for a mistake, and writes UTF-8.
    return stream.buffer.getvalue().decode("latin-1" if stream.encoding == "latin-1" else "utf-8", "replace")


def shown(line: list[str]) -> str:
    return " ".join(map(repr, line))[:2000]


@contextlib.contextmanager
def nowhere() -> Iterator[Path]:
    """A machine without a block device and without device-mapper, of which we are root."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dmsoft-fuzz-")))
        (folder / "sys/class/block").mkdir(parents=True)
        for module in (lock, plug, progress, bulletin):
            stack.enter_context(mock.patch.object(module, "RUN_DIR", folder / "run"))
        for patched in (
            mock.patch.object(sysfs.HOST, "root", folder / "sys"),
            mock.patch.object(libdevmapper, "_LIBRARY", None),
            mock.patch.object(bulletin, "PATH", folder / "run/monitor.json"),
            mock.patch.object(bulletin, "LOCK", folder / "run/monitor.lock"),
            mock.patch.object(registry, "DIRECTORY", folder / "etc/mirrors"),
            mock.patch.object(keys, "DIRECTORY", folder / "etc/keys"),
            mock.patch.object(blivet, "advice", lambda *_: blivet.Advice({}, ())),
            mock.patch("dmsoft.cli.os.geteuid", lambda: 0),
            mock.patch.object(sys, "stdin", io.StringIO()),
        ):
            stack.enter_context(patched)
        yield folder


def _files(folder: Path) -> tuple[str, ...]:
    """Words that mean something: names of a mirror, sizes and so on, and files that are no devices."""
    (folder / "file").write_bytes(b"x" * 100)
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("/no/such")
    (folder / "\udcff\n\x1b[2J").write_bytes(b"")
    paths = tuple(str(path) for path in folder.iterdir())
    return (
        "archive",
        "one",
        "one=/dev/sdx",
        "/dev/sdx",
        "5m",
        "64K",
        "7d",
        "direct",
        "writecache:/dev/sdx",
        "delay:20",
        "50%",
        *paths,
    )
