# SPDX-License-Identifier: GPL-2.0-or-later
"""Small files are read whole, or not at all: nothing that somebody puts in their place is waited for or followed."""

import os
from pathlib import Path

import pytest

from dmsoft.member.files import decoded, read_json, read_small


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    assert read_small(path) == b"data" and read_small(path, 4) == b"data"
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 40)
    for name in ("link", "pipe", "folder", "huge", "missing"):
        with pytest.raises(OSError):
            read_small(tmp_path / name)
        assert read_json(tmp_path / name, int) is None
    with pytest.raises(OSError, match="too long"):
        read_small(path, 3)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'"\xff"', b"[" * 100_000, b'"1"', b"1.5", b"null"])
def test_what_says_nothing(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    assert decoded(data, int) is None and read_json(tmp_path / "file", int) is None
    assert decoded(b"5", int) == 5
