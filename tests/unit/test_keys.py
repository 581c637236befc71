# SPDX-License-Identifier: GPL-2.0-or-later
"""Key files: made once, readable by their owner alone, and refused when anybody else could have touched them."""

import os
import stat
from pathlib import Path

import pytest

from dmsoft.errors import DeviceError
from dmsoft.member import files, keys
from dmsoft.member.keys import KeyExistsError, KeyFileError

UUID = "0123456789abcdef" * 2


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "keys"


def test_round_trip(directory: Path) -> None:
    assert keys.load(UUID, directory=directory) is None
    old = os.umask(0o377)
    try:
        key = keys.create(UUID, directory=directory)
    finally:
        os.umask(old)
    assert len(key) == keys.KEY_BYTES
    assert keys.load(UUID, directory=directory) == key
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [(entry.name, stat.S_IMODE(entry.stat().st_mode)) for entry in directory.iterdir()] == [
        (f"{UUID}.key", 0o600)
    ]
    assert keys.create("f" * 32, directory=directory) != key
    assert keys.remove(UUID, directory=directory) is True
    assert keys.remove(UUID, directory=directory) is False
    assert keys.load(UUID, directory=directory) is None


def test_create_never_replaces(directory: Path) -> None:
    key = keys.create(UUID, directory=directory)
    with pytest.raises(KeyExistsError) as caught:
        keys.create(UUID, directory=directory)
    assert caught.value.hint and caught.value.exit_code == 4
    assert keys.load(UUID, directory=directory) == key
    (directory / f"{UUID}.key").unlink()
    (directory / f"{UUID}.key").symlink_to(directory / "elsewhere")
    with pytest.raises(KeyExistsError):
        keys.create(UUID, directory=directory)
    assert [entry.name for entry in directory.iterdir()] == [f"{UUID}.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644])
def test_a_key_that_others_can_use_is_refused(directory: Path, mode: int) -> None:
    keys.create(UUID, directory=directory)
    (directory / f"{UUID}.key").chmod(mode)
    with pytest.raises(KeyFileError, match=f"{mode:04o}") as caught:
        keys.load(UUID, directory=directory)
    assert "chmod" in (caught.value.hint or "")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720])
def test_a_directory_that_others_can_write_is_refused(directory: Path, mode: int) -> None:
    keys.create(UUID, directory=directory)
    directory.chmod(mode)
    with pytest.raises(KeyFileError):
        keys.load(UUID, directory=directory)
    with pytest.raises(KeyFileError):
        keys.create("f" * 32, directory=directory)


def test_links_and_other_kinds_are_refused(directory: Path, tmp_path: Path) -> None:
    keys.create(UUID, directory=directory)
    path = directory / f"{UUID}.key"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(KeyFileError, match="symbolic link"):
        keys.load(UUID, directory=directory)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyFileError, match="not a file"):
        keys.load(UUID, directory=directory)
    path.unlink()
    path.mkdir()
    with pytest.raises(KeyFileError, match="not a file"):
        keys.load(UUID, directory=directory)
    linked = tmp_path / "linked"
    linked.symlink_to(directory)
    with pytest.raises(KeyFileError, match="not a directory"):
        keys.load(UUID, directory=linked)


def test_a_key_of_another_user_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.create(UUID, directory=directory)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(KeyFileError, match=f"user {user}"):
        keys.load(UUID, directory=directory)


@pytest.mark.parametrize("text", [b"", b"00", b"g" * 64, b"0" * 63, b"0" * 65, b"0" * 64 + b"\n\n", b"A" * 64])
def test_what_is_not_a_key_is_refused(directory: Path, text: bytes) -> None:
    keys.create(UUID, directory=directory)
    files.write_durably(directory / f"{UUID}.key", text)
    with pytest.raises(KeyFileError, match="not a key"):
        keys.load(UUID, directory=directory)


@pytest.mark.parametrize("uuid", ["", "../" + UUID, UUID.upper(), UUID + "\n", UUID[:-1]])
def test_only_a_uuid_names_a_file(directory: Path, uuid: str) -> None:
    for call in (keys.create, keys.load, keys.remove):
        with pytest.raises(ValueError, match="is not a mirror's uuid"):
            call(uuid, directory=directory)


def test_a_directory_that_cannot_be_made_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError) as caught:
        keys.create(UUID, directory=tmp_path / "file" / "keys")
    assert caught.value.hint


def test_write_durably_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_durably(path, b"1" * 100)
    files.write_durably(path, b"2", mode=0o644)
    assert path.read_bytes() == b"2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError):
        files.write_durably(tmp_path / "directory", b"3")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["directory", "file"]
