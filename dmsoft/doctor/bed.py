# SPDX-License-Identifier: GPL-2.0-or-later
"""Scratch devices for measurements: loop devices on memory without a name, and device-mapper devices on those.

Nothing else is ever touched. The loop devices go with their last user. The device-mapper devices have a uuid prefix of
their own, one doctor is at work at a time, and a process of its own removes them when the doctor ends, however it ends.
"""

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Never, Self

from dmsoft.dm.device import Device, devices
from dmsoft.dm.helper import isolate
from dmsoft.dm.kernel import require_targets
from dmsoft.dm.targets import Target, single
from dmsoft.errors import BusyError, DeviceError, DmsoftError
from dmsoft.mirror.lock import locked
from dmsoft.run import run
from dmsoft.units import sectors

PREFIX: Final = "DMSOFT-doctor-"
_NAME: Final = "dmsoft-doctor-"
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_AUTOCLEAR: Final = 4
# struct loop_config: fd, block size, then loop_info64 with its flags and name; the rest is zero.
_LOOP_CONFIG: Final = struct.Struct("=II 40x 12x I 64s 112x 64x")
_TRIES: Final = 20
_REMOVE_SECONDS: Final = 20.0


class Bed:
    """A context manager; `ram` and `make` inside it. Raises `BusyError` while another doctor is at work."""

    def __init__(self) -> None:
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked("doctor", "operation", name="of the doctor", verb="doctor"))
            sweep()  # what a machine that crashed or a cleaner that was killed left
            require_targets(["linear"])
            if not Path("/dev/loop-control").exists():
                run(["modprobe", "--", "loop"])
            stack.callback(_start_cleaner())
            self._exits = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            sweep()
        finally:
            self._exits.close()

    def ram(self, size_bytes: int) -> str:
        """A device of zeros in memory; returns its ``MAJOR:MINOR``. It lasts as long as the bed."""
        memory = os.memfd_create("dmsoft-doctor", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, size_bytes)
            loop = _loop(memory)
        finally:
            os.close(memory)
        self._exits.callback(os.close, loop)
        status = os.fstat(loop)
        return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"

    def make(self, layer: str, size_bytes: int, target: Target) -> Device:
        """A device-mapper device that serves one target."""
        made = named(layer)
        made.create()
        try:
            made.load(single(sectors(size_bytes), target))
            made.resume()
        except BaseException:
            with contextlib.suppress(DmsoftError):
                made.remove()
            raise
        return made


def named(layer: str) -> Device:
    return Device(f"{_NAME}{layer}", f"{PREFIX}{layer}", inner=True)


def sweep() -> None:
    """Remove every scratch device, whatever state it is in. Raises `BusyError` if one resists."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while left := devices(PREFIX):
        for info in reversed(left):
            device = Device(info.name, info.uuid, inner=True)
            with contextlib.suppress(DmsoftError):
                if info.suspended and info.live_table:
                    device.resume()
                device.remove(timeout=0)
        if time.monotonic() > deadline:
            raise BusyError(
                f"{left[0].name}, a scratch device of the doctor, cannot be removed.",
                hint="See `dmsetup info -c` for who has it open, then run `dmsoft doctor` again.",
            )


def _loop(memory: int) -> int:
    """A free loop device, set up on that file; open."""
    config = _LOOP_CONFIG.pack(memory, 512, _LO_FLAGS_AUTOCLEAR, b"dmsoft-doctor")
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            with contextlib.suppress(OSError):  # it was free a moment ago, or udev has not made its node yet
                loop = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(loop, _LOOP_CONFIGURE, config)
                except OSError:
                    os.close(loop)
                    raise
                return loop
            time.sleep(0.05)
    finally:
        os.close(control)
    raise DeviceError("No loop device can be set up.", hint="Load the module loop (modprobe loop).")


def _start_cleaner() -> Callable[[], None]:
    """Fork the process that removes what is left when this one ends; call what is returned to have it end."""
    theirs, mine = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(mine)
        _clean(theirs)
    os.close(theirs)

    def stop() -> None:
        os.close(mine)
        os.waitpid(pid, 0)

    return stop


def _clean(pipe: int) -> Never:
    """The cleaner: waits for the doctor's end, which closes the pipe."""
    try:
        os.setsid()
        isolate(pipe)
        os.read(pipe, 1)
        sweep()
    finally:
        os._exit(0)
