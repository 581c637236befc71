# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutated headers of every role, through all that reads a disk which was plugged in: none is believed, what a person is
shown of one has nothing in it that his terminal would obey, and a mirror beside it is seen as it was without it."""

import contextlib
import io
import os
import random
from unittest import mock

import msgspec

from dmsoft.errors import DmsoftError
from dmsoft.hotplug import probe
from dmsoft.inventory.sysfs import BlockDevice
from dmsoft.member import examination, header
from dmsoft.member.header import HEADER_BYTES
from dmsoft.member.header import read as read_header
from dmsoft.member.payload import AnyPayload, Identity
from dmsoft.mirror import locate, observe
from dmsoft.mirror.arrival import Sight, genuine
from dmsoft.mirror.views import MirrorView
from dmsoft.report import examine
from tests import mirror_model
from tests.fuzz.tally import Tally
from tests.header_model import KEY, ModelDisk
from tests.mutations import mutated

_SHOWN = 0.1
_BESIDE = 0.1
_MAJOR = 4095  # of no device
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
    alone = beside(good, None)
    assert alone.primary is not None and len(alone.secondaries) == 1
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
                if chance.random() < _BESIDE:
                    assert beside(good, bad) == alone
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


def beside(good: list[tuple[bytes, Identity]], bad: bytes | None) -> MirrorView:
    """What `status` says of the mirror of the ``good`` headers, but for alerts, beside a disk with the ``bad`` one."""
    found = [*good, *([] if bad is None else [(bad, Identity(mirror_model.SIZE, ("usb-Evil_1",)))])]
    disks = {f"/dev/sd{letter}": each for letter, each in zip("abcdefgh", found, strict=False)}
    devices = [
        BlockDevice(path[5:], path, _MAJOR, number, identity.size_bytes, "disk")
        for number, (path, (_, identity)) in enumerate(disks.items())
    ]

    def identity_of(device: BlockDevice) -> Identity:
        return disks[device.path][1]

    with (
        mock.patch.object(locate.header, "read", lambda path, key: read_header(ModelDisk(disks[path][0]), key=key)),
        mock.patch.object(locate.keys, "load", lambda uuid: KEY if uuid == mirror_model.MIRROR else None),
        mock.patch.object(locate, "identity_of", identity_of),
        mock.patch.object(locate, "identify", lambda path: disks[path][1]),
        mock.patch.object(locate.registry, "entries", list),
        mock.patch.object(observe, "devices", lambda _: []),
        mock.patch.object(observe, "is_active", lambda _: False),
        mock.patch.object(observe, "doubt_of", lambda _: None),
        mock.patch.object(observe, "at_work", lambda _: None),
    ):
        seen = locate.census(devices)
        known = observe._known(seen)
        views = {name: observe.view_of(name, uuid, seen, None) for name, uuid in known.items()}
    return msgspec.structs.replace(views["m"], alerts=())
