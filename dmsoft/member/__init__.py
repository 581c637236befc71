# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk says about itself: header format, regions, identity, and the gate before any write."""
