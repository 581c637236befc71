# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard: a process that resumes what dmsoft suspended, if dmsoft dies or hangs in between.

It is started before the first suspend, in a scope of its own so that ending the caller's control group does not end
it, and holds its memory locked: while the root file system is frozen nothing can be read from it. The caller speaks
one line at a time into its standard input:

    arm              from now on the end of the caller means: resume
    deadline SECONDS the suspend has returned; resume when so many seconds have passed
    disarm           everything is resumed

It answers ``ready`` once and ``tripped`` whenever it had to act. It resumes bottom-up, and gives a suspended lower the
plain linear table first: whatever was about to be coupled to the primary is not trusted.
"""

import contextlib
import os
import select
import sys
import time
from dataclasses import dataclass

import msgspec

from dmsoft.dm import memory
from dmsoft.dm.cookie import Cookie
from dmsoft.dm.device import Device
from dmsoft.dm.helper import Helper, Operation
from dmsoft.dm.targets import Linear, Segment, Table
from dmsoft.errors import DeviceError, DmsoftError
from dmsoft.mirror.names import Node
from dmsoft.run import spawn_detached
from dmsoft.units import Sectors

_READY_SECONDS = 60
_WATCH_SECONDS = 2.0
_POLL_SECONDS = 0.05
_RESUME_SECONDS = 30.0
_RESUME_POLL_SECONDS = 0.005


class Charge(msgspec.Struct, frozen=True):
    """What a guard answers for: top and lower, and the linear table (device, offset, length) for the lower."""

    top_name: str
    top_uuid: str
    lower_name: str
    lower_uuid: str
    device: str
    offset: int
    length: int


def charge(top: Node, lower: Node, table: Table) -> Charge:
    """The charge for a mirror whose lower falls back to ``table``, one linear segment."""
    (segment,) = table
    if not isinstance(segment.target, Linear):
        raise ValueError("a lower falls back to a linear table")
    target = segment.target
    return Charge(top.name, top.uuid, lower.name, lower.uuid, target.device, target.offset, segment.length)


@dataclass(slots=True)
class Guard:
    """The caller's end. A context manager: the guard process lives as long as the block, and resumes what is suspended
    and still armed at its end."""

    charge: Charge
    _in: int = -1
    _out: int = -1
    _helper: Helper | None = None

    @property
    def fallback(self) -> Table:
        """The plain linear table of the lower."""
        return _fallback(self.charge)

    @property
    def helper(self) -> Helper:
        """For resumes of the lower that may not return."""
        if self._helper is None:
            raise DeviceError("The guard is not running.")
        return self._helper

    def __enter__(self) -> "Guard":
        argv = [sys.executable, "-I", "-m", "dmsoft.mirror.guard", msgspec.json.encode(self.charge).decode()]
        self._in, self._out = spawn_detached(argv)
        if not self._wait_for(b"ready", _READY_SECONDS):
            self.__exit__()
            raise DeviceError("The guard process that resumes a suspended mirror did not start.")
        self._helper = Helper([_lower(self.charge)])
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._in, self._out):
            with contextlib.suppress(OSError):
                os.close(fd)
        if self._helper is not None:
            self._helper.close()

    def arm(self) -> None:
        """Raises `DeviceError` when the guard is gone: nothing may be suspended without one.

        Call it while nothing is suspended: a helper that is still stuck in its last resume is replaced by a new one.
        """
        if self.helper.busy and not self.helper.wait(0):
            self.helper.close()
            self._helper = Helper([_lower(self.charge)])
        self._say(b"arm\n")

    def deadline(self, seconds: float) -> None:
        self._say(b"deadline %f\n" % seconds)

    def disarm(self) -> None:
        with contextlib.suppress(DeviceError):
            self._say(b"disarm\n")

    def tripped(self) -> bool:
        """Whether the guard has acted since it was started."""
        return self._wait_for(b"tripped", 0)

    def _say(self, line: bytes) -> None:
        try:
            os.write(self._in, line)
        except OSError as err:
            raise DeviceError("The guard process that resumes a suspended mirror is gone.") from err

    def _wait_for(self, word: bytes, seconds: float) -> bool:
        ready, _, _ = select.select([self._out], [], [], seconds)
        return bool(ready) and word in os.read(self._out, 4096)


def resume_watched(helper: Helper, target: Device) -> Cookie:
    """Resume through the helper; returns when the device serves I/O, however long the ioctl itself takes.

    The resume that replaces a raid1 may sit in the old table's destruction for as long as one of its legs hangs,
    although the new table is live. The cookie is owed a wait. Raises `DeviceError` when nothing comes of it in time.
    """
    cookie = helper.start(Operation.RESUME, target)
    deadline = time.monotonic() + _RESUME_SECONDS
    while time.monotonic() < deadline:
        done = helper.wait(_RESUME_POLL_SECONDS)
        info = target.info()
        if info is not None and not info.suspended and not info.inactive_table:
            return cookie
        if done:
            break
    raise DeviceError(f"{target.name} did not resume.", hint="The kernel log (dmesg) says why; the primary goes on.")


def main() -> None:
    """The guard process itself; its one argument is the charge as JSON."""
    mine = msgspec.json.decode(sys.argv[1], type=Charge)
    top, lower = Device(mine.top_name, mine.top_uuid), _lower(mine)
    fallback = _fallback(mine)
    with Helper([lower]) as helper, memory.locked():
        # Every page and every lazy import that the way out needs is touched once, here.
        top.info(), lower.info(), time.monotonic(), str(fallback[0])
        os.write(1, b"ready\n")
        _keep(top, lower, fallback, helper)


def _lower(mine: Charge) -> Device:
    return Device(mine.lower_name, mine.lower_uuid, inner=True)


def _fallback(mine: Charge) -> Table:
    return (Segment(Sectors(0), Sectors(mine.length), Linear(mine.device, Sectors(mine.offset))),)


def _keep(top: Device, lower: Device, fallback: Table, helper: Helper) -> None:
    armed, deadline, pending = False, None, b""
    while True:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([0], [], [], wait)
        data = os.read(0, 4096) if ready else b""
        if (ready and not data) or not ready:
            if armed and _rescue(top, lower, fallback, helper, watch=bool(ready)):
                with contextlib.suppress(OSError):
                    os.write(1, b"tripped\n")
            if ready:
                return
            armed, deadline = False, None
            continue
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            word, _, value = line.partition(b" ")
            armed = word != b"disarm"
            deadline = time.monotonic() + float(value) if word == b"deadline" else None


def _rescue(top: Device, lower: Device, fallback: Table, helper: Helper, *, watch: bool) -> bool:
    """Resume whatever of the two is suspended, bottom up; with ``watch`` keep looking a while, since a dying caller's
    suspend may still be on its way through the kernel. Returns whether anything had to be resumed."""
    until, acted = time.monotonic() + (_WATCH_SECONDS if watch else 0), False
    while True:
        if _is_suspended(lower):
            acted = True
            with contextlib.suppress(DmsoftError, ValueError):
                lower.load(fallback)
                resume_watched(helper, lower)
        if _is_suspended(top):
            acted = True
            with contextlib.suppress(DmsoftError):
                top.resume(wait=False)
        if time.monotonic() >= until:
            return acted
        time.sleep(_POLL_SECONDS)


def _is_suspended(device: Device) -> bool:
    try:
        info = device.info()
    except DmsoftError:
        return False
    return info is not None and info.suspended


if __name__ == "__main__":
    main()
