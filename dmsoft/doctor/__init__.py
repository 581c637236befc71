# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine's kernel and its surroundings really do, measured on scratch devices in memory."""
