# SPDX-License-Identifier: GPL-2.0-or-later
"""A mirror lives through random events; no disk is ever other than it claims to be."""

from pathlib import Path

import pytest

from tests.soak.__main__ import main


@pytest.mark.parametrize("events", [6, pytest.param(200, marks=pytest.mark.long)])
def test_soak(seed: int, tmp_path: Path, events: int) -> None:
    assert main(["--events", str(events), "--seed", str(seed), "--folder", str(tmp_path / "disks")]) == 0
