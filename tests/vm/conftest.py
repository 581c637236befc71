# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests that run as root inside a VM."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "smoke: also run on the other kernels")
