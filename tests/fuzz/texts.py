# SPDX-License-Identifier: GPL-2.0-or-later
"""Texts of the kernel, of udev, of other programs and of the user, with words of them odd: each is read, or refused by
one of our errors; and what was read prints and reads again."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import msgspec

from dmsoft.cli import options
from dmsoft.dm import targets
from dmsoft.dm.raid1 import Superblock
from dmsoft.dm.status import parse_status
from dmsoft.errors import DmsoftError
from dmsoft.inventory import blivet, signatures, usage
from dmsoft.inventory.sysfs import BlockDevice
from dmsoft.inventory.udev import Udev
from dmsoft.member.identity import identity_of
from dmsoft.member.payload import Identity
from dmsoft.mirror.names import check_label, check_name
from dmsoft.monitor import sources
from dmsoft.report.output import clean
from dmsoft.resync.pace import Limit
from dmsoft.run import CommandError
from dmsoft.units import format_duration, format_size, parse_duration, parse_size
from tests.fuzz import odd
from tests.fuzz.tally import Tally


@dataclass(frozen=True)
class Reader:
    """``read`` gets one of ``good``, made odd; what it may raise besides our errors is ``raises``."""

    good: tuple[str, ...]
    read: Callable[[str], Any]
    raises: type[Exception] | tuple[type[Exception], ...] = ()


def _raw(text: str) -> bytes:
    """Its bytes, whatever it is."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")


def _status(text: str) -> None:
    kind, _, rest = text.partition(" ")
    parse_status(kind, rest)


def _table(text: str) -> None:
    found = targets.parse_table(text)
    assert targets.parse_table(targets.format_table(found)) == found


def _superblock(text: str) -> None:
    data = _raw(text)[:4096].ljust(4096, b"\0")
    found = Superblock.parse(data)
    if found is not None:
        found.lacks(found.legs - 1)


class _Answer:
    """What a program that was run said."""

    def __init__(self, text: str, status: int = 0) -> None:
        self.stdout, self.stderr, self.returncode = _raw(text), b"", status


def _wipefs(text: str) -> None:
    with mock.patch.object(signatures, "run", lambda *_, **__: _Answer(text)):
        for found in signatures._wipefs("/dev/sdx"):
            assert clean(str(found)) == str(found)


def _blkid(text: str) -> None:
    with mock.patch.object(signatures, "run", lambda *_, **__: _Answer(text)):
        for found in signatures._blkid("/dev/sdx"):
            assert clean(str(found)) == str(found)


def _scan(text: str) -> None:
    with mock.patch.object(blivet, "run", lambda *_, **__: _Answer(text)):
        msgspec.json.encode(blivet.advice())


def _links(text: str) -> None:
    """Names that udev gave a disk, as they go into a header and come out of it again."""
    device = BlockDevice("sdx", "/dev/sdx", 8, 400, 1 << 30, "disk")
    with mock.patch.object(Udev, "properties", lambda *_: {"DEVLINKS": text, "USEC_INITIALIZED": "1"}):
        found = identity_of(device)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Identity) == found
    assert all("/" not in name for name in found.by_id)


def _plug(text: str) -> None:
    said = dict(line.partition("=")[::2] for line in text.split("\n"))
    sources._plug(said.get("ACTION"), said)


def _ways(text: str) -> None:
    words = text.split("\n")
    options.secondaries(words[:1], words[1:2], "write-behind", 300.0, None, words[2:])


_READERS = {
    "status": Reader(
        (
            "era 8 19/65536 2 -",
            "era 8 19/65536 2 17",
            "era Error",
            "raid raid1 2 AA 262144/262144 idle 0 0 -",
            "raid raid1 3 AaD 0/262144 recover 0 0 -",
            "writecache 0 100 50 0 1 2 3 4 5 6 7 8 9 10",
            "writecache -5 1 1 1",
            "delay 1 2 3",
            "linear x",
        ),
        _status,
    ),
    "table": Reader(
        (
            "0 2048 linear 8:1 2048",
            "0 2048 era 8:1 8:2 128",
            "0 2048 writecache s 8:1 8:2 4096 2 high_watermark 50",
            "0 2048 delay 8:1 0 20 8:1 0 500",
            "0 2048 error",
            "0 2048 snapshot-origin 8:3",
            "0 2048 raid raid1 8 0 nosync region_size 1024 write_mostly 0 max_write_behind 2 2 8:1 8:2 8:3 8:4",
        ),
        _table,
    ),
    "superblock": Reader(("DmRd\x01\x00\x00\x00\x02\x00\x00\x00\x01" + "\0" * 600,), _superblock),
    "mounts": Reader(
        ("36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",) * 2
        + ("37 35 0:50 / /a rw - btrfs /dev/sdb:/dev/sdc rw\n",),
        usage.parse_mountinfo,
        ValueError,
    ),
    "swaps": Reader(
        ("Filename\tType\t\tSize\tUsed\tPriority\n/dev/sda2 partition\t1000\t0\t-2\n/a\\040b file 10 0 -3\n",),
        usage.parse_swaps,
        ValueError,
    ),
    "wipefs": Reader(
        (
            '{"signatures": [{"device":"sdx","offset":"0x438","type":"ext4","uuid":"u","label":"a b"}]}',
            '{"signatures":[]}',
            "",
        ),
        _wipefs,
    ),
    "blkid": Reader(("ID_FS_LABEL=x\nID_FS_TYPE=ext4\nID_PART_TABLE_TYPE=gpt\n",), _blkid),
    "blivet": Reader(('{"version":"3","failed":null,"reasons":{"sdx":["holds x"]},"unscanned":{"sdy":"why"}}',), _scan),
    "links": Reader(
        ("/dev/disk/by-id/usb-Stick_0815 /dev/disk/by-id/wwn-0x5 /dev/disk/by-path/x /dev/disk/by-id/lvm-pv-uuid-x",),
        _links,
    ),
    "plug": Reader(
        (
            "ACTION=add\nMAJOR=8\nMINOR=16\nDMSOFT_MEMBER=1\nDMSOFT_MIRROR_UUID=" + "a" * 32,
            "ACTION=change\nDM_UUID=LVM-x",
        ),
        _plug,
    ),
    "size": Reader(("64K", "1 MiB", "10G", "4096"), lambda text: format_size(parse_size(text))),
    "duration": Reader(("200ms", "5m", "7 d", "30"), lambda text: format_duration(parse_duration(text))),
    "rate": Reader(("50M", "50%", "max", "adaptive", "4K/s"), lambda text: str(Limit.parse(text))),
    "name": Reader(("archive", "a.b+c-d"), lambda text: check_name(text).encode("ascii")),
    "label": Reader(("one", "a.b+c"), lambda text: check_label(text).encode("ascii")),
    "ways": Reader(
        ("one=/dev/sdb\none=writecache:/dev/sdc\none=7d", "/dev/sdb\ndelay:20\n1d", "/dev/x\ndirect"), _ways
    ),
}


def fuzz(count: int, seed: int) -> Tally:
    """Try ``count`` texts. Raises `AssertionError`, or what a reader raised that is none of our errors."""
    chance, tally = random.Random(seed), Tally()
    for reader in _READERS.values():
        for good in reader.good:
            reader.read(good)
    while tally.count < count:
        kind = chance.choice(list(_READERS))
        reader = _READERS[kind]
        good = chance.choice(reader.good)
        text = (odd.word((good,), chance) if chance.random() < 0.3 else odd.text_of(good, chance)).replace("\0", "0")
        with tally.bounded(f"seed {seed}, try {tally.count}, {kind}: {text[:300]!r}"):
            try:
                reader.read(text)
                end = "read"
            except CommandError:
                raise
            except DmsoftError as err:
                assert err.exit_code in (2, 6), err
                end = err.code
            except reader.raises as err:
                end = type(err).__name__
        tally.ends[f"{kind} {end}"] += 1
    return tally
