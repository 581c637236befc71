# SPDX-License-Identifier: GPL-2.0-or-later
"""Device-mapper: typed targets, the library binding, and devices that refuse what the kernel would not survive."""
