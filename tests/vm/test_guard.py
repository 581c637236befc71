# SPDX-License-Identifier: GPL-2.0-or-later
"""What is suspended is resumed, whatever becomes of the process that suspended it."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dmsoft.member import gate
from dmsoft.mirror.names import Names
from dmsoft.monitor import work
from dmsoft.monitor.facts import Action, Pulse
from dmsoft.units import MIB
from tests.vm.owner import start
from tests.vm.rig import NAME, Rig, ok, ours, refused, suspended, table, wait_until

pytest_plugins = ("tests.vm.rig",)


def small(rig: Rig, *options: str) -> None:
    """A mirror of 40 MiB disks: nothing here depends on size."""
    rig.create(*options, primary=rig.cut("p0", 40 * MIB), one=rig.cut("s0", 40 * MIB))


@pytest.mark.parametrize("what", [*(pytest.param(what, marks=pytest.mark.long) for what in ("top", "lower")), "both"])
def test_a_killed_owner_leaves_nothing_suspended(rig: Rig, what: str) -> None:
    small(rig)
    process = start(what, 600)
    assert suspended()
    if what != "lower":  # in a barrier nothing can be read any more, if what one needs lies on the mirror
        assert "/numpy/" in Path(f"/proc/{process.pid}/maps").read_text()
    killed = time.monotonic()
    process.send_signal(signal.SIGKILL)
    wait_until("nothing is suspended", lambda: not suspended())
    # The promise is one second; an emulated CPU that others use as well gets more, a guard that waits for 600 s none.
    assert time.monotonic() - killed < 10
    process.wait()
    rig.write(3)
    rig.resync()
    rig.equal()


@pytest.mark.parametrize("what", [pytest.param("lower", marks=pytest.mark.long), "both"])
def test_start_resumes_what_owner_and_guard_left(rig: Rig, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are dead. Nothing asks the suspended top anything, which would hang for good, nor runs a program, which may
    lie on it."""
    small(rig)
    process = start(what, 600)
    (guard,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[:1]
    os.kill(int(guard), signal.SIGKILL)
    process.kill()
    process.wait()
    assert sorted(suspended()) == [*([NAME] if what == "both" else []), f"{NAME}-lower"]
    names = Names(NAME, rig.primary_header().mirror_uuid)
    assert work.do(Action("pulse"), names, threading.Event()) == Pulse("suspended")
    assert [alert["code"] for alert in rig.status(code=9)["alerts"]] == ["left-suspended"]
    assert "suspended" in refused(10, "resync", NAME)
    programs, run = list[list[str]](), subprocess.run

    def running(argv: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        programs.extend([argv] * bool(suspended()))
        return run(argv, **options)

    monkeypatch.setattr(subprocess, "run", running)
    monkeypatch.setattr(gate, "_empty", {})  # as in a new process
    assert ok("start", NAME, "--json").json["already"] is True
    assert not programs
    assert not suspended() and rig.status()["alerts"] == []
    rig.write(3)
    rig.resync()
    rig.equal()


@pytest.mark.parametrize(("what", "deadline"), [("silent", 600), pytest.param("both", 2, marks=pytest.mark.slow)])
def test_a_hung_owner_is_overtaken(rig: Rig, what: str, deadline: float) -> None:
    """At its deadline; and after a while if it tells none, as one that was killed in its suspend, while a thread of it
    that a disk keeps in the kernel holds its files open."""
    small(rig)
    process = start(what, deadline)
    try:
        wait_until("nothing is suspended", lambda: not suspended(), seconds=30)
        assert table(f"{NAME}-lower").startswith("linear ")
        rig.write(3)
    finally:
        process.kill()
        process.wait()
    rig.resync()
    rig.equal()


@pytest.mark.slow
@pytest.mark.parametrize("what", [pytest.param("lower", marks=pytest.mark.long), "both"])
def test_a_raid1_left_suspended_becomes_linear(rig: Rig, what: str) -> None:
    """Whatever was coupled to the primary when its owner died is not trusted any more."""
    small(rig, "--mode", "write-behind")
    rig.resync()
    rig.write(4)
    process = start(what, 600)
    process.kill()
    process.wait()
    wait_until("nothing is suspended", lambda: not suspended())
    wait_until("the lower is linear", lambda: table(f"{NAME}-lower").startswith("linear "))
    rig.write(5)
    assert rig.stale("one") >= {4, 5}
    rig.superset("one")
    rig.resync()
    ok("stop", NAME)
    rig.equal()
    assert not ours()
