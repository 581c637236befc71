# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user sees: tables, progress, JSON. Decides nothing."""
