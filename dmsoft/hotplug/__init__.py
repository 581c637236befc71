# SPDX-License-Identifier: GPL-2.0-or-later
"""What udev calls: fast, read-only, without locks."""
