# SPDX-License-Identifier: GPL-2.0-or-later
"""Command lines of odd and of good words, on a mirror and its disks: whatever is asked for, every command ends as it
should, and leaves nothing suspended."""

import itertools
import random
import time
from collections import Counter

import pytest

from dmsoft.mirror import registry
from dmsoft.units import MIB
from tests.fuzz.commands import command_line, ended, shown
from tests.vm.rig import NAME, Rig, dmsoft, ours, sectors_written, suspended, write

pytest_plugins = ("tests.vm.rig",)

SECONDS = 25
SERIALS = ("p0", "s0", "s1", "c0", "small0")


@pytest.mark.long
def test_whatever_is_typed(rig: Rig, seed: int) -> None:
    chance, ends = random.Random(seed), Counter[int]()
    disks = {serial: str(rig.disks[serial]) for serial in SERIALS}
    paths, labelled = tuple(disks.values()), (f"one={disks['s0']}", f"two={disks['s1']}")
    ways = ("direct", "delay:2", f"writecache:{disks['c0']}", f"two=writecache:{disks['c0']}")
    meant = {
        "name": (NAME,), "label": ("one", "two"), "labels": ("one", "two"), "device": (*paths, *labelled),
        "primary": (disks["p0"],), "words": labelled, "vias": ways, "metadata": (disks["small0"],),
        "rate": ("50%", "max"), "block_size": ("64K", "1M"), "journal_size": ("0", "4M"), "interval": ("5m",),
        "since": ("1",), "max_stall": ("200ms",), "expects": ("7d",), "limit": ("5s",),
    }  # fmt: skip
    words = (NAME, "one", "two", f"/dev/mapper/{NAME}", f"/dev/mapper/{NAME}-lower", *paths, *labelled, "5m", "1M")

    def anew() -> None:
        dmsoft("stop", "--all")
        for path in paths:
            write(path, 0, bytes(MIB))
        registry.forget(NAME)  # of one that was stopped, and not destroyed
        rig.create("--force", one=disks["s0"], two=disks["s1"])

    anew()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline or min(ends[0], ends[2]) <= 10:
        line = command_line(chance, words, chance.choice([0.0, 0.0, 0.2, 0.7]), meant)
        if {"doctor", "devices"} & set(line) and chance.random() < 0.9:
            continue  # seconds each
        if any(rate not in meant["rate"] for option, rate in itertools.pairwise(line) if option == "--rate"):
            continue  # 4K takes hours
        if chance.random() < 0.5 and "--yes" not in line:
            line.append("--yes")
        before = {path: sectors_written(path) for path in paths}
        try:
            status = ended(line)
        except AssertionError as err:
            raise AssertionError(f"after {ends.total()} commands, {shown(line)}: {err}") from err
        assert not suspended(), shown(line)
        if status == 2:
            assert {path: sectors_written(path) for path in paths} == before, shown(line)
        ends[status] += 1
        if ends.total() % 20 == 0 and NAME not in ours():
            anew()
    print(f"seed {seed}: {ends.total()} commands, by status: {dict(ends)}")
