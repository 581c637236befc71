# SPDX-License-Identifier: GPL-2.0-or-later
"""What must not make the primary wait: a secondary's backlog or hang, and devices that are none of ours."""

import mmap
import os
import threading
import time
from typing import Self

import pytest

from dmsoft.units import KIB, MIB
from tests.vm.rig import NAME, Rig, dmsoft, ok, sh, table

pytest_plugins = ("tests.vm.rig",)

MODE = ("--mode", "write-behind")


class Apart(threading.Thread):
    """Writes 4 KiB to one MiB after the other until it is stopped, or at the end, as md lets writes that touch wait for
    each other; ``longest`` in seconds. None may fail."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self._rig, self._end, self.longest = rig, threading.Event(), 0.0
        self._error: OSError | None = None

    def run(self) -> None:
        fd = os.open(self._rig.top, os.O_WRONLY | os.O_DIRECT)
        try:
            for block in range(os.lseek(fd, 0, os.SEEK_END) // MIB):  # more would be more than md sends behind
                with mmap.mmap(-1, 4 * KIB) as buffer:
                    buffer[:] = os.urandom(4 * KIB)
                    start = time.monotonic()
                    os.pwritev(fd, [buffer], block * MIB)
                    self.longest = max(self.longest, time.monotonic() - start)
                if self._end.wait(0.1):
                    break
        except OSError as err:
            self._error = err
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        self.start()
        time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()
        assert self._error is None, self._error


@pytest.mark.slow
def test_a_delay_leg_lets_go_when_it_is_uncoupled(rig: Rig) -> None:
    """A raid1 is suspended when all is written that it holds back; here that would take 20 seconds."""
    rig.create(*MODE, "--via", "delay:20000", one=rig.disks["s0"], two=rig.disks["s1"])
    rig.resync()
    with Apart(rig) as writer:
        again = rig.resync("one")
    assert {part["label"] for part in again["secondaries"]} == {"one", "two"}
    assert writer.longest < 10, "a write waited for what was still to be written behind"
    assert rig.states() == {"one": "attached", "two": "attached"}
    assert {table(f"m-{label}").split()[-1] for label in ("one", "two")} == {"0"}  # flushes are not delayed
    with Apart(rig) as writer:
        ok("remove", NAME, "one", "--yes")
    assert writer.longest < 10
    del rig.secondaries["one"]
    rig.superset("two")
    assert rig.resync()["kind"] == "incremental"
    assert rig.states() == {"two": "attached"}
    ok("stop", NAME)
    rig.equal()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("via", "words"),
    [
        pytest.param("direct", ("resync", NAME), marks=pytest.mark.long),
        ("delay:300", ("remove", NAME, "one", "--yes")),
    ],
)
def test_a_leg_that_hangs_stays_coupled(rig: Rig, via: str, words: tuple[str, ...]) -> None:
    """To uncouple it would stop the primary for as long as the disk hangs; and to have a delay let go of what it holds,
    the command. The leg of another stays as it is, too."""
    others = {} if via == "direct" else {"another": rig.disks["s1"]}
    size = sh("blockdev", "--getsz", rig.disks["s0"]).strip()
    slow = f"0 {size} delay {rig.disks['s0']} 0 0 {rig.disks['s0']} 0 "
    sh("dmsetup", "create", "slow", "--table", slow + "0")
    # A delay does not count what it holds as under way, a disk does.
    sh("dmsetup", "create", "disk", "--table", f"0 {size} linear /dev/mapper/slow 0")
    try:
        rig.create(*MODE, "--via", via, **others, one="/dev/mapper/disk")
        rig.resync()
        _reload("slow", slow + "600000")
        with Apart(rig) as writer:
            ran = dmsoft(*words)
        assert ran.code == 10 and "does not answer" in ran.err
        assert writer.longest < 10
        assert rig.states() == dict.fromkeys([*others, "one"], "attached")
        assert all(table(f"m-{label}").startswith("delay ") for label in others)
        _reload("slow", slow + "0")
        rig.resync()
        ok("stop", NAME)
        rig.equal()
    finally:
        _reload("slow", slow + "0")
        dmsoft("stop", NAME)
        sh("dmsetup", "remove", "--retry", "disk")
        sh("dmsetup", "remove", "--retry", "slow")


def _reload(name: str, text: str) -> None:
    sh("dmsetup", "reload", name, "--table", text)
    sh("dmsetup", "suspend", "--nolockfs", name)
    sh("dmsetup", "resume", name)


def test_a_device_of_others_that_is_suspended(rig: Rig) -> None:
    """Its header could be read only when it is resumed, which may be never."""
    rig.create(one=rig.disks["s0"])
    rig.resync()
    sh("dmsetup", "create", "foreign", "--table", f"0 2048 linear {rig.disks['s2']} 0")
    try:
        sh("dmsetup", "suspend", "foreign")
        assert '"current"' in sh("dmsoft", "status", "--json")  # in a process of its own, as it could not be ended
    finally:
        sh("dmsetup", "resume", "foreign")
        sh("dmsetup", "remove", "--retry", "foreign")
