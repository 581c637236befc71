# SPDX-License-Identifier: GPL-2.0-or-later
"""One mirror: what it is, what stands in the kernel, and how the one becomes the other."""
