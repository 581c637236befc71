# SPDX-License-Identifier: GPL-2.0-or-later
"""From stale blocks to copied bytes: extents, requests, copying, comparing. Knows disks, not mirrors."""
