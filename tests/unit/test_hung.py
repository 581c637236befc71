# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk that keeps a read is not asked again while that read is under way."""

import os
import threading
import time
from pathlib import Path

import pytest

from dmsoft.mirror import hung


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hung, "RUN_DIR", tmp_path)
    monkeypatch.setattr(hung, "_WAITS", "DS")  # a thread that waits for another one
    return tmp_path


def test_as_long_as_the_thread_is_there(folder: Path) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, daemon=True)
    thread.start()
    assert thread.native_id is not None
    deadline = time.monotonic() + 30
    while not hung.has_thread("cciss!c0d0"):  # it may not wait yet
        assert time.monotonic() < deadline
        hung.note("cciss!c0d0", os.getpid(), thread.native_id)
    assert not hung.has_thread("sda")
    over.set()
    thread.join()
    assert not hung.has_thread("cciss!c0d0") and not list(folder.iterdir())


def test_a_thread_that_is_there_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    hung.note("sda", os.getpid(), threading.get_native_id())
    assert not hung.has_thread("sda")


@pytest.mark.parametrize("said", ["", "1", "x y z", "-1 0 5", "1 1 0"])
def test_a_note_that_says_nothing(folder: Path, said: str) -> None:
    (folder / "sda.hung").write_text(said)
    assert not hung.has_thread("sda")


def test_a_thread_that_is_gone_is_not_noted(folder: Path) -> None:
    hung.note("sda", os.getpid(), 0)
    assert not list(folder.iterdir())
