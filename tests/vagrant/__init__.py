# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests on a machine that really boots, with systemd: run by ``./dev vagrant``."""
