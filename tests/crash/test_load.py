# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs work on a mirror whose secondaries come and go; every copy of it is whole."""

import pytest

from tests.load.__main__ import main


@pytest.mark.slow
def test_load(seed: int) -> None:
    assert main(["--minutes", "0.1", "--seed", str(seed)]) == 0
