# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's own judgement: a comparison that cannot fail would prove nothing."""

import os
from pathlib import Path

import pytest

from dmsoft.units import MIB
from tests.demo import files
from tests.demo.disks import Data, differing
from tests.demo.files import Work
from tests.demo.stage import DemoError, shown, wrapped

LENGTH = 9 * MIB  # more than two of the chunks that are compared at a time, and not a whole number of them


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "primary"
    path.write_bytes(bytes(MIB) + os.urandom(LENGTH))
    return path


def test_every_byte_is_compared(image: Path, tmp_path: Path) -> None:
    original = image.read_bytes()[MIB:]
    changes = {0: {0}, 3 * MIB - 1: {2}, 4 * MIB: {4}, LENGTH - 1: {8}}
    for place, blocks in changes.items():
        other = tmp_path / "other"
        changed = bytearray(original)
        changed[place] ^= 1
        other.write_bytes(bytes(2 * MIB) + changed)
        sides = [Data(image, MIB, LENGTH), Data(other, 2 * MIB, LENGTH), Data(image, MIB, LENGTH)]
        assert differing(sides, MIB) == [blocks, set()]


def test_regions_of_unlike_size_or_too_short_are_no_match(image: Path) -> None:
    with pytest.raises(DemoError):
        differing([Data(image, MIB, LENGTH), Data(image, MIB, LENGTH - 4096)], MIB)
    with pytest.raises(DemoError):
        differing([Data(image, MIB, LENGTH), Data(image, 2 * MIB, LENGTH)], MIB)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "folder").mkdir(parents=True)
    (root / "folder/file").write_bytes(b"content")
    (root / "empty").touch()
    (root / "link").symlink_to("folder/file")
    return root


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda root: (root / "empty").unlink(), ["empty"]),
        (lambda root: (root / "extra").touch(), ["extra"]),
        (lambda root: os.truncate(root / "folder/file", 6), ["folder/file"]),
        (lambda root: (root / "folder").chmod(0o700), ["folder"]),
        (lambda root: os.utime(root / "folder/file", ns=(1, 1)), ["folder/file"]),
        (lambda root: ((root / "link").unlink(), (root / "link").symlink_to("empty")), ["link"]),
    ],
)
def test_whatever_is_wrong_with_a_file_is_found(tree: Path, damage: object, names: list[str]) -> None:
    expected = files.manifest(tree)
    assert files.differences(expected, files.manifest(tree)) == []
    assert callable(damage)
    damage(tree)
    assert files.differences(expected, files.manifest(tree)) == names


def test_one_flipped_bit_with_the_old_time_is_found(tree: Path) -> None:
    expected, file = files.manifest(tree), tree / "folder/file"
    status = file.stat()
    file.write_bytes(b"Content")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.differences(expected, files.manifest(tree)) == ["folder/file"]


def test_the_books_say_what_is_on_the_file_system(tree: Path, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    sources = sorted(path for path, _ in files.walk(tree) if not path.is_dir())
    hashes = files.hashed(sources)
    work = Work(mount)
    work.fill(sources, hashes)
    assert work.add([tree / "folder/file"], "again", hashes) == 1
    assert work.change([tree / "folder/file"]) == 1
    assert work.remove([tree / "empty"]) == 1
    found = files.manifest(mount)
    assert work.expected() == found
    here = str(tree.relative_to("/"))
    assert f"{here}/empty" not in found
    assert found[f"{here}/folder/file"].content != hashes[tree / "folder/file"]
    assert found[f"again/{here}/folder/file"].content == hashes[tree / "folder/file"]


def test_commands_are_shown_as_one_types_them() -> None:
    command = ["dmsoft", "create", "photos", "--primary", "/dev/" + "x" * 30, "--secondary", "one=/dev/y", "--yes"]
    assert shown(command, 78) == [
        f"$ dmsoft create photos --primary /dev/{'x' * 30} \\",
        "      --secondary one=/dev/y --yes",
    ]
    assert shown(["mount", "-o", "ro,noload", "/dev/a b", "/x"], 78) == ["$ mount -o ro,noload '/dev/a b' /x"]


def test_a_number_stays_with_its_unit() -> None:
    assert wrapped("word 12 MiB", 8) == ["word", "12 MiB"]
