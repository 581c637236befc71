# SPDX-License-Identifier: GPL-2.0-or-later
"""Command lines of odd and of good words, on a mirror and its disks: whatever is asked for, every command ends as it
should, and leaves nothing suspended."""

import random
import time
from collections import Counter

import pytest

from tests.fuzz.commands import command_line, ended, shown
from tests.vm.rig import NAME, Rig, dmsoft, sectors_written, suspended

pytest_plugins = ("tests.vm.rig",)

SECONDS = 90
SERIALS = ("p0", "s0", "s1", "c0", "small0")


@pytest.mark.slow
def test_whatever_is_typed(rig: Rig, seed: int) -> None:
    chance, ends = random.Random(seed), Counter[int]()
    disks = {serial: str(rig.disks[serial]) for serial in SERIALS}
    words = (
        NAME, NAME, NAME, "one", "two", f"one={disks['s0']}", f"two={disks['s1']}", *disks.values(),
        f"/dev/mapper/{NAME}", f"/dev/mapper/{NAME}-lower", f"writecache:{disks['c0']}",
        f"two=writecache:{disks['c0']}", "delay:2", "direct", "1M", "64K", "5m", "50%",
    )  # fmt: skip
    rig.create(one=disks["s0"], two=disks["s1"])
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        line = command_line(chance, words, chance.choice([0.0, 0.2, 0.7]))
        if {"doctor", "devices"} & set(line) and chance.random() < 0.9:
            continue  # seconds each
        if chance.random() < 0.3 and "--yes" not in line:
            line.append("--yes")
        before = {path: sectors_written(path) for path in disks.values()}
        try:
            status = ended(line)
        except AssertionError as err:
            raise AssertionError(f"after {ends.total()} commands, {shown(line)}: {err}") from err
        assert not suspended(), shown(line)
        if status == 2:
            assert {path: sectors_written(path) for path in disks.values()} == before, shown(line)
        ends[status] += 1
        if not sum(ends.values()) % 20 and dmsoft("status", NAME).code == 5:
            rig.create("--force", one=disks["s0"], two=disks["s1"])
    print(f"seed {seed}: {ends.total()} commands, by status: {dict(ends)}")
    assert ends[0] > 10 and ends[2] > 10
