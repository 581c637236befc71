# SPDX-License-Identifier: GPL-2.0-or-later
"""Small files that are whole or not there, and durable when the call returns; and reading such files back."""

import errno
import os
import secrets
import stat
from pathlib import Path
from typing import TypeVar

import msgspec

from dmsoft.units import KIB

_MOST_BYTES = 256 * KIB
T = TypeVar("T")


def read_small(path: Path, most_bytes: int = _MOST_BYTES) -> bytes:
    """All of a file that we wrote. Raises `OSError`, for a link, a pipe or a longer file as well: we wrote none of
    those, and to read one could wait or fill the memory."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        data = os.read(fd, most_bytes + 1)
    finally:
        os.close(fd)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, "it is too long", str(path))
    return data


def read_json(path: Path, kind: type[T]) -> T | None:
    """What such a file says; None if it is not there, cannot be read or says nothing of that kind."""
    try:
        return decoded(read_small(path), kind)
    except OSError:
        return None


def decoded(data: bytes, kind: type[T]) -> T | None:
    """The value in a JSON text; None for any other text."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put ``data`` at ``path`` in one step, over what is there. Raises `OSError`."""
    temporary = _write_beside(path, data, mode)
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def create(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """As `write_durably`, but raises `FileExistsError` if anything is at ``path``, a dangling link too."""
    temporary = _write_beside(path, data, mode)
    try:
        # A link, unlike a rename, never replaces; and unlike open(O_EXCL), the name never shows half a file.
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def remove(path: Path) -> bool:
    """Remove ``path``; False if it was not there. Raises `OSError`."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_directory(path.parent)
    return True


def make_directory(path: Path, *, mode: int) -> None:
    """Make ``path`` with exactly ``mode``, and the directories above it with 0755; existing ones stay as they are."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_directory(path.parent, mode=0o755)
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        return
    path.chmod(mode)  # whatever the umask took away
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_beside(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
