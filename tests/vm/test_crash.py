# SPDX-License-Identifier: GPL-2.0-or-later
"""A create that dies: nothing suspended, nothing of it in the way, and it can be repeated or destroyed."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from dmsoft.dm.task import Task
from dmsoft.member import files
from dmsoft.member.disk import FdDisk
from dmsoft.units import MIB
from tests.harness.guestkit import settle
from tests.vm.rig import NAME, Rig, dmsoft, ok, ours, suspended

pytest_plugins = ("tests.vm.rig",)

SIZE = 24 * MIB
_PARTS = 64


def _dying(words: tuple[str, ...], point: int) -> int:
    """Run a verb in a process that kills itself at its ``point``-th step: an ioctl, a write, a flush or a new file.

    Returns how many steps it took if it lived, else 0.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def step(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return step

        for holder, name in ((Task, "run"), (FdDisk, "pwrite"), (FdDisk, "flush"), (files, "create")):
            setattr(holder, name, counted(getattr(holder, name)))
        code = dmsoft(*words).code
        os.write(writer, str(count).encode())
        os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    said = os.read(reader, 16)
    os.close(reader)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return int(said or 0)


@pytest.mark.long
def test_a_create_that_is_killed(rig: Rig) -> None:
    """At several of its steps: then destroyed, or repeated on the same disks."""
    disks = [rig.cut(serial, SIZE) for serial in ("p0", "s0", "c0")]
    words = ("create", NAME, "--primary", disks[0], "--secondary", f"one={disks[1]}", "--mode", "write-behind",
             "--via", f"writecache:{disks[2]}", "--yes")  # fmt: skip
    steps = _dying(words, 0)
    assert steps > 50
    ok("destroy", NAME, "--yes")
    points = [rig.chance.randrange(first, first + steps // 5) for first in range(1, steps, max(steps // 5, 1))]
    for number, point in enumerate(points):
        _dying(words, point)
        settle()
        assert not suspended(), f"killed at step {point} of {steps}"
        view = dmsoft("status", "--json")
        assert view.code in (0, 9), view
        if number % 2:
            # A create so late that it is complete is a mirror, and is not made again by itself.
            if dmsoft(*words).code:
                ok("destroy", NAME, "--yes")
                ok(*words)
            assert dmsoft("status", NAME, "--json").json["mirrors"][0]["active"]
        if dmsoft("destroy", NAME, "--yes").code:
            # Killed before the first header: there is nothing to destroy, and nothing in the way.
            assert dmsoft("status", "--json").json["mirrors"] == []
        assert ours() == [], f"killed at step {point} of {steps}"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["drawn", *(pytest.param(part, marks=pytest.mark.long) for part in range(_PARTS))])
def test_a_create_killed_at_every_step(rig: Rig, part: int | str) -> None:
    """Each part takes one step of so many."""
    first = rig.chance.randrange(_PARTS) if isinstance(part, str) else part
    disks = [rig.cut(serial, SIZE) for serial in ("p0", "s0")]
    words = ("create", NAME, "--primary", disks[0], "--secondary", f"one={disks[1]}", "--yes")
    steps = _dying(words, 0)
    ok("destroy", NAME, "--yes")
    for point in range(1 + first, steps + 1, _PARTS):
        _dying(words, point)
        settle()
        assert not suspended(), point
        if dmsoft(*words).code:
            ok("destroy", NAME, "--yes")
            ok(*words)
        ok("destroy", NAME, "--yes")
        assert ours() == [], point
