# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev demo``: the main job of dmsoft, watched. Runs as root inside a VM."""
