# SPDX-License-Identifier: GPL-2.0-or-later
"""A secondary that does not answer any more: what the primary notices of it in either mode, and the way out."""

import contextlib
import mmap
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dmsoft.inventory.sysfs import BlockDevice
from dmsoft.member.header import Scan
from dmsoft.mirror import locate, patience
from dmsoft.mirror.plan import MAX_WRITE_BEHIND
from dmsoft.units import KIB, MIB
from tests.vm.faulty import mirror
from tests.vm.monitor_bed import current, monitoring
from tests.vm.rig import NAME, Rig, dmsoft, ok, sh, suspended, table, wait_until

pytest_plugins = ("tests.vm.rig",)
pytestmark = [pytest.mark.slow, pytest.mark.kernel_log(allow="I/O error|nbd")]

SIZE = 32 * MIB
BEHIND = ("--mode", "write-behind")


def apart(*words: str) -> subprocess.Popen[str]:
    """A verb in a process of its own, as it may never come back."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "dmsoft.cli", *words], stdout=pipe, stderr=pipe, text=True)


def latencies(path: str, count: int = 40, *, flush: bool = True) -> list[float]:
    """Seconds of writes of 4 KiB, each with an fsync."""
    fd, found = os.open(path, os.O_RDWR | os.O_DIRECT), []
    try:
        with mmap.mmap(-1, 4 * KIB) as buffer:
            for at in range(count):
                start = time.monotonic()
                os.pwritev(fd, [buffer], at * 64 * KIB)
                if flush:
                    os.fsync(fd)
                found.append(time.monotonic() - start)
    finally:
        os.close(fd)
    return found


def said(what: str, seconds: list[float]) -> None:
    print(f"{what}: median {1000 * statistics.median(seconds):.1f} ms, longest {1000 * max(seconds):.1f} ms")


def test_in_the_middle_of_a_resync(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but that command waits. It is there until the disk answers or is unplugged, and holds the mirror; what it
    has written by then counts as little as if it had failed."""
    with mirror(rig, tmp_path, SIZE, two=rig.cut("s1", SIZE)) as disk:
        rig.write(*range(10, 20))
        latencies(rig.top)
        said("before", latencies(rig.top))
        disk.hang("write", after=10)
        process = apart("resync", NAME)
        wait_until("it hangs", lambda: disk.waiting, 60)
        assert not suspended()
        during = latencies(rig.top)
        said("meanwhile", during)
        assert max(during) < 5
        monkeypatch.setattr(patience.patiently, "__defaults__", (5.0,))
        looking = time.monotonic()
        view = dmsoft("status", NAME, "--json").json["mirrors"][0]
        print(f"status took {time.monotonic() - looking:.1f} s: {view['secondaries'][0]['state']}, {view['run']}")
        assert view["active"]
        asked, scan = list[str](), locate._scan

        def watched(device: BlockDevice) -> Scan:
            asked.append(device.path)
            return scan(device)

        monkeypatch.setattr(locate, "_scan", watched)
        again = dmsoft("status", NAME, "--json").json["mirrors"][0]
        assert [each["state"] for each in again["secondaries"]] == [each["state"] for each in view["secondaries"]]
        assert str(rig.disks["small0"].resolve()) in asked and str(Path(rig.secondaries["one"]).resolve()) not in asked
        process.send_signal(signal.SIGKILL)
        time.sleep(1)
        ran = dmsoft("resync", NAME, "two")
        assert ran.code == 10 and "busy" in ran.err
        disk.unplug()
        process.wait(60)
        wait_until("the mirror is free", lambda: dmsoft("resync", NAME, "two").code == 0, 60)
        rig.equal("two")
        disk.mend()
        rig.secondaries["one"] = disk.plug(1)
        rig.superset("one")
        assert rig.resync()["kind"] == "incremental"
        rig.equal()
        said("after", latencies(rig.top))


@pytest.mark.long
def test_inside_the_barrier_of_an_attach(rig: Rig, tmp_path: Path) -> None:
    """The one place where a secondary is written while the mirror stands still. The command sits in the kernel, so its
    guard lets the writers go on at its deadline, and nothing is coupled."""
    with mirror(rig, tmp_path, SIZE, *BEHIND) as disk:
        ok("stop", NAME)
        ok("start", NAME)
        rig.write(3, 4)
        disk.hang("write", when=lambda: bool(suspended()))
        with rig.writing(span=MIB) as writer:
            process = apart("resync", NAME)
            wait_until("it hangs", lambda: disk.waiting, 60)
            start = time.monotonic()
            wait_until("writers go on", lambda: not suspended(), 30)
            print(f"stood still for {time.monotonic() - start:.1f} s")
            rig.write(5)
        assert writer.longest < 30
        assert table("m-lower").startswith("linear ")
        disk.mend()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 6 and "guard" in err, err
        rig.superset("one")
        assert {3, 4, 5} <= rig.stale("one")
        rig.resync()
        assert rig.states() == {"one": "attached"}
        ok("stop", NAME)
        rig.equal()


def test_while_it_is_written_behind(rig: Rig, tmp_path: Path) -> None:
    """Every flush waits for it, as md sends it to all, and so do writes as soon as too many are under way. No layer of
    the kernel can fail what the disk has been given; when the disk is unplugged or fails it, all go on without it."""
    with mirror(rig, tmp_path, SIZE, *BEHIND) as disk:
        assert rig.states() == {"one": "attached"}
        disk.hang("write")
        plain = latencies(rig.top, flush=False)
        said("written while it hangs", plain)
        assert max(plain) < 5
        done: list[int] = []

        def more() -> None:
            fd = os.open(rig.top, os.O_RDWR | os.O_DIRECT)
            with mmap.mmap(-1, 4 * KIB) as buffer:
                for at in range(MAX_WRITE_BEHIND):
                    os.pwritev(fd, [buffer], at * 16 * KIB + 8 * KIB)
                    done.append(at)
            os.fsync(fd)
            done.append(-1)
            os.close(fd)

        flushed: list[float] = []
        flush = threading.Thread(target=lambda: flushed.append(_fsync(rig.top)))
        flush.start()
        writer = threading.Thread(target=more)
        writer.start()
        time.sleep(5)
        print(f"{len(done)} more writes of {MAX_WRITE_BEHIND}, flushed: {flushed}")
        assert not flushed and -1 not in done
        start = time.monotonic()
        disk.unplug()
        flush.join(60)
        writer.join(60)
        assert flushed and done[-1] == -1
        print(f"all went on {time.monotonic() - start:.1f} s after it was unplugged; the flush took {flushed[0]:.1f} s")
        disk.mend()
        rig.secondaries["one"] = disk.plug(1)
        rig.superset("one")
        rig.resync()
        assert rig.states() == {"one": "attached"}
        ok("stop", NAME)
        rig.equal()


def test_a_leg_that_somebody_suspended(rig: Rig) -> None:
    """To dmsoft it is a disk that does not answer, and stays coupled."""
    rig.create(*BEHIND, primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    sh("dmsetup", "suspend", "m-one")
    try:
        plain = latencies(rig.top, flush=False)
        said("written while it is suspended", plain)
        assert max(plain) < 5
        assert rig.states() == {"one": "stale"}
        ran = dmsoft("resync", NAME)
        assert ran.code == 10 and "does not answer" in ran.err, ran
        assert table("m-lower").startswith("raid ") and suspended() == ["m-one"]
    finally:
        sh("dmsetup", "resume", "m-one")
    rig.superset("one")
    rig.resync()
    assert rig.states() == {"one": "attached"}
    ok("stop", NAME)
    rig.equal()


def _fsync(path: str) -> float:
    fd = os.open(path, os.O_RDWR)
    start = time.monotonic()
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return time.monotonic() - start


def test_the_daemon_is_killed_while_the_mirror_stands_still(rig: Rig, tmp_path: Path) -> None:
    """And with it the process that held it still: the guard is alone."""
    with mirror(rig, tmp_path, SIZE, *BEHIND) as disk:
        ok("stop", NAME)
        ok("start", NAME)
        rig.write(3, 4, 5)
        disk.pause = 0.3  # the daemon couples the secondary, and each write inside the barrier takes a while
        with monitoring(tmp_path) as monitor:
            wait_until("it stands still", suspended, 60)
            found = sh("pgrep", "-P", str(monitor.process.pid)).split()
            for pid in (monitor.process.pid, *map(int, found)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            start = time.monotonic()
            wait_until("writers go on", lambda: not suspended(), 30)
            print(f"resumed after {time.monotonic() - start:.2f} s")
            disk.mend()
            monitor.process.wait()
            rig.write(15)
            rig.superset("one")
            monitor.start()
            current("one", state="attached")
        ok("stop", NAME)
        rig.equal()
