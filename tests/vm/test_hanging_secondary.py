# SPDX-License-Identifier: GPL-2.0-or-later
"""A secondary that does not answer any more: what the primary notices of it in either mode, and the way out."""

import mmap
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmsoft.units import KIB, MIB
from tests.vm.faulty import mirror
from tests.vm.rig import NAME, Rig, dmsoft, ok, suspended, table, wait_until

pytest_plugins = ("tests.vm.rig",)
pytestmark = [pytest.mark.slow, pytest.mark.kernel_log(allow="I/O error|nbd")]

SIZE = 40 * MIB
BEHIND = ("--mode", "write-behind")


def apart(*words: str) -> subprocess.Popen[str]:
    """A verb in a process of its own, as it may never come back."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "dmsoft.cli", *words], stdout=pipe, stderr=pipe, text=True)


def latencies(path: str, count: int = 40) -> list[float]:
    """Seconds of writes of 4 KiB, each with an fsync."""
    fd, found = os.open(path, os.O_RDWR | os.O_DIRECT), []
    try:
        with mmap.mmap(-1, 4 * KIB) as buffer:
            for at in range(count):
                start = time.monotonic()
                os.pwritev(fd, [buffer], at * 64 * KIB)
                os.fsync(fd)
                found.append(time.monotonic() - start)
    finally:
        os.close(fd)
    return found


def said(what: str, seconds: list[float]) -> None:
    print(f"{what}: median {1000 * statistics.median(seconds):.1f} ms, longest {1000 * max(seconds):.1f} ms")


def test_in_the_middle_of_a_resync(rig: Rig, tmp_path: Path) -> None:
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
        looking = time.monotonic()
        view = dmsoft("status", NAME, "--json").json["mirrors"][0]
        print(f"status took {time.monotonic() - looking:.1f} s: {view['secondaries'][0]['state']}, {view['run']}")
        assert view["active"]
        process.send_signal(signal.SIGKILL)
        time.sleep(1)
        again = dmsoft("resync", NAME, "two")
        assert again.code == 10 and "busy" in again.err
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
