# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel's targets and their tools do wrong, each shown with plain dmsetup, and beside it that dmsoft stays
right. Where kernels differ the test says what was measured on which; a kernel that is mended fails it and is noted.

Those of an era that is loaded, asked or suspended in the wrong order are in `tests.vm.test_dm`, of buffered readers and
discards in `tests.vm.test_era_live`, of metadata that are full or fail in `tests.vm.test_untracked`; which writes wait
for a slow leg, and that a checkpoint waits for none, is measured by the doctor, `tests.vm.test_doctor`.
"""

import errno
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmsoft.doctor import io
from dmsoft.doctor.bed import Bed
from dmsoft.units import KIB, MIB
from tests.vm.rig import NAME, Rig, dmsoft, read, sh, wait_until, write

pytest_plugins = ("tests.vm.rig",)
pytestmark = pytest.mark.core

LENGTH = 4 * MIB
SECTORS = LENGTH // 512
SIZE = 24 * MIB
BEHIND = ("--mode", "write-behind")
HELD_MS, LONG_MS = 1500, 15000


@pytest.fixture
def bed() -> Iterator[Bed]:
    sh("modprobe", "loop")
    for module in ("dm_raid", "dm_era", "dm_delay", "dm_flakey", "dm_writecache"):
        sh("modprobe", module)
    with Bed() as made:
        yield made


def dm(name: str, target: str, length: int = SECTORS) -> str:
    """A device made by dmsetup; the guest is cleaned of it after the test."""
    sh("dmsetup", "create", name, data=f"0 {length} {target}\n".encode())
    return f"/dev/mapper/{name}"


def swap(name: str, target: str, length: int = SECTORS) -> None:
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", name)
    sh("dmsetup", "load", name, data=f"0 {length} {target}\n".encode())
    sh("dmsetup", "resume", name)


def path(number: str) -> str:
    return f"/dev/{Path(os.readlink(f'/sys/dev/block/{number}')).name}"


def raid(*legs: tuple[str, str], options: str = "nosync region_size 2048") -> str:
    words = options.split()
    parts = " ".join(f"{meta} {data}" for meta, data in legs)
    return f"raid raid1 {len(words) + 1} 0 {options} {len(legs)} {parts}"


def held_back(disk: str, ms: int = HELD_MS) -> str:
    """A target that holds writes back, and neither reads nor flushes."""
    return f"delay {disk} 0 0 {disk} 0 {ms} {disk} 0 0"


def let_go(name: str) -> None:
    """A delay that is suspended passes on what it holds at once."""
    sh("dmsetup", "suspend", "--nolockfs", name)
    sh("dmsetup", "resume", name)


def health(name: str) -> str:
    return sh("dmsetup", "status", name).split()[5]


def action(name: str) -> str:
    return sh("dmsetup", "status", name).split()[7]


def differ(one: str, two: str) -> bool:
    return read(one, 0, LENGTH) != read(two, 0, LENGTH)


def page(device: str, offset: int, fill: bytes, length: int = 4 * KIB) -> None:
    """Write without a flush."""
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as buffer:
            buffer[:] = fill * length
            assert os.pwritev(fd, [buffer], offset) == length
    finally:
        os.close(fd)


def fsync_error(device: str) -> int:
    """The errno of an fsync, 0 for none."""
    fd = os.open(device, os.O_RDWR)
    try:
        os.fsync(fd)
    except OSError as err:
        return err.errno or -1
    finally:
        os.close(fd)
    return 0


def test_a_checkpoint_is_no_barrier(rig: Rig) -> None:
    """A write may land long after the era that it is marked in (shown by the doctor); a resync has to wait for it."""
    rig.create("--metadata", rig.disks["c0"], primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    data = rig.primary_header().regions["data"]
    first, count = data.offset // 512, data.length // 512
    disk, rest = rig.disks["p0"], SIZE // 512 - first - count
    lines = [f"0 {first} linear {disk} 0"]
    lines += [f"{first} {count} delay {disk} {first} 0 {disk} {first} {HELD_MS} {disk} {first} 0"]
    lines += [f"{first + count} {rest} linear {disk} {first + count}"] if rest else []
    name = Path(rig.primary).name
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", name)
    sh("dmsetup", "load", name, data="\n".join(lines).encode())
    sh("dmsetup", "resume", name)
    landing = io.Started(lambda: page(rig.top, 3 * MIB, b"n"))
    wait_until("the write is on its way", lambda: sh("dmsetup", "status", name).split("delay")[1].split()[1] != "0")
    # The plain checkpoint comes back while it still is.
    sh("dmsetup", "message", NAME, "0", "checkpoint")
    assert not landing.done
    rig.resync()
    landing.wait()
    rig.superset("one")
    rig.equal()


def test_raid1_never_resyncs_after_a_crash(bed: Bed, rig: Rig) -> None:
    """Its bitmap says that regions are dirty, and it says AA; for dmsoft they are stale until they are copied."""
    slots, fast, slow = [bed.ram(256 * KIB) for _ in range(2)], bed.ram(LENGTH), bed.ram(LENGTH)
    leg = dm("trap-leg", held_back(slow, LONG_MS))
    top = dm("trap", raid((slots[0], leg), (slots[1], fast),
                          options="nosync region_size 2048 write_mostly 0 max_write_behind 64"))  # fmt: skip
    for block in range(3):
        page(top, block * MIB, b"n")
    # What a power cut would leave now, as the disks have it.
    copies = [bed.ram(256 * KIB) for _ in range(2)], bed.ram(LENGTH), bed.ram(LENGTH)
    for source, target in zip((*slots, slow, fast), (*copies[0], *copies[1:]), strict=True):
        size = int(sh("blockdev", "--getsize64", path(source)))
        write(path(target), 0, read(path(source), 0, size))
    dm("trap-after", raid((copies[0][0], copies[1]), (copies[0][1], copies[2]), options="region_size 2048"))
    wait_until("it is idle", lambda: action("trap-after") == "idle")
    time.sleep(1)
    assert (health("trap-after"), action("trap-after")) == ("AA", "idle")
    assert differ(path(copies[1]), path(copies[2]))
    let_go("trap-leg")

    rig.create(*BEHIND, "--via", f"delay:{HELD_MS}", primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    page(rig.top, 3 * MIB, b"n")
    assert health("m-lower") == "AA" and rig.stale("one") == {3}
    rig.superset("one")


@pytest.mark.kernel_log(allow="I/O error")
def test_md_swallows_flush_errors(bed: Bed, rig: Rig) -> None:
    """Whichever leg fails to flush, the raid1 says that all is durable. dmsoft flushes the disks themselves."""
    slots, disks = [bed.ram(256 * KIB) for _ in range(2)], [bed.ram(LENGTH) for _ in range(2)]
    legs = [dm(f"trap-leg{index}", f"linear {disk} 0") for index, disk in enumerate(disks)]
    top = dm("trap", raid((slots[0], legs[0]), (slots[1], legs[1])))
    swap("trap-leg0", f"flakey {disks[0]} 0 0 600 1 error_writes")
    assert (fsync_error(legs[0]), fsync_error(top)) == (errno.EIO, 0)
    assert health("trap") == "AA"

    rig.create(*BEHIND, primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    before = rig.secondary_header("one").sync.era
    rig.behave(rig.secondaries["one"], "s0", "error_writes")
    assert (fsync_error(rig.secondaries["one"]), fsync_error(rig.top)) == (errno.EIO, 0)
    assert dmsoft("resync", NAME).code == 6
    assert rig.secondary_header("one").sync.era == before
    rig.behave(rig.secondaries["one"], "s0")
    rig.resync()
