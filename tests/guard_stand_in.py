# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard's loop over this process's real standard input and output, with stand-ins for its two devices.

The one argument is JSON: which devices are ``suspended``, how often a step of each ``fails`` before it works, whether
it does so for want of memory (``starved``), the file that is the mirror's kernel ``lock``, if there is one, whether
there is a ``way_out`` of a top that cannot be resumed, and the status of the ``raid`` in the lower, if there is one.
What is done to them goes to standard error, a line each. What a kernel would do is not the question here: when the
guard acts, in which order, and that it does not give up, is.
"""

import errno
import json
import os
import sys
from dataclasses import dataclass, field

from dmsoft.dm.cookie import Cookie
from dmsoft.dm.device import Info, TargetLine
from dmsoft.dm.failures import DmIoctlError
from dmsoft.dm.helper import Operation
from dmsoft.dm.targets import Linear, Table, single
from dmsoft.mirror import guard
from dmsoft.units import Sectors

FALLBACK: Table = single(Sectors(2048), Linear("8:0", Sectors(4096)))


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@dataclass
class StandIn:
    """A device that is suspended or not; ``fails`` counts down steps that raise."""

    name: str
    suspended: bool
    fails: dict[str, int] = field(default_factory=dict)
    starved: bool = False
    raid: str | None = None

    def _step(self, what: str) -> None:
        left = self.fails.get(what, 0)
        self.fails[what] = left - 1
        say(f"{what} {self.name}" + (" failed" if left > 0 else ""))
        if left > 0:
            raise MemoryError if self.starved else DmIoctlError(what, self.name, errno.EIO)

    def info(self) -> Info:
        return Info(self.name, "", 253, 0, self.suspended, True, False, 1, 0, False)

    def status(self, *, asleep: bool = False) -> tuple[TargetLine, ...]:
        assert asleep is self.suspended
        words = ("linear", "") if self.raid is None else ("raid", self.raid)
        return (TargetLine(Sectors(0), Sectors(2048), *words),)

    def clear(self) -> None:
        self._step("clear")

    def load(self, table: Table) -> None:
        assert table == FALLBACK
        self._step("load")

    def resume(self, *, wait: bool = True) -> None:
        assert not wait
        self._step("resume")
        self.suspended = False


class StandInHelper:
    """Does at once what it is told."""

    busy = False

    def start(self, operation: Operation, device: StandIn) -> Cookie:
        assert operation is Operation.RESUME
        device.resume(wait=False)
        return Cookie(0)

    def wait(self, timeout: float) -> bool:
        return True


@dataclass
class StandInWayOut:
    """Fails as often as it is told, then resumes the top."""

    top: StandIn
    fails: int

    def take(self, *, at_any_cost: bool) -> None:
        self.fails -= 1
        if self.fails >= 0 and not at_any_cost:
            say("way out failed")
            raise DmIoctlError("write", "the header", errno.EIO)
        say("way out at any cost" if at_any_cost else "way out")
        self.top.suspended = False


def main() -> None:
    asked = json.loads(sys.argv[1])
    top, lower = (
        StandIn(name, name in asked["suspended"], asked.get("fails", {}).get(name, {}), asked.get("starved", False))
        for name in ("top", "lower")
    )
    lower.raid = asked.get("raid")
    guard.hold_out_primary = lambda lower: say(f"hold out {lower.name}")  # type: ignore[assignment]
    guard._WATCH_SECONDS = 0.3
    guard._PATIENCE_SECONDS = 0.3
    lock = os.open(asked["lock"], os.O_RDWR) if "lock" in asked else None
    way_out = StandInWayOut(top, asked["way_out"]) if asked.get("way_out") is not None else None
    guard._keep(guard.Rescue(top, lower, FALLBACK, StandInHelper(), lock, way_out))  # type: ignore[arg-type]
    say("end")


if __name__ == "__main__":
    main()
