# SPDX-License-Identifier: GPL-2.0-or-later
"""What block devices this machine has, who uses them, and what could become of each. Nothing here writes to one."""
