# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon over hours: disks, writes, kills and stops in any order."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dmsoft.mirror.lock import locked
from dmsoft.units import MIB
from tests.vm.monitor_bed import LONG, Monitor, current
from tests.vm.rig import NAME, Rig, dmsoft, ok, suspended, wait_until

pytest_plugins = ("tests.vm.rig",)

SERIALS = {"one": "s0", "two": "s1", "three": "s2"}
BLOCKS = 25
EVENTS = 200


class Soak:
    """What can happen, each a method; ``here`` are the labels of the disks that are plugged in."""

    def __init__(self, rig: Rig, monitor: Monitor) -> None:
        self.rig, self.monitor, self.here = rig, monitor, set(SERIALS)
        self.uuid = rig.primary_header().mirror_uuid
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.write, 40), (self.pause, 20), (self.plug, 16), (self.unplug, 10), (self.eject, 6), (self.kill, 4),
            (self.restart, 2), (self.check, 6),
        ]  # fmt: skip
        self._kinds, self._weights = [kind for kind, _ in kinds], [weight for _, weight in kinds]

    def step(self) -> None:
        self.rig.chance.choices(self._kinds, self._weights)[0]()
        # Of the daemon's barriers each is short, also of one that was killed in the middle.
        wait_until("the mirror is resumed", lambda: not suspended(), 3)

    def write(self) -> None:
        self.rig.write(*self.rig.chance.sample(range(BLOCKS), 3))

    def pause(self) -> None:
        time.sleep(self.rig.chance.random() * 4)

    def plug(self) -> None:
        if gone := sorted(SERIALS.keys() - self.here):
            label = self.rig.chance.choice(gone)
            self.rig.disks.replug(SERIALS[label])
            self.here.add(label)

    def unplug(self) -> None:
        if self.here:
            self._pull(self.rig.chance.choice(sorted(self.here)))

    def eject(self) -> None:
        if self.here:
            label = self.rig.chance.choice(sorted(self.here))
            if dmsoft("eject", NAME, label).code == 0:
                self._pull(label)

    def kill(self) -> None:
        self.monitor.kill()
        self.write()
        self.monitor.start()

    def restart(self) -> None:
        self.monitor.kill()
        ok("stop", NAME)
        ok("start", NAME)
        self.monitor.start()

    def check(self) -> None:
        with locked(self.uuid, "operation", timeout=LONG):  # nobody copies meanwhile
            for label in self.here:
                self.rig.superset(label)

    def _pull(self, label: str) -> None:
        self.rig.disks.unplug(SERIALS[label])
        self.here.discard(label)


@pytest.mark.long
def test_whatever_comes_and_goes(rig: Rig, tmp_path: Path) -> None:
    """What differs is in the stale set at all times; in the end nothing does, and no doubt was needed to get there."""
    disks = {label: rig.disks[serial] for label, serial in SERIALS.items()}
    rig.create("--interval", "4s", primary=rig.cut("p0", 40 * MIB), **disks)
    monitor = Monitor(tmp_path)
    try:
        soak = Soak(rig, monitor)
        for _ in range(EVENTS):
            soak.step()
        while soak.here != SERIALS.keys():
            soak.plug()
        current(*SERIALS)
        rig.equal()
        assert not [each for each in monitor.events("caught-up") if each["kind"] == "compare"]
        monitor.stop()
    finally:
        monitor.kill()
