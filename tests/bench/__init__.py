# SPDX-License-Identifier: GPL-2.0-or-later
"""Measurements against what people have today: ``python -m tests.bench NAME [--json]``."""
