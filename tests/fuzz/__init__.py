# SPDX-License-Identifier: GPL-2.0-or-later
"""Long random searches for what breaks the readers of untrusted disks; short ones are part of the unit tests."""
