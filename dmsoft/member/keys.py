# SPDX-License-Identifier: GPL-2.0-or-later
"""The key of each mirror, with which the headers of its members are signed: 32 random bytes, as hex, in a file.

A key lies in ``/etc/dmsoft/keys/<mirror uuid>.key`` (directory 0700, file 0600). It proves that a disk that is
plugged in was written by this machine's dmsoft; without it no verb uses the mirror. ``directory`` is for tests.
"""

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dmsoft.errors import DeviceError, RefusedError
from dmsoft.member import files

DIRECTORY: Final = Path("/etc/dmsoft/keys")
KEY_BYTES: Final = 32

_UUID = re.compile(r"[0-9a-f]{32}")
_TEXT = re.compile(rb"([0-9a-f]{64})\n?")


class KeyFileError(RefusedError):
    """A mirror's key file cannot be trusted.

    The files in /etc/dmsoft/keys (folder 0700, files 0600, all of root) prove that a header was written by this
    machine. Somebody else could have changed one, or it is damaged. Find out why, then put owner and mode right or
    restore the file from a backup.
    """

    code = "key-file"


class KeyExistsError(RefusedError):
    """There is a key file for this mirror already.

    It would belong to another mirror of the same uuid. Nothing was changed. Remove the file only if you know that its
    mirror is gone.
    """

    code = "key-exists"


def create(mirror_uuid: str, *, directory: Path = DIRECTORY) -> bytes:
    """Draw and store the key of a new mirror. Raises `KeyExistsError`, `KeyFileError` and `DeviceError`."""
    path = _path(mirror_uuid, directory)
    key = secrets.token_bytes(KEY_BYTES)
    try:
        files.make_directory(directory, mode=0o700)
        _check_directory(directory)
        files.create(path, key.hex().encode() + b"\n")
    except FileExistsError as err:
        raise KeyExistsError(
            f"{path} exists already.", hint="It is the key of another mirror; remove it only if that one is gone."
        ) from err
    except OSError as err:
        raise _failure(path, "written", err) from err
    return key


def load(mirror_uuid: str, *, directory: Path = DIRECTORY) -> bytes | None:
    """The key of a mirror, or None if there is none. Raises `KeyFileError` and `DeviceError`."""
    path = _path(mirror_uuid, directory)
    try:
        _check_directory(directory)
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as err:
        if err.errno == errno.ELOOP:
            raise _unsafe(path, "is a symbolic link") from err
        raise _failure(path, "opened", err) from err
    try:
        _check(path, os.fstat(fd), stat.S_ISREG, "a file", 0o077)
        text = os.read(fd, 2 * KEY_BYTES + 2)
    except OSError as err:
        raise _failure(path, "read", err) from err
    finally:
        os.close(fd)
    match = _TEXT.fullmatch(text)
    if match is None:
        raise KeyFileError(
            f"{path} is not a key of 32 bytes in hex.",
            hint="Restore it from a backup; without it the mirror cannot be started.",
        )
    return bytes.fromhex(match[1].decode())


def remove(mirror_uuid: str, *, directory: Path = DIRECTORY) -> bool:
    """Remove the key of a mirror that is destroyed; False if there was none. Raises `DeviceError`."""
    path = _path(mirror_uuid, directory)
    try:
        return files.remove(path)
    except OSError as err:
        raise _failure(path, "removed", err) from err


def _path(mirror_uuid: str, directory: Path) -> Path:
    if _UUID.fullmatch(mirror_uuid) is None:
        raise ValueError(f"{mirror_uuid!r} is not a mirror's uuid")  # it must never name another file
    return directory / f"{mirror_uuid}.key"


def _check_directory(directory: Path) -> None:
    _check(directory, os.lstat(directory), stat.S_ISDIR, "a directory", 0o022)


def _check(path: Path, found: os.stat_result, is_kind: Callable[[int], bool], kind: str, forbidden: int) -> None:
    if not is_kind(found.st_mode):
        raise _unsafe(path, f"is not {kind}")
    if found.st_uid != os.geteuid():
        raise _unsafe(path, f"belongs to user {found.st_uid}")
    if found.st_mode & forbidden:
        raise _unsafe(path, f"has mode {stat.S_IMODE(found.st_mode):04o}")


def _unsafe(path: Path, what: str) -> KeyFileError:
    return KeyFileError(
        f"{path} {what}, so the key may not be ours alone.",
        hint=f"Find out why, then: chown root:root {path} and chmod go= {path}.",
    )


def _failure(path: Path, what: str, err: OSError) -> DeviceError:
    return DeviceError(f"{path} could not be {what}: {err.strerror or err}.", hint="See that /etc can be written.")
