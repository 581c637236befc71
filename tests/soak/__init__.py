# SPDX-License-Identifier: GPL-2.0-or-later
"""A long life of a mirror with three secondaries: random events, and every disk against its claims."""
