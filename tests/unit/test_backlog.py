# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a backlog takes, told from two looks at a device's counters."""

import errno
import os
from pathlib import Path

import pytest

from dmsoft.errors import DeviceError
from dmsoft.mirror.backlog import expected, requests


@pytest.mark.parametrize(
    ("looks", "seconds"),
    [
        ([(0, 7)], 0.0),
        ([(9, 7), (0, 16)], 0.0),
        ([(20, 0), (20, 10)], 0.2),  # as many came as were done
        ([(200, 5), (100, 105)], 0.1),
        ([(200, 5), (200, 5)], float("inf")),
    ],
)
def test_expected(looks: list[tuple[int, int]], seconds: float) -> None:
    left = iter(looks)
    assert expected(lambda: next(left), lambda _: None) == pytest.approx(seconds)


def device(folder: Path, number: str, stat: str, suspended: str | None = None) -> None:
    (folder / number / "dm").mkdir(parents=True)
    (folder / number / "stat").write_text(stat)
    if suspended is not None:
        (folder / number / "dm/suspended").write_text(suspended)
    os.mkfifo(folder / number / "serial")  # a disk that does not answer: whoever reads it waits


def test_what_is_under_way(tmp_path: Path) -> None:
    device(tmp_path, "8:0", "5 0 0 0 7 0 0 0 3 0 0")
    device(tmp_path, "253:0", "5 0 0 0 7 0 0 0 0 0 0", "1")
    device(tmp_path, "253:1", "5 0 0 0 7 0 0 0 0 0 0", "0")
    assert requests("8:0", tmp_path) == (3, 12)
    assert requests("253:0", tmp_path) == (1, 12)
    assert requests("253:1", tmp_path) == (0, 12)
    assert requests("8:1", tmp_path) == (0, 0)


def test_what_cannot_be_read_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device(tmp_path, "8:0", "5 0 0 0 7 0 0 0 3 0 0")

    def fails(_: Path) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "read_text", fails)
    with pytest.raises(DeviceError, match="cannot be read"):
        requests("8:0", tmp_path)
