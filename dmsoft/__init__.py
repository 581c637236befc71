# SPDX-License-Identifier: GPL-2.0-or-later
"""dmsoft: soft mirrors on Linux device-mapper."""

__version__ = "0.1.0"
