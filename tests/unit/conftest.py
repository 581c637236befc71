# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis for the tests that use it; VMs, where its import takes seconds, do without."""

from hypothesis import settings

# A busy CPU misses every deadline, and a checkout is not written to by its tests.
settings.register_profile("dmsoft", deadline=None, database=None, print_blob=True)
settings.load_profile("dmsoft")
