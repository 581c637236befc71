# SPDX-License-Identifier: GPL-2.0-or-later
"""Small files that are whole or not there, and durable when the call returns."""

import os
import secrets
from pathlib import Path


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
