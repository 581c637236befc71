# SPDX-License-Identifier: GPL-2.0-or-later
"""The register of mirrors: a convenience, so nothing in it may ever keep dmsoft from working."""

from pathlib import Path

import pytest

from dmsoft.mirror import registry
from dmsoft.mirror.registry import Entry
from tests.mirror_model import MIRROR, primary


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "DIRECTORY", tmp_path / "etc" / "mirrors")
    return tmp_path / "etc" / "mirrors"


def test_there_may_be_none() -> None:
    assert registry.entries() == []
    registry.forget("m")


def test_round_trip(directory: Path) -> None:
    mine = primary()
    registry.register(mine)
    assert registry.entries() == [Entry("m", MIRROR, mine.identity)]
    assert [path.name for path in directory.iterdir()] == ["m.json"]
    registry.forget("m")
    registry.forget("m")
    assert registry.entries() == [] and list(directory.iterdir()) == []


def test_the_same_entry_is_not_written_again(directory: Path) -> None:
    registry.register(primary())
    before = (directory / "m.json").stat()
    registry.register(primary())
    assert (directory / "m.json").stat().st_ino == before.st_ino
    registry.register(primary().replace(mirror_uuid="9" * 32))
    assert [entry.mirror_uuid for entry in registry.entries()] == ["9" * 32]


def test_names_with_dots_and_dashes_stay_apart(directory: Path) -> None:
    names = ["a", "a.json", "a-b", "_x", "A"]
    for number, name in enumerate(names):
        registry.register(primary().replace(mirror_name=name, mirror_uuid=f"{number:032x}"))
    assert sorted(entry.name for entry in registry.entries()) == sorted(names)
    registry.forget("a")
    assert sorted(entry.name for entry in registry.entries()) == sorted(set(names) - {"a"})


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"name": "x"}',
        b'{"name": "../x", "mirror_uuid": "' + b"a" * 32 + b'", "primary": {"size_bytes": 1}}',
        b'{"name": "\xff\xfe"}',
        b'{"more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        bytes(4096),
    ],
)
def test_a_damaged_entry_is_left_out(directory: Path, damage: bytes) -> None:
    registry.register(primary())
    (directory / "broken.json").write_bytes(damage)
    assert [entry.name for entry in registry.entries()] == ["m"]


def test_what_is_no_entry_is_no_matter(directory: Path) -> None:
    registry.register(primary())
    (directory / "folder.json").mkdir()
    (directory / "dangling.json").symlink_to(directory / "nowhere")
    (directory / "README").write_text("hands off")
    assert [entry.name for entry in registry.entries()] == ["m"]


def test_a_damaged_entry_is_replaced(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "m.json").write_bytes(b"{")
    registry.register(primary())
    assert [entry.name for entry in registry.entries()] == ["m"]
