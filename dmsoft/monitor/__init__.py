# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon behind ``dmsoft monitor``: it keeps each mirror's promises, and tells when it cannot."""
