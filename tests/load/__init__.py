# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs at work on a mirror whose secondaries come, go and catch up; their own eyes then judge every copy."""
