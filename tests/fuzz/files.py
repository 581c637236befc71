# SPDX-License-Identifier: GPL-2.0-or-later
"""The small files of dmsoft in /etc and /run, damaged, or something else in their place: a link, a pipe, a folder.

None of them may mislead: a key is the key or there is none, and what is only a courtesy counts or does not.
"""

import contextlib
import fcntl
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import msgspec

from dmsoft.errors import DmsoftError
from dmsoft.member import keys
from dmsoft.mirror import at_work, bulletin, lock, plug, progress, registry
from dmsoft.mirror.names import Names
from dmsoft.mirror.progress import Published, Queue
from dmsoft.report.output import clean
from dmsoft.report.status import _work
from tests import mirror_model
from tests.fuzz import odd
from tests.fuzz.tally import Tally

_NAMES = Names("m", mirror_model.MIRROR)
_KEY = b"k" * 32
_HUGE = 1 << 40


class Place:
    """A folder with one good file of each kind, and who reads it: each returns how that ended."""

    def __init__(self, folder: Path) -> None:
        self.folder, run = folder, folder / "run"
        known = registry.Entry("m", mirror_model.MIRROR, mirror_model.primary().identity)
        said = bulletin.Bulletin(
            1, {mirror_model.MIRROR: bulletin.Said({"one": bulletin.Held("t" * 32, 1.8e9)}, (("x", "y"),))}
        )
        copying = Published(os.getpid(), 1.8e9, ("one",), "copy", 5, 10, 2, 2.5, Queue(1, 1, 0))
        holder = lock.Holder(os.getpid(), "resync", 1.7e9)
        self.files: dict[str, tuple[Path, bytes, Callable[[], str]]] = {
            "entry": (registry.DIRECTORY / "m.json", msgspec.json.encode(known), self._entries),
            "key": (folder / "keys" / f"{mirror_model.MIRROR}.key", _KEY.hex().encode() + b"\n", self._key),
            "bulletin": (run / "monitor.json", msgspec.json.encode(said), self._bulletin),
            "progress": (run / f"{mirror_model.MIRROR}.progress", msgspec.json.encode(copying), self._progress),
            "lock": (run / f"{mirror_model.MIRROR}.operation.lock", msgspec.json.encode(holder), self._work),
            "plug": (run / f"{mirror_model.MIRROR}.one.ejected", b"8:16 42", self._plug),
        }
        for path, data, _ in self.files.values():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o600)

    def _entries(self) -> str:
        found = registry.entries()
        assert all(entry.name and len(entry.mirror_uuid) == 32 for entry in found)
        return "read" if found else "nothing"

    def _key(self) -> str:
        found = keys.load(mirror_model.MIRROR, directory=self.folder / "keys")
        assert found is None or len(found) == 32
        return "nothing" if found is None else "read" if found == _KEY else "another key"

    def _bulletin(self) -> str:
        word = bulletin.read(bulletin.PATH, bulletin.LOCK)
        if word is None:
            return "nothing"
        for code, summary in word.of(mirror_model.MIRROR).alerts:
            clean(f"{code}: {summary}")
        return "read"

    def _work(self) -> str:
        return "nothing" if self._seen() is None else "read"

    def _progress(self) -> str:
        seen = self._seen()
        return "nothing" if seen is None or seen.phase is None else "read"

    def _seen(self) -> at_work.RunView | None:
        path = self.files["lock"][0]
        with contextlib.ExitStack() as stack:
            # Somebody holds the lock, or its words count for nothing. One that is no file is held by nobody.
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = at_work.at_work(mirror_model.MIRROR)
            if found is not None:
                assert clean(_work(found)).isprintable()
                msgspec.json.encode(found)
            return found

    def _plug(self) -> str:
        with mock.patch.object(plug, "appearance", lambda _: "8:16 42"):
            return "read" if plug.waits(_NAMES, "one", "8:16") else "nothing"


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """A `Place`, for as long as dmsoft looks for its files there."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dmsoft-fuzz-")))
        run = folder / "run"
        for module in (lock, plug, progress):
            stack.enter_context(mock.patch.object(module, "RUN_DIR", run))
        stack.enter_context(mock.patch.object(bulletin, "PATH", run / "monitor.json"))
        stack.enter_context(mock.patch.object(bulletin, "LOCK", run / "monitor.lock"))
        stack.enter_context(mock.patch.object(registry, "DIRECTORY", folder / "mirrors"))
        yield Place(folder)


def fuzz(count: int, seed: int) -> Tally:
    """Try ``count`` files. Raises `AssertionError` at the first that misleads."""
    chance, tally = random.Random(seed), Tally()
    with place() as here:
        assert all(read() == "read" for _, _, read in here.files.values())
        while tally.count < count:
            kind = chance.choice(list(here.files))
            path, good, read = here.files[kind]
            what = _damage(path, good, chance)
            with tally.bounded(f"seed {seed}, try {tally.count}, {kind}, {what}"):
                try:
                    end = read()
                except DmsoftError as err:
                    assert kind == "key", f"{kind}: {err.message}"
                    end = err.code
            assert end == "read" or what != "unharmed"
            assert end != "read" or what in ("bytes", "unharmed", "mode"), f"{kind} was read from {what}"
            tally.ends[f"{kind} {end}"] += 1
            _remove(path)
            path.write_bytes(good)
            path.chmod(0o600)
    return tally


def _damage(path: Path, good: bytes, chance: random.Random) -> str:
    how = chance.random()
    if how < 0.85:
        path.write_bytes(odd.json_of(good, chance) if good[:1] == b"{" else odd.bytes_of(good, chance))
        return "bytes"
    _remove(path)
    what = chance.choice(["link", "dangling link", "pipe", "folder", "huge", "mode", "missing", "unharmed"])
    match what:
        case "link":
            other = path.with_name("other")
            other.write_bytes(good)
            other.chmod(0o600)
            path.symlink_to(other)
        case "dangling link":
            path.symlink_to("/no/such")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "huge":
            path.write_bytes(good)
            path.chmod(0o600)
            os.truncate(path, _HUGE)
        case "mode":
            path.write_bytes(good)
            path.chmod(0o666)
        case "unharmed":
            path.write_bytes(good)
            path.chmod(0o600)
    return what


def _remove(path: Path) -> None:
    for each in (path, path.with_name("other")):
        if each.is_dir() and not each.is_symlink():
            each.rmdir()
        else:
            each.unlink(missing_ok=True)
