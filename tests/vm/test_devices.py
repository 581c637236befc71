# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft devices`` on a machine with everything on it, blivet included: what it says, and that it changes nothing."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmsoft.inventory import blivet
from dmsoft.inventory.candidates import ROLES, Candidate
from dmsoft.inventory.udev import Udev
from dmsoft.member import survey as surveys
from dmsoft.units import MIB
from tests.harness.guestkit import Disks, settle
from tests.vm import test_gate as gate
from tests.vm.test_gate import SIZE, MakeLoop, contents, linear, make_member, mapped, sh

loops, modules = gate.loops, gate.modules


class Zoo:
    """Devices by what is the matter with them. blivet looks at disks, and at no loop device."""

    def __init__(self, disks: Disks, loops: MakeLoop, tmp_path: Path) -> None:
        self.ext4, self.loose_gpt, self.md = (str(disks[serial].resolve()) for serial in ("s0", "c0", "small0"))
        self.free, self.mounted, self.swap, self.member = (loops() for _ in range(4))
        self.readonly, self.lvm, self.under_dm, self.claimed = (loops() for _ in range(4))
        self.small = loops(size=12 * MIB)
        sh("mkfs.ext4", "-q", "-L", "photos", self.ext4)
        sh("mkfs.ext4", "-q", self.mounted)
        sh("mkswap", self.swap)
        make_member(self.member)
        # The backup is not where the disk ends: parted would put that right.
        front, back = gate.gpt(SIZE)
        gate.write(self.loose_gpt, 0, front)
        gate.write(self.loose_gpt, SIZE - len(back), back)
        sh("blockdev", "--setro", self.readonly)
        self.where = tmp_path / "mount"
        self.where.mkdir()

    def all(self) -> list[str]:
        return [value for value in vars(self).values() if isinstance(value, str)]


@pytest.fixture
def zoo(disks: Disks, loops: MakeLoop, tmp_path: Path) -> Iterator[Zoo]:
    made = Zoo(disks, loops, tmp_path)
    sh("vgcreate", "-q", "zoovg", made.lvm)
    sh("lvcreate", "-q", "-Wn", "-Zn", "-L", "4M", "-n", "data", "zoovg")
    sh("mdadm", "--create", "/dev/md/zoo", "--run", "--level=1", "--raid-devices=2", made.md, "missing")
    sh("mount", "-o", "ro", made.mounted, made.where)
    sh("swapon", made.swap)
    claim = os.open(made.claimed, os.O_RDONLY | os.O_EXCL)
    try:
        with mapped("zoo-linear", linear(made.under_dm, length=17 * MIB // 512), "CRYPT-PLAIN-zoo"):
            settle()
            yield made
    finally:
        os.close(claim)
        sh("swapoff", made.swap)
        sh("umount", made.where)
        settle()
        sh("mdadm", "--stop", "/dev/md/zoo")
        sh("vgremove", "-ff", "-y", "zoovg")


def by_path(found: surveys.Survey) -> dict[str, Candidate]:
    return {device.path: device for device in found.devices}


def reason(device: Candidate) -> tuple[str, str]:
    """The one reason why the device can be nothing at all."""
    assert not device.usable
    (only,) = {verdict.reasons for verdict in device.roles.values()}
    (one,) = only
    return one.code, one.text


def test_survey(zoo: Zoo) -> None:
    """Every device has its reason, blivet has seen the machine, and no byte, array or uevent has come of it."""
    before = {path: contents(path) for path in zoo.all()}
    arrays, seqnum = Path("/proc/mdstat").read_text(), Path("/sys/kernel/uevent_seqnum").read_text()
    found = by_path(surveys.survey())
    assert Path("/sys/kernel/uevent_seqnum").read_text() == seqnum
    assert Path("/proc/mdstat").read_text() == arrays
    assert all(contents(path) == before[path] for path in before)

    assert all(found[zoo.free].roles[role].usable for role in ROLES)
    assert reason(found[zoo.mounted]) == ("gate-mounted", f"mounted at {zoo.where}")
    assert reason(found[zoo.swap]) == ("gate-swap", "in use as swap")
    assert reason(found[zoo.ext4]) == ("gate-signature", 'holds ext4 "photos"')
    assert reason(found[zoo.member]) == ("gate-member", "the metadata of the mirror photos")
    assert reason(found[zoo.readonly]) == ("gate-readonly", "read-only")
    assert reason(found[zoo.lvm])[1].endswith("(zoovg-data)")
    assert reason(found[zoo.md])[1].startswith("held by md")
    assert reason(found[zoo.under_dm])[1].endswith("(zoo-linear)")
    assert reason(found[zoo.claimed]) == ("gate-held", "in use by something that the kernel does not name")
    assert reason(found[zoo.loose_gpt])[1].startswith("holds a partition table gpt")
    assert [role for role in ROLES if found[zoo.small].roles[role].usable] == ["cache"]
    assert found["/dev/mapper/zoo-linear"].usable
    assert [path for path in before if any(v.with_force for v in found[path].roles.values())] == [
        zoo.ext4,
        zoo.loose_gpt,
    ]
    # blivet has been there too, and said what udev knows.
    assert "it holds ext4" in found[zoo.ext4].blivet


def test_json_without_blivet(loops: MakeLoop, tmp_path: Path) -> None:
    """Where blivet cannot be imported the verb works and says so; standard output is one object."""
    import blivet as installed

    path = loops()
    where = Path(installed.__file__).parent
    sh("mount", "--bind", tmp_path, where)
    try:
        done = subprocess.run(["dmsoft", "devices", "--json"], capture_output=True, check=True, timeout=300)
    finally:
        sh("umount", where)
    assert done.stderr == b""
    found = json.loads(done.stdout)
    assert found["schema"] == 1
    assert any("blivet cannot be used" in sentence for sentence in found["missing"])
    (device,) = [each for each in found["devices"] if each["path"] == path]
    assert device["size_bytes"] == SIZE and device["roles"]["secondary"]["usable"] is True


def test_blivet_without_udevd_says_so(disks: Disks, tmp_path: Path) -> None:
    advice = blivet.advice(Udev(control=tmp_path / "none"))
    assert disks["s0"].resolve().name in advice.reasons
    assert any("udevd is not running" in sentence for sentence in advice.missing)
