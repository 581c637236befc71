# SPDX-License-Identifier: GPL-2.0-or-later
"""What all VM tests take for granted: disks, their cables, a clean guest, and a kernel log that is read."""

import mmap
import os
import subprocess
from pathlib import Path

import pytest

from dmsoft.units import MIB
from tests.harness.guestkit import DISKS, Disks, Inventory, KernelLog, clean


def sh(*argv: str | Path) -> None:
    subprocess.run([str(word) for word in argv], check=True, timeout=60)


def say(message: str) -> None:
    Path("/dev/kmsg").write_text(message + "\n")


@pytest.mark.smoke
def test_every_disk_is_there_with_its_size_and_empty(disks: Disks) -> None:
    for serial in DISKS:
        descriptor = os.open(disks[serial], os.O_RDONLY)
        try:
            assert os.lseek(descriptor, 0, os.SEEK_END) == disks.size(serial)
            assert not any(os.pread(descriptor, MIB, 0))
        finally:
            os.close(descriptor)


@pytest.mark.smoke
@pytest.mark.parametrize("module", ["dm_era", "dm_raid", "dm_delay", "dm_writecache", "dm_flakey", "ext4", "xfs"])
def test_modules_load(module: str) -> None:
    sh("modprobe", module)
    assert Path("/sys/module", module).exists()


@pytest.mark.smoke
def test_a_disk_keeps_its_data_over_an_unplug(disks: Disks) -> None:
    data = os.urandom(MIB)
    disks["s0"].write_bytes(data)
    os.sync()
    disks.unplug("s0")
    assert not disks["s0"].exists()
    with pytest.raises(OSError):
        disks["s0"].open("rb")
    disks.replug("s0")
    with disks["s0"].open("rb") as disk:
        assert disk.read(MIB) == data


@pytest.mark.kernel_log(allow="I/O error")
def test_an_unplug_in_use_fails_what_is_open(disks: Disks) -> None:
    descriptor = os.open(disks["s1"], os.O_RDWR | os.O_DIRECT)
    try:
        disks.unplug("s1")
        with pytest.raises(OSError):
            os.pwritev(descriptor, [mmap.mmap(-1, 4096)], 0)
    finally:
        os.close(descriptor)
    disks.replug("s1")


def test_disks_are_wiped_between_tests(disks: Disks) -> None:
    sh("mkfs.ext4", "-q", disks["small0"])
    disks.reset()
    assert disks["small0"].read_bytes() == bytes(disks.size("small0"))


def test_what_a_test_leaves_is_removed(disks: Disks, tmp_path: Path) -> None:
    before = Inventory.now()
    length = disks.size("s0") // 512
    sh("dmsetup", "create", "lower", "--table", f"0 {length} linear {disks['s0']} 0")
    sh("dmsetup", "create", "upper", "--table", f"0 {length} linear /dev/mapper/lower 0")
    sh("mkfs.ext4", "-q", "/dev/mapper/upper")
    sh("mount", "/dev/mapper/upper", tmp_path)
    (tmp_path / "file").write_bytes(bytes(MIB))
    sh("dmsetup", "suspend", "--nolockfs", "lower")
    assert clean(before) == []
    assert Inventory.now() == before


@pytest.mark.kernel_log(allow="nothing really")
@pytest.mark.parametrize(
    "message",
    [
        "WARNING: CPU: 0 PID: 1 at drivers/md/dm.c:1 nothing really",
        "BUG: kernel NULL pointer dereference, nothing really",
        "INFO: task dmsetup:1 blocked for more than 60 seconds. nothing really",
    ],
)
def test_the_kernel_log_names_faults(kernel_log: KernelLog, message: str) -> None:
    say(message)
    assert kernel_log.faults() == [message]
    assert kernel_log.faults(allow="nothing really") == []


def test_the_kernel_log_starts_with_the_test(kernel_log: KernelLog) -> None:
    say("an ordinary message")
    assert kernel_log.lines()[-1] == "an ordinary message"
    assert not any("nothing really" in line for line in kernel_log.lines())
    assert kernel_log.faults() == []
