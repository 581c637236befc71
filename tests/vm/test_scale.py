# SPDX-License-Identifier: GPL-2.0-or-later
"""A mirror of disks as large as nobody has them: it works, and takes no more of memory and of the disk than it says."""

import pytest

from dmsoft.units import GIB, MIB
from tests.bench.scale_guest import DISK_BYTES, life, placed
from tests.harness.guestkit import Disks

TIB = 1 << 40
WRITTEN = 100


@pytest.mark.long
@pytest.mark.parametrize(("size", "block"), [(256 * TIB, 16 * MIB)])
def test_a_vast_mirror(disks: Disks, seed: int, size: int, block: int) -> None:
    assert disks.size("big0") >= DISK_BYTES
    short = 0  # bytes that the last block, which is written as well, lacks
    for what, took in life(disks["big0"], size, WRITTEN, seed):
        print(f"{what}: {took.seconds:.1f} s, {took.peak / MIB:.0f} MiB")
        assert took.peak < 640 * MIB, what
        if what == "create":
            short = -took.said["size_bytes"] % block
            regions = placed("/dev/mapper/vast-p")
            assert took.said["block_bytes"] == block
            assert regions["metadata"] <= GIB and size - took.said["size_bytes"] <= 1025 * MIB
        if what == "status":
            era = took.said["mirrors"][0]["era"]
            # The array, one writeset, and what a digestion has copied of them.
            assert era["metadata_used"] < era["metadata_total"] // 2
            assert took.said["mirrors"][0]["secondaries"][0]["stale_blocks"] == WRITTEN
        if what == "resync":
            assert took.said["bytes_copied"] == WRITTEN * block - short
