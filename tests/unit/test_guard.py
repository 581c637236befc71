# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard's protocol over real pipes: when it acts, in which order, and that it does not give up."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from dmsoft.dm.device import Device
from dmsoft.dm.helper import Helper
from dmsoft.errors import DeviceError
from dmsoft.mirror.guard import Guard, resume_watched

ROOT = Path(__file__).resolve().parents[2]
BOTH = ["top", "lower"]
IN_ORDER = ["load lower", "resume lower", "resume top"]
Process = subprocess.Popen[bytes]


@contextmanager
def keeping(
    suspended: list[str], lock: Path | None = None, *, way_out: int | None = None, starved: bool = False,
    raid: str | None = None, **fails: dict[str, int],
) -> Iterator[Process]:  # fmt: skip
    """The loop in a process of its own, its pipes in our hands."""
    asked = {"suspended": suspended, "fails": fails, "way_out": way_out, "starved": starved, "raid": raid} | (
        {"lock": str(lock)} if lock else {}
    )
    argv = [sys.executable, "-m", "tests.guard_stand_in", json.dumps(asked)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: Process, text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text.encode())


def end(process: Process) -> tuple[list[str], bytes]:
    """The caller is gone: (what was done, what was answered)."""
    out, err = process.communicate(timeout=60)
    lines = err.decode().splitlines()
    assert lines[-1] == "end", err.decode()
    return lines[:-1], out


def test_an_armed_guard_resumes_bottom_up_when_its_caller_dies() -> None:
    with keeping(BOTH) as process:
        tell(process, "arm\n")
        assert end(process) == (IN_ORDER, b"tripped\n")


def test_only_the_top_is_suspended_in_most_barriers() -> None:
    with keeping(["top"]) as process:
        tell(process, "arm\n")
        assert end(process) == (["resume top"], b"tripped\n")


@pytest.mark.parametrize("held", [True, False])
def test_a_dead_callers_guard_leaves_the_next_command_alone(held: bool, tmp_path: Path) -> None:
    """It watches for a while; what is suspended under the lock meanwhile is suspended on purpose."""
    lock = tmp_path / "lock"
    lock.touch()
    with lock.open() as file, keeping(BOTH, lock) as process:
        if held:
            fcntl.flock(file, fcntl.LOCK_EX)
        tell(process, "arm\n")
        assert end(process) == (([], b"") if held else (IN_ORDER, b"tripped\n"))


def test_a_hung_caller_is_overtaken_although_it_holds_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    with lock.open() as file, keeping(BOTH, lock) as process:
        fcntl.flock(file, fcntl.LOCK_EX)
        tell(process, "arm\ndeadline 0.05\n")
        assert process.stdout is not None
        assert process.stdout.read(8) == b"tripped\n"
        assert end(process)[0] == IN_ORDER


@pytest.mark.parametrize("said", ["", "arm\ndisarm\n", "arm\ndeadline 60\ndisarm\n", "arm", "disarm\n"])
def test_a_guard_that_is_not_armed_touches_nothing(said: str) -> None:
    with keeping(BOTH) as process:
        tell(process, said)
        assert end(process) == ([], b"")


def test_nothing_suspended_is_nothing_to_do() -> None:
    with keeping([]) as process:
        tell(process, "arm\ndeadline 0\n")
        time.sleep(1.5)
        assert end(process) == ([], b"")


def test_the_deadline_acts_while_the_caller_lives() -> None:
    with keeping(BOTH) as process:
        tell(process, "arm\ndeadline 0.05\n")
        assert process.stdout is not None
        assert process.stdout.read(8) == b"tripped\n"
        assert process.poll() is None
        assert end(process) == (IN_ORDER, b"")


def test_a_barrier_that_ends_in_time_does_not_trip() -> None:
    with keeping(BOTH) as process:
        tell(process, "arm\ndeadline 20\n")
        time.sleep(0.2)
        tell(process, "disarm\n")
        assert end(process) == ([], b"")


def test_each_barrier_is_armed_anew() -> None:
    with keeping(["top"]) as process:
        tell(process, "arm\ndeadline 30\ndisarm\narm\n")
        assert end(process) == (["resume top"], b"tripped\n")


def test_words_may_come_in_pieces() -> None:
    with keeping(["top"]) as process:
        for piece in ("a", "rm\ndead", "line ", "0.", "05", "\n"):
            tell(process, piece)
            time.sleep(0.1)
        assert process.stdout is not None
        assert process.stdout.read(8) == b"tripped\n"
        assert end(process) == (["resume top"], b"")


def test_a_lower_that_will_not_load_does_not_keep_the_top_suspended() -> None:
    with keeping(BOTH, lower={"load": 2}) as process:
        tell(process, "arm\n")
        done, said = end(process)
        assert done[:2] == ["load lower failed", "resume top"] and said == b"tripped\n"
        assert done[2:] == ["load lower failed", "load lower", "resume lower"]


def test_a_guard_that_gets_no_memory_tries_again() -> None:
    """Whoever has it all may be gone by then: it is what its caller was ended for, maybe."""
    with keeping(BOTH, starved=True, top={"resume": 1}, lower={"load": 1}) as process:
        tell(process, "arm\n")
        done, said = end(process)
        assert done[0] == "load lower failed" and said == b"tripped\n"
        assert done[-1] == "resume top" and "resume lower" in done


@pytest.mark.parametrize("step", ["deadline 0.05\n", ""])
def test_a_resume_that_fails_is_tried_again(step: str) -> None:
    """At the deadline as well: its caller may hang for ever, so nobody else would do it."""
    with keeping(["top"], top={"resume": 3}) as process:
        tell(process, f"arm\n{step}")
        time.sleep(3 if step else 0)
        assert process.stdin is not None
        done, said = end(process)
        assert done == ["resume top failed"] * 3 + ["resume top"]
        assert said.startswith(b"tripped\n")


def test_a_hung_caller_gets_its_top_back_though_the_first_try_failed() -> None:
    with keeping(BOTH, top={"resume": 1}, lower={"load": 1}) as process:
        tell(process, "arm\ndeadline 0\n")
        assert process.stderr is not None
        lines = [process.stderr.readline().decode().strip() for _ in range(5)]
        assert process.poll() is None
        assert lines == ["load lower failed", "resume top failed", *IN_ORDER]


def test_a_lower_that_never_gets_its_linear_table_is_resumed_as_it_was() -> None:
    """The primary's disk is gone; whoever waits gets an error."""
    with keeping(BOTH, lower={"load": 1000}, raid="raid1 2 DA 8/8 frozen 0 0 -") as process:
        tell(process, "arm\n")
        done, said = end(process)
        assert done[-3:] == ["load lower failed", "clear lower", "resume lower"] and said == b"tripped\n"
        assert "resume top" in done


@pytest.mark.parametrize("health", ["AD", "DAD", "Aa"])
def test_a_raid1_that_has_left_the_primary_out_stays(health: str) -> None:
    """The plain linear table would bring the primary's older copy back."""
    with keeping(BOTH, raid=f"raid1 {len(health)} {health} 8/8 idle 0 0 -") as process:
        tell(process, "arm\n")
        assert end(process) == (["clear lower", "hold out lower", "resume lower", "resume top"], b"tripped\n")


def test_a_raid1_that_cannot_be_understood_stays() -> None:
    with keeping(BOTH, raid="raid1 something new") as process:
        tell(process, "arm\n")
        assert end(process) == (["clear lower", "resume lower", "resume top"], b"tripped\n")


@pytest.mark.parametrize("health", ["AA", "DA", "aa", "aA"])
def test_any_other_raid1_becomes_linear(health: str) -> None:
    with keeping(BOTH, raid=f"raid1 {len(health)} {health} 8/8 idle 0 0 -") as process:
        tell(process, "arm\n")
        assert end(process) == (IN_ORDER, b"tripped\n")


@pytest.mark.parametrize("step", ["deadline 0.05\n", ""])
def test_a_top_that_cannot_be_resumed_takes_the_way_out(step: str) -> None:
    """Its era metadata failed while it stood still: no resume will ever work."""
    with keeping(BOTH, way_out=0, top={"resume": 1000}) as process:
        tell(process, f"arm\n{step}")
        time.sleep(1 if step else 0)
        done, said = end(process)
        assert done == ["load lower", "resume lower", "resume top failed", "way out"]
        assert said.startswith(b"tripped\n")


def test_a_way_out_that_fails_is_tried_again() -> None:
    """The header could not be written, so the top may not leave the era: it stays suspended until it can."""
    with keeping(["top"], way_out=2, top={"resume": 1000}) as process:
        tell(process, "arm\n")
        done, _ = end(process)
        assert done == ["resume top failed", "way out failed"] * 2 + ["resume top failed", "way out"]


def test_a_way_out_that_never_works_is_taken_at_any_cost() -> None:
    """The primary takes no writes: whoever uses the mirror gets an error, as from a bare disk, and waits no longer."""
    with keeping(["top"], way_out=1000, top={"resume": 1000}) as process:
        tell(process, "arm\n")
        done, _ = end(process)
        assert done[:2] == ["resume top failed", "way out failed"] and done[-1] == "way out at any cost"


def test_a_top_that_resumes_never_takes_it() -> None:
    with keeping(["top"], way_out=0) as process:
        tell(process, "arm\n")
        assert end(process)[0] == ["resume top"]


def test_a_guard_that_is_gone_keeps_nobody_from_resuming() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    guard = Guard.__new__(Guard)
    guard._in, guard._helper = writer, None
    with pytest.raises(DeviceError, match="is gone"):
        guard.arm()  # nothing is suspended yet
    with pytest.raises(DeviceError, match="is gone"):
        guard.deadline(2.0)  # nobody would end a barrier in time
    guard.hurry(2.0)
    guard.disarm()
    os.close(writer)


class LateHelper:
    """Its last resume made the device live before the ioctl returned; nobody has collected that since."""

    busy = True

    def start(self, *_: object) -> str:
        assert not self.busy, "the helper is at work"
        self.busy = True
        return "cookie"

    def wait(self, seconds: float) -> bool:
        self.busy = False
        return True


class LiveDevice:
    suspended = inactive_table = False

    def info(self) -> "LiveDevice":
        return self


def test_an_earlier_resume_that_returned_late_keeps_no_other_from_being_made() -> None:
    assert resume_watched(cast(Helper, LateHelper()), cast(Device, LiveDevice())) == "cookie"
