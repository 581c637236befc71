# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of the demo: which of the machine's own are taken, what is done to them, and what a copy must show."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dmsoft.units import MIB
from tests.demo.stage import DemoError, quiet

# From each tree files are taken in the order of their names until the budget is spent.
_TREES = (("lib/python3.*", 16 * MIB), ("bin", 96 * MIB), ("lib/*-linux-gnu*", 112 * MIB))
_LARGEST = 24 * MIB
_USR = Path("/usr")


@dataclass(frozen=True)
class Entry:
    """One file, folder or link as it has to be found again. ``content`` is a sha256 or where a link leads to."""

    mode: int
    owner: tuple[int, int]
    modified_ns: int
    size: int
    content: str


def choose() -> list[Path]:
    """A few hundred MiB of files and links from /usr, the same ones each time on the same machine."""
    chosen: list[Path] = []
    for pattern, budget in _TREES:
        for tree in sorted(_USR.glob(pattern)):
            spent = 0
            for path, size in _files(tree):
                if spent + size > budget:
                    continue
                spent += size
                chosen.append(path)
    if not chosen:
        raise DemoError("/usr has no files to copy")
    return chosen


def _files(tree: Path) -> Iterator[tuple[Path, int]]:
    for folder, folders, names in os.walk(tree):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            path = Path(folder, name)
            status = path.lstat()
            regular = stat.S_ISREG(status.st_mode) and status.st_size <= _LARGEST
            if regular or stat.S_ISLNK(status.st_mode):
                yield path, status.st_size


def copy(paths: Iterable[Path], destination: Path) -> None:
    """``cp -a`` of all of them, with the folders they are in."""
    destination.mkdir(exist_ok=True)
    quiet("cp", "-a", "--parents", "--target-directory", str(destination), "--", *(str(path) for path in paths))


class Work:
    """A day's work on a mounted file system: deterministic, and it keeps the books on what each file holds.

    Contents of copied files are hashed where they came from, so that a damaged copy cannot vouch for itself.
    """

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self._hashes: dict[Path, str] = {}

    def fill(self, paths: list[Path], hashes: dict[Path, str]) -> None:
        copy(paths, self.mount)
        self._hashes |= {self._place(path): hashes[path] for path in paths if path in hashes}

    def add(self, paths: list[Path], folder: str, hashes: dict[Path, str]) -> int:
        """Copy ``paths`` once more, below ``folder``; returns how many files that makes."""
        copy(paths, self.mount / folder)
        there = {self.mount / folder / path.relative_to("/"): hashes[path] for path in paths if path in hashes}
        self._hashes |= there
        return len(there)

    def change(self, paths: list[Path]) -> int:
        """Write a few bytes into the middle of each, and append to every second one."""
        for index, path in enumerate(paths):
            place = self._place(path)
            with place.open("r+b") as file:
                file.seek(place.stat().st_size // 2)
                file.write(b"changed while the disk was away\n")
                if index % 2:
                    file.seek(0, os.SEEK_END)
                    file.write(b"and longer than before\n" * 1000)
            self._hashes[place] = sha256(place)
        return len(paths)

    def remove(self, paths: list[Path]) -> int:
        for path in paths:
            place = self._place(path)
            place.unlink()
            del self._hashes[place]
        return len(paths)

    def expected(self) -> dict[str, Entry]:
        """What every faithful copy of the file system shows."""
        found = {}
        for path, status in walk(self.mount):
            content = self._hashes[path] if stat.S_ISREG(status.st_mode) else _link(path, status)
            found[str(path.relative_to(self.mount))] = _entry(status, content)
        return found

    def _place(self, path: Path) -> Path:
        return self.mount / path.relative_to("/")


def manifest(mount: Path) -> dict[str, Entry]:
    """Every file, folder and link below ``mount``, each file read to its end."""
    return {
        str(path.relative_to(mount)): _entry(
            status, sha256(path) if stat.S_ISREG(status.st_mode) else _link(path, status)
        )
        for path, status in walk(mount)
    }


def walk(mount: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, folders, names in os.walk(mount):
        for name in sorted([*folders, *names]):
            path = Path(folder, name)
            yield path, path.lstat()


def hashed(paths: Iterable[Path]) -> dict[Path, str]:
    return {path: sha256(path) for path in paths if not path.is_symlink()}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(status: os.stat_result, content: str) -> Entry:
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return Entry(status.st_mode, (status.st_uid, status.st_gid), status.st_mtime_ns, size, content)


def _link(path: Path, status: os.stat_result) -> str:
    return os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""


def differences(expected: dict[str, Entry], found: dict[str, Entry]) -> list[str]:
    """Names that are missing, that should not be there, or that differ in anything."""
    names = sorted(expected.keys() | found.keys())
    return [name for name in names if expected.get(name) != found.get(name)]
