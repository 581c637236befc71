# SPDX-License-Identifier: GPL-2.0-or-later
"""What the harness itself can fail with, apart from what a guest does."""


class HarnessError(Exception):
    """The VM could not be set up or run: one sentence saying what, for a person."""
