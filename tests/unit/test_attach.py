# SPDX-License-Identifier: GPL-2.0-or-later
"""On which kernels raid1 is believed to send what is written behind."""

import os
from types import SimpleNamespace

import pytest

from dmsoft.errors import KernelError
from dmsoft.mirror import attach


@pytest.mark.parametrize(
    ("release", "refused"),
    [
        ("5.10.0-33-amd64", False), ("6.12.48+deb13-amd64", False), ("6.13.11", False), ("6.14.0", True),
        ("6.15.2-1-generic", True), ("6.16.12+deb14-amd64", True), ("6.17.0-rc1", False), ("7.2.4", False),
    ],
)  # fmt: skip
def test_kernels_that_lose_what_is_written_behind(release: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    if not refused:
        return attach.check_raid1()
    with pytest.raises(KernelError, match=release.replace("+", r"\+")):
        attach.check_raid1()
