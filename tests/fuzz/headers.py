# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutated headers of every role, through all that reads a disk which was plugged in: none is believed, and what a
person is shown of one has nothing in it that his terminal would obey."""

import contextlib
import io
import os
import random
from unittest import mock

from dmsoft.errors import DmsoftError
from dmsoft.hotplug import probe
from dmsoft.inventory.sysfs import BlockDevice
from dmsoft.member import examination, header
from dmsoft.member.header import HEADER_BYTES
from dmsoft.member.payload import AnyPayload, Identity
from dmsoft.mirror.arrival import Sight, genuine
from dmsoft.report import examine
from tests import mirror_model
from tests.fuzz.tally import Tally
from tests.header_model import KEY, ModelDisk
from tests.mutations import mutated

_SHOWN = 0.1
IDENTITY = Identity(mirror_model.SIZE, ("usb-Stick_0815", "wwn-0x5000"))
_DEVICE = BlockDevice("sdx", "/dev/sdx", 8, 400, mirror_model.SIZE, "disk")


def good_regions() -> list[tuple[bytes, Identity]]:
    """A good header region of each role, and the disk that it is on."""
    member = mirror_model.record("b1", "write-behind", mirror_model.via_cache("b1"))
    primary = mirror_model.primary(member, separate=True).replace(identity=IDENTITY)
    payloads: list[AnyPayload] = [
        primary, mirror_model.secondary(primary, "b1").replace(identity=IDENTITY),
        mirror_model.cache("b1", "8:1").payload, mirror_model.metadata("8:2", blocks=1024).payload,
    ]  # fmt: skip
    found = []
    for payload in payloads:
        model = ModelDisk(bytes(HEADER_BYTES))
        header.write_first(model, payload, KEY)
        found.append((bytes(model.medium), payload.identity))
    return found


def fuzz(count: int, seed: int) -> Tally:
    """Try ``count`` headers. Raises `AssertionError` at the first that is believed."""
    chance, tally, good = random.Random(seed), Tally(), good_regions()
    assert all(judged(region, identity) == "believed" for region, identity in good)
    fd = os.memfd_create("disk")
    try:
        for _ in range(count):
            region, identity = chance.choice(good)
            bad = mutated(region, chance)
            os.pwrite(fd, bad, 0)
            with tally.bounded(f"seed {seed}, try {tally.count}"):
                for name, value in probe.probe(fd).items():
                    assert name.startswith("DMSOFT_") and value and probe.LETTERS.issuperset(value)
                end = judged(bad, identity)
                assert end != "believed"
                if chance.random() < _SHOWN:
                    show(bad)
            tally.ends[end] += 1
    finally:
        os.close(fd)
    return tally


def judged(region: bytes, identity: Identity) -> str:
    """What a disk with this header comes to: ``believed``, ``no header``, or the code of the error."""
    disk = ModelDisk(region)
    scan = header.read(disk, key=KEY)
    assert disk.read_bytes < 4 * HEADER_BYTES
    if scan.header is None:
        return "no header"
    try:
        genuine(Sight("/dev/sdx", identity, scan, scan.header))
    except DmsoftError as err:
        return err.code
    return "believed"


def show(region: bytes) -> None:
    """As ``dmsoft examine`` does."""
    disk, out = ModelDisk(region), io.StringIO()
    with (
        mock.patch.object(examination, "block_device", lambda _: _DEVICE),
        mock.patch.object(examination, "identity_of", lambda _: IDENTITY),
        mock.patch.object(examination.keys, "load", lambda _: KEY),
        mock.patch.object(examination, "record_of", lambda *_: None),
        contextlib.redirect_stdout(out),
    ):
        try:
            found = examination.examine(disk)  # type: ignore[arg-type]
        except DmsoftError as err:
            assert err.exit_code in (5, 7)
            return
        examine.show("/dev/sdx", found)
    shown = out.getvalue()
    assert all(char.isprintable() or char == "\n" for char in shown), repr(shown)
    assert "fake: yes" not in [line.strip() for line in shown.splitlines()], shown
