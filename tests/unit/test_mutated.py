# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers that were tampered with, through all that reads a disk that was plugged in: none is believed."""

import os
import random
import resource

from dmsoft.errors import DmsoftError
from dmsoft.hotplug import probe
from dmsoft.member import header
from dmsoft.member.header import HEADER_BYTES
from dmsoft.member.payload import Identity
from dmsoft.mirror.arrival import Sight, genuine
from dmsoft.units import MIB
from tests import mirror_model
from tests.header_model import KEY, ModelDisk
from tests.mutations import mutated

COUNT = 2000
# What one header of the largest size takes to be read and parsed, and room for the interpreter's habits.
MOST_BYTES = 64 * MIB


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def believed(region: bytes, refusals: set[str] | None = None) -> bool:
    disk = ModelDisk(region)
    scan = header.read(disk, key=KEY)
    assert disk.read_bytes < 4 * HEADER_BYTES
    if scan.header is None:
        return False
    try:
        genuine(Sight("/dev/sdx", Identity(mirror_model.SIZE), scan, scan.header))
    except DmsoftError as err:
        if refusals is not None:
            refusals.add(err.code)
        return False
    return True


def test_none_is_believed(seed: int) -> None:
    chance = random.Random(seed)
    model = ModelDisk(bytes(HEADER_BYTES))
    header.write_first(model, mirror_model.secondary(mirror_model.primary(), "s1").replace(member_uuid="b" * 32), KEY)
    good = bytes(model.medium)
    assert believed(good)
    before, refusals = peak_bytes(), set[str]()
    fd = os.memfd_create("disk")
    for _ in range(COUNT):
        bad = mutated(good, chance)
        os.pwrite(fd, bad, 0)
        for name, value in probe.probe(fd).items():
            assert name.startswith("DMSOFT_") and value and probe.LETTERS.issuperset(value)
        assert not believed(bad, refusals)
    os.close(fd)
    assert refusals == {"not-authentic", "metadata-bad"}
    assert peak_bytes() - before < MOST_BYTES
