# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices against the running kernel: every method, every refusal, and what the kernel does where we refuse."""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dmsoft.dm import memory
from dmsoft.dm.device import Device, devices, require_targets, target_versions
from dmsoft.dm.failures import (
    CookieTimeoutError,
    DmBusyError,
    DmIoctlError,
    DmNotFoundError,
    EraOrderError,
    NameTakenError,
    SuspendedError,
)
from dmsoft.dm.helper import Helper, Operation
from dmsoft.dm.status import DelayStatus, EraStatus, RaidStatus, WriteCacheStatus, parse_status
from dmsoft.dm.targets import (
    Delay,
    DelayClass,
    Era,
    Error,
    Linear,
    Raid1,
    RaidLeg,
    Table,
    Target,
    WriteCache,
    WriteCacheOptions,
    Zero,
    single,
)
from dmsoft.dm.task import prepare
from dmsoft.errors import KernelError
from dmsoft.units import MIB, SECTOR, Sectors
from tests.harness.guestkit import settle

BLOCK = 64 * 1024
SIZE = 16 * MIB
LENGTH = Sectors(SIZE // SECTOR)

Make = Callable[..., Device]


def sh(*argv: str | Path, timeout: float = 60) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, check=False, timeout=timeout)
    assert done.returncode == 0, f"{argv}: {done.stdout.decode()} {done.stderr.decode()}"
    return done.stdout.decode()


def leftover_cookies() -> list[str]:
    return [line for line in sh("dmsetup", "udevcookies").splitlines() if line.startswith("0x")]


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    sh("modprobe", "loop")
    # Tests that ran before may have killed a command while it waited for udev: its semaphore stays, as
    # libdevmapper's do.
    sh("dmsetup", "udevcomplete_all", "--yes")
    require_targets(["era", "raid", "writecache", "delay", "zero"])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Makes loop devices full of zeroes; gives their ``MAJ:MIN``."""
    with ExitStack() as stack:

        def make(size: int = SIZE) -> str:
            path = tmp_path / f"disk{len(list(tmp_path.iterdir()))}"
            with path.open("wb") as new:
                new.truncate(size)
            node = sh("losetup", "--find", "--show", path).strip()
            stack.callback(sh, "losetup", "--detach", node)
            number = os.stat(node).st_rdev
            return f"{os.major(number)}:{os.minor(number)}"

        yield make


@pytest.fixture
def make(disk: Callable[..., str]) -> Iterator[Make]:
    """Makes devices, with a table or without; all are resumed and removed at the end, and no cookie may be left."""
    made: list[Device] = []

    def build(name: str, table: Table | None = None, *, inner: bool = False) -> Device:
        device = Device(name, f"DMSOFT-test-{name}", inner=inner)
        device.create()
        made.append(device)
        if table is not None:
            device.load(table)
            device.resume()
        return device

    yield build
    for device in reversed(made):
        info = device.info()
        if info is not None and info.suspended and info.live_table:
            device.resume()
    for device in reversed(made):
        if device.info() is not None:
            device.remove()
    assert leftover_cookies() == []
    assert devices() == []


def zero(length: int = LENGTH) -> Table:
    return single(Sectors(length), Zero())


@pytest.fixture
def era_parts(disk: Callable[..., str]) -> tuple[Target, Table]:
    target = Era(disk(4 * MIB), disk(), Sectors(BLOCK // SECTOR))
    return target, single(LENGTH, target)


@pytest.fixture
def era(make: Make, era_parts: tuple[Target, Table]) -> Device:
    return make("t-era", era_parts[1])


def era_status(device: Device) -> EraStatus:
    (line,) = device.status()
    status = parse_status(line.kind, line.text)
    assert isinstance(status, EraStatus)
    return status


@contextmanager
def buffer(size: int, fill: int = 0) -> Iterator[mmap.mmap]:
    """Page-aligned memory, as O_DIRECT wants it."""
    memory_map = mmap.mmap(-1, size)
    memory_map.write(bytes([fill]) * size)
    yield memory_map


def write(path: Path, offset: int, size: int, fill: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_SYNC)
    try:
        with buffer(size, fill) as data:
            assert os.pwrite(fd, data, offset) == size
    finally:
        os.close(fd)


def read(path: Path, offset: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with buffer(size) as data:
            assert os.preadv(fd, [data], offset) == size
            return bytes(data)
    finally:
        os.close(fd)


def node(number: str) -> Path:
    return Path("/dev/block", number)


@pytest.mark.smoke
def test_a_device_from_create_to_remove(make: Make, disk: Callable[..., str]) -> None:
    below = disk()
    device = make("t-life")
    info = device.require()
    assert (info.name, info.uuid) == ("t-life", "DMSOFT-test-t-life")
    assert not info.live_table and not info.inactive_table and not info.suspended

    table = single(LENGTH, Linear(below, Sectors(0)))
    device.load(table)
    assert device.require().inactive_table
    device.clear()
    assert not device.require().inactive_table

    device.load(table)
    device.resume()
    info = device.require()
    assert info.live_table and not info.suspended and not info.inactive_table
    assert device.path.is_block_device()
    assert os.stat(device.path).st_rdev == os.makedev(*map(int, device.number.split(":")))
    assert [line.segment() for line in device.table()] == list(table)
    assert [(line.start, line.length, line.kind) for line in device.status()] == [(0, LENGTH, "linear")]
    assert device.deps() == (tuple(map(int, below.split(":"))),)
    write(device.path, 4096, 4096, 7)
    assert read(node(below), 4096, 4096) == bytes([7]) * 4096

    device.suspend()
    assert device.require().suspended
    device.suspend()
    assert [line.segment() for line in device.table()] == list(table)
    cookie = device.resume(wait=False)
    assert cookie is not None and cookie.value
    assert not device.require().suspended
    cookie.wait()
    assert [found.uuid for found in devices()] == [device.uuid]
    device.remove()
    assert device.info() is None
    assert not os.path.lexists(device.path)


def test_tables_may_have_many_segments_and_be_read_only(make: Make, disk: Callable[..., str]) -> None:
    below = disk()
    table = single(Sectors(8), Linear(below, Sectors(64)))
    table += tuple(type(table[0])(Sectors(8 * at), Sectors(8), Error()) for at in range(1, 400))
    device = make("t-many")
    device.load(table, read_only=True)
    device.resume()
    assert tuple(line.segment() for line in device.table()) == table
    assert device.require().read_only
    with pytest.raises(OSError, match=r".") as raised:
        write(device.path, 0, 4096, 1)
    assert raised.value.errno in (errno.EPERM, errno.EROFS, errno.EACCES)


def printed(make: Make, name: str, length: int, target: Target) -> Target:
    device = make(name, single(Sectors(length), target))
    (line,) = device.table()
    shown = line.segment().target
    device.remove()
    return shown


@pytest.mark.smoke
def test_the_kernel_prints_what_we_parse(make: Make, disk: Callable[..., str]) -> None:
    a, b, c, d = (disk() for _ in range(4))
    third = DelayClass(c, Sectors(24), 3)
    targets: list[Target] = [
        Linear(a, Sectors(8)),
        Error(),
        Zero(),
        Delay(a, Sectors(8), 1),
        Delay(a, Sectors(8), 1, DelayClass(b, Sectors(16), 2)),
        Delay(a, Sectors(8), 1, DelayClass(b, Sectors(16), 2), third),
        Era(a, b, Sectors(128)),
    ]
    for target in targets:
        assert printed(make, "t-print", 8192, target) == target

    legs = (RaidLeg(a, b), RaidLeg(c, d))
    wipe(a, c)
    raid = Raid1(legs, write_mostly=(1,), max_write_behind=256, region=Sectors(2048), sync="nosync")
    shown = printed(make, "t-print", LENGTH, raid)
    assert isinstance(shown, Raid1)
    assert shown.max_write_behind == 128
    assert raid.shows_as(shown)
    missing = Raid1((RaidLeg(a, b), RaidLeg(None, None)), region=Sectors(2048))
    assert missing.shows_as(printed(make, "t-print", LENGTH, missing))

    every = WriteCacheOptions(
        start_sector=8,
        high_watermark=60,
        low_watermark=40,
        writeback_jobs=16,
        autocommit_blocks=32,
        autocommit_time=500,
        max_age=1000,
        cleaner=True,
        metadata_only=True,
        pause_writeback=100,
    )
    if target_versions()["writecache"] < (1, 6, 0):
        every = replace(every, metadata_only=False, pause_writeback=None)
    for options in (WriteCacheOptions(), every):
        wipe(b)
        target = WriteCache(a, b, 512, options)
        assert printed(make, "t-print", LENGTH, target) == target


def wipe(*numbers: str) -> None:
    for number in numbers:
        write(node(number), 0, MIB, 0)


@pytest.mark.smoke
def test_every_status_is_parsed(make: Make, disk: Callable[..., str], era: Device) -> None:
    a, b, c, d = (disk() for _ in range(4))
    assert era_status(era).era == 1
    assert era_status(era).metadata_block_sectors == 8
    raid = Raid1((RaidLeg(a, b), RaidLeg(c, d)), sync="nosync", region=Sectors(2048))
    (line,) = make("t-raid", single(LENGTH, raid)).status()
    status = RaidStatus.parse(line.text)
    assert (status.health, status.done, status.total) == ("AA", LENGTH, LENGTH)
    (line,) = make("t-delay", single(LENGTH, Delay(disk(), Sectors(0), 60))).status()
    assert DelayStatus.parse(line.text) == DelayStatus(0, 0, 0)
    cache = make("t-cache", single(LENGTH, WriteCache(disk(), disk(), 4096)))
    (line,) = cache.status()
    before = WriteCacheStatus.parse(line.text)
    assert before.error == 0 and before.dirty == 0 and before.blocks > 0
    write(cache.path, 0, 4096, 1)
    (line,) = cache.status()
    after = WriteCacheStatus.parse(line.text)
    assert after.dirty == 1
    # The counters came with target version 1.6.
    assert after.writes == (1 if target_versions()["writecache"] >= (1, 6, 0) else None)


def test_targets_and_their_versions() -> None:
    versions = target_versions()
    assert versions["era"] >= (1, 0, 0)
    assert versions["raid"] >= (1, 15, 0)
    with pytest.raises(KernelError, match="no-such-target"):
        require_targets(["linear", "no-such-target"])


def test_only_root(make: Make) -> None:
    pid = os.fork()
    if pid == 0:
        from dmsoft.errors import NotRootError

        os.setuid(65534)
        try:
            prepare()
        except NotRootError:
            os._exit(3)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


@pytest.mark.smoke
def test_a_foreign_device_of_the_same_name_is_never_touched(make: Make) -> None:
    table = "0 2048 zero"
    foreign = {"t-name": None, "t-name-2": "DMSOFT-test-t-name-2x", "t-nam": "LVM-DMSOFT-test-t-name"}
    for name, uuid in foreign.items():
        sh("dmsetup", "create", name, *(["--uuid", uuid] if uuid else []), "--table", table)
    before = sh("dmsetup", "info", "-c", "--noheadings")
    try:
        device = Device("t-name", "DMSOFT-test-t-name")
        with pytest.raises(NameTakenError):
            device.create()
        assert device.info() is None
        calls: list[Callable[[], object]] = [
            lambda: device.number,
            lambda: device.load(zero()),
            device.clear,
            device.suspend,
            device.resume,
            device.status,
            device.table,
            device.deps,
            device.remove,
            lambda: device.message("x"),
            lambda: device.wait_event(0, 0),
        ]
        for call in calls:
            with pytest.raises(DmNotFoundError):
                call()
        ours = make("t-nearby", zero())
        ours.remove()
        assert sh("dmsetup", "info", "-c", "--noheadings") == before
        assert [info.name for info in devices()] == ["t-name-2"]
    finally:
        for name in foreign:
            sh("dmsetup", "remove", name)
    assert leftover_cookies() == []


def test_create_refuses_a_uuid_in_use(make: Make) -> None:
    make("t-first")
    with pytest.raises(NameTakenError):
        Device("t-second", "DMSOFT-test-t-first").create()
    with pytest.raises(NameTakenError, match="already exists"):
        Device("t-first", "DMSOFT-test-t-first").create()


def test_failures_have_the_errno_and_leave_no_cookie(make: Make, disk: Callable[..., str]) -> None:
    # Without any table there is nothing to resume, and some kernels do not say so: nothing happens.
    device = make("t-fail")
    with suppress(DmIoctlError):
        device.resume()
    assert not device.require().live_table
    metadata = disk(4 * MIB)
    write(node(metadata), 0, 4096, 0xA5)
    with pytest.raises(DmIoctlError, match="could not load t-fail") as loaded:
        device.load(single(LENGTH, Era(metadata, disk(), Sectors(128))))
    assert loaded.value.errno == errno.ENOTBLK
    assert leftover_cookies() == []
    device.load(zero())
    device.resume()
    with pytest.raises(DmIoctlError) as sent:
        device.message("nonsense")
    assert sent.value.errno == errno.EINVAL


@pytest.mark.smoke
def test_a_failed_resume_leaves_the_device_suspended_and_says_so(make: Make, disk: Callable[..., str]) -> None:
    """Metadata with room for a superblock and not for the era array: the kernel finds out when it resumes."""
    device = make("t-small")
    device.load(single(LENGTH, Era(disk(8 * 4096), disk(), Sectors(8))))
    with pytest.raises(DmIoctlError, match="could not resume t-small: No space left") as resumed:
        device.resume()
    assert resumed.value.errno == errno.ENOSPC and resumed.value.hint
    assert device.require().suspended
    assert leftover_cookies() == []
    device.remove()


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.smoke
def test_a_suspended_era_is_asked_nothing(era: Device) -> None:
    era.suspend()
    with pytest.raises(SuspendedError):
        era.status()
    with pytest.raises(SuspendedError):
        era.message("checkpoint")
    assert [line.kind for line in era.table()] == ["era"]
    assert era.wait_event(era.require().event_nr, 0.1) is None

    # What is spared: the question sleeps where no signal reaches, until somebody resumes the device.
    asked = subprocess.Popen(["dmsetup", "status", era.name], stdout=subprocess.DEVNULL)
    time.sleep(2)
    asked.kill()
    time.sleep(1)
    assert asked.poll() is None and process_state(asked.pid) == "D"
    era.resume()
    asked.wait(timeout=30)
    assert era_status(era).era == 2


@pytest.mark.smoke
def test_an_era_table_is_loaded_only_while_suspended(make: Make, era: Device, era_parts: tuple[Target, Table]) -> None:
    target, table = era_parts
    with pytest.raises(EraOrderError):
        era.load(table)
    assert not era.require().inactive_table

    # What is spared: the new instance reads the metadata before the old one wrote its last.
    era.message("checkpoint")
    line = f"0 {LENGTH} era {target.params()}"
    sh("dmsetup", "load", era.name, "--table", line)
    with pytest.raises(EraOrderError):
        era.status()
    with pytest.raises(EraOrderError):
        era.message("checkpoint")
    for _ in range(3):
        sh("dmsetup", "message", era.name, "0", "checkpoint")
    before = EraStatus.parse(sh("dmsetup", "status", era.name).split("era", 1)[1])
    era.suspend()
    era.resume()
    assert era_status(era).era < before.era

    # In the right order the era goes on.
    era.message("checkpoint")
    before = era_status(era)
    era.suspend()
    era.load(table)
    era.resume()
    assert era_status(era).era == before.era + 1


@pytest.mark.smoke
def test_the_inactive_era_table_is_never_asked(era: Device, era_parts: tuple[Target, Table]) -> None:
    target, _ = era_parts
    assert isinstance(target, Era)
    sh("dmsetup", "load", era.name, "--table", f"0 {LENGTH} era {target.params()}")
    write(era.path, 2 * BLOCK, 4096, 9)
    sh("dmsetup", "message", era.name, "0", "checkpoint")
    live = read(node(target.metadata), 0, 4096)
    assert [line.kind for line in era.table(inactive=True)] == ["era"]
    with pytest.raises(EraOrderError):
        era.status()
    assert read(node(target.metadata), 0, 4096) == live

    # What is spared: the question alone writes the second instance's old superblock over the live one.
    sh("dmsetup", "status", "--inactive", era.name)
    assert read(node(target.metadata), 0, 4096) != live
    era.clear()


def test_other_targets_may_be_preloaded_over_an_era(era: Device) -> None:
    era.load(zero())
    assert era.require().inactive_table
    era.suspend()
    era.resume()
    assert [line.kind for line in era.table()] == ["zero"]


def failing_raid(make: Make, disk: Callable[..., str]) -> tuple[Device, Device]:
    """A raid1 and its leg 1, which a table of `Error` can be loaded into."""
    leg = make("t-leg", single(LENGTH, Linear(disk(), Sectors(0))), inner=True)
    legs = (RaidLeg(disk(), disk()), RaidLeg(disk(), leg.number))
    return make("t-raid", single(LENGTH, Raid1(legs, sync="nosync", region=Sectors(2048)))), leg


@pytest.mark.smoke
def test_an_event_is_waited_for(make: Make, disk: Callable[..., str]) -> None:
    raid, leg = failing_raid(make, disk)
    settled = raid.require().event_nr
    while (new := raid.wait_event(settled, 0.5)) is not None:
        settled = new
    started = time.monotonic()
    assert raid.wait_event(settled, 0.3) is None
    assert 0.3 <= time.monotonic() - started < 3

    found: list[int | None] = []
    waiter = threading.Thread(target=lambda: found.append(raid.wait_event(settled, 30)))
    waiter.start()
    leg.suspend()
    leg.load(single(LENGTH, Error()))
    leg.resume()
    assert waiter.is_alive()
    write(raid.path, 0, 4096, 1)
    waiter.join(30)
    assert found and found[0] is not None and found[0] > settled
    (line,) = raid.status()
    assert RaidStatus.parse(line.text).health == "AD"


def test_removal_ends_the_wait_for_an_event(make: Make) -> None:
    device = make("t-gone", zero())
    timer = threading.Timer(0.5, device.remove)
    timer.start()
    with pytest.raises(DmNotFoundError):
        device.wait_event(device.require().event_nr, 30)
    timer.join()


@pytest.mark.smoke
def test_remove_waits_a_little_and_then_says_who_holds_it(make: Make) -> None:
    below = make("t-below", zero())
    fd = os.open(below.path, os.O_RDONLY)
    threading.Timer(0.7, os.close, [fd]).start()
    below.remove(timeout=10)
    assert below.info() is None

    below = make("t-below", zero())
    above = make("t-above", single(LENGTH, Linear(below.number, Sectors(0))))
    with pytest.raises(DmBusyError, match="in use by t-above"):
        below.remove(timeout=0.2)
    fd = os.open(above.path, os.O_RDONLY)
    with pytest.raises(DmBusyError, match="1 times open"):
        above.remove(timeout=0.2)
    above.remove(timeout=0.2, deferred=True)
    assert above.info() is not None
    os.close(fd)
    deadline = time.monotonic() + 10
    while above.info() is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert above.info() is None
    assert leftover_cookies() == []


def properties(device: Device) -> dict[str, str]:
    settle()
    lines = sh("udevadm", "info", "--query=property", f"--name={device.path}").splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.smoke
def test_udev_looks_into_the_top_and_not_into_inner_layers(make: Make, disk: Callable[..., str]) -> None:
    below = disk()
    sh("mkfs.ext4", "-q", "-E", "nodiscard", node(below).resolve())
    table = single(LENGTH, Linear(below, Sectors(0)))
    inner = make("t-inner", table, inner=True)
    found = properties(inner)
    assert found["DM_UDEV_DISABLE_DISK_RULES_FLAG"] == "1"
    assert found["DM_UDEV_DISABLE_OTHER_RULES_FLAG"] == "1"
    assert "ID_FS_TYPE" not in found
    # A change that udev makes up itself, as after a close of a writer, must not undo it.
    sh("udevadm", "trigger", "--settle", "--action=change", inner.path.resolve())
    assert "ID_FS_TYPE" not in properties(inner)
    inner.suspend()
    inner.resume()
    assert "ID_FS_TYPE" not in properties(inner)
    inner.remove()
    assert properties(make("t-top", table))["ID_FS_TYPE"] == "ext4"


def test_udev_that_does_not_answer_costs_a_timeout_and_no_semaphore(make: Make) -> None:
    device = make("t-udev", zero())
    device.suspend()
    sh("udevadm", "control", "--stop-exec-queue")
    try:
        started = time.monotonic()
        with pytest.raises(CookieTimeoutError):
            device.resume(timeout=1)
        assert time.monotonic() - started < 3
        assert not device.require().suspended
        assert leftover_cookies() == []
    finally:
        sh("udevadm", "control", "--start-exec-queue")
        settle()


WITHOUT_UDEV = """
import os
from dmsoft.dm.device import Device
from dmsoft.dm.libdevmapper import udev_runs
from dmsoft.dm.targets import Zero, single
device = Device("t-bare", "DMSOFT-test-t-bare")
device.create()
device.load(single(2048, Zero()))
device.resume()
assert not udev_runs()
number = os.stat(device.path).st_rdev
assert f"{os.major(number)}:{os.minor(number)}" == device.number
device.suspend()
assert device.resume(wait=False).value == 0
device.remove()
assert not os.path.lexists(device.path)
"""


def test_without_udev_the_library_makes_the_nodes() -> None:
    env = {**os.environ, "DM_DISABLE_UDEV": "1"}
    subprocess.run([sys.executable, "-c", WITHOUT_UDEV], env=env, check=True, timeout=60)
    assert leftover_cookies() == []


def slow_writes(number: str, delay_ms: int) -> Table:
    return single(LENGTH, Delay(number, Sectors(0), 0, DelayClass(number, Sectors(0), delay_ms)))


def cycle(name: str, times: int, errors: list[BaseException]) -> None:
    try:
        for at in range(times):
            device = Device(f"{name}{at % 3}", f"DMSOFT-test-{name}{at % 3}")
            device.create()
            device.load(zero())
            device.resume()
            assert [line.kind for line in device.status()] == ["zero"]
            assert device.path.is_block_device()
            device.suspend()
            device.resume()
            device.remove()
    except BaseException as err:
        errors.append(err)


def test_threads_work_beside_a_blocked_suspend(make: Make, disk: Callable[..., str]) -> None:
    """Two threads cycle devices while a third sits in a suspend that waits for a slow write of an era."""
    slow = make("t-slow", slow_writes(disk(), 4000), inner=True)
    top = make("t-top", single(LENGTH, Era(disk(4 * MIB), slow.number, Sectors(128))))
    writer = threading.Thread(target=write, args=(top.path, 0, 4096, 1))
    writer.start()
    time.sleep(0.5)
    blocked = threading.Thread(target=top.suspend)
    started = time.monotonic()
    blocked.start()
    errors: list[BaseException] = []
    threads = [threading.Thread(target=cycle, args=(f"t-cycle{at}-", 12, errors)) for at in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert blocked.is_alive()
    assert top.require().live_table
    blocked.join()
    assert time.monotonic() - started > 1
    for thread in threads:
        thread.join()
    top.resume()
    writer.join()
    assert errors == []


@pytest.mark.smoke
def test_the_helper_sits_in_the_ioctl_for_us(make: Make, disk: Callable[..., str], tmp_path: Path) -> None:
    slow = make("t-slow", slow_writes(disk(), 3000), inner=True)
    top = make("t-top", single(LENGTH, Linear(slow.number, Sectors(0))))
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with Helper([slow, top]) as helper:
        os.close(lock)
        other = os.open(tmp_path / "lock", os.O_RDWR)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        writer = threading.Thread(target=write, args=(top.path, 0, 4096, 1))
        writer.start()
        time.sleep(0.5)
        helper.start(Operation.SUSPEND, top)
        assert not helper.wait(0.5)
        with pytest.raises(ValueError, match="at work"):
            helper.start(Operation.RESUME, slow)
        assert helper.wait(30)
        assert top.require().suspended
        cookie = helper.start(Operation.RESUME, top)
        assert helper.wait(30)
        assert not top.require().suspended
        cookie.wait()
        writer.join()
        top.remove()
        helper.start(Operation.RESUME, top)
        with pytest.raises(DmNotFoundError):
            helper.wait(30)
        helper.start(Operation.SUSPEND_NOLOCKFS, slow)
        assert helper.wait(30)
        slow.resume()
    assert not Path(f"/proc/{helper.pid}").exists()
    assert leftover_cookies() == []


def faults() -> tuple[int, int]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_majflt, usage.ru_minflt


@pytest.mark.smoke
def test_a_barrier_makes_no_major_fault_and_starts_no_process(era: Device, era_parts: tuple[Target, Table]) -> None:
    prepare()
    clone = ctypes.CDLL(None)
    with memory.locked():
        before, children = faults(), resource.getrusage(resource.RUSAGE_CHILDREN)
        era.suspend(lockfs=False)
        era.load(era_parts[1])
        cookie = era.resume(wait=False)
        after = faults()
        assert resource.getrusage(resource.RUSAGE_CHILDREN) == children
        assert clone.prctl(memory.PR_GET_IO_FLUSHER, 0, 0, 0, 0) == 1
    assert clone.prctl(memory.PR_GET_IO_FLUSHER, 0, 0, 0, 0) == 0
    assert cookie is not None
    cookie.wait()
    print(f"faults in a barrier: major {after[0] - before[0]}, minor {after[1] - before[1]}")
    assert after[0] == before[0]
