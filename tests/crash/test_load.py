# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs work on a mirror whose secondaries come and go; every copy of it is whole."""

import random

import pytest

from tests.load.__main__ import KINDS, main


@pytest.mark.long
def test_load(seed: int) -> None:
    kind = random.Random(seed).choice(KINDS)
    assert main(["--minutes", "0.1", "--file-systems", kind, "--seed", str(seed)]) == 0
