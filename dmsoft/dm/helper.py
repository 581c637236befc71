# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that makes the ioctls which may never return.

A suspend waits for a secondary that may hang, and a resume may sit in the destruction of the table it replaced
although the new one already serves I/O. A thread stuck there cannot be ended and its process cannot exit. So a helper
is forked while nothing is suspended, gets its memory locked, and is then told in a few bytes what to do: the caller
watches `Device.info` meanwhile, and walks away from the helper if it must.

The helper closes every file but its socket and the control device, so that a stuck one holds no lock file and no disk
open. It does not die with its parent: what it has begun it ends, then it exits.
"""

import enum
import errno
import gc
import os
import select
import signal
import socket
import struct
from collections.abc import Sequence
from typing import Final, Never, Self

from dmsoft.dm import libdevmapper, memory
from dmsoft.dm.cookie import Cookie
from dmsoft.dm.device import Device
from dmsoft.dm.failures import DmIoctlError, failure
from dmsoft.dm.task import prepare
from dmsoft.errors import DmsoftError

_COMMAND = struct.Struct("=BBI")
_REPLY = struct.Struct("=i")
_READY: Final = b"R"
_START_SECONDS: Final = 10.0


class Operation(enum.IntEnum):
    SUSPEND = 0
    SUSPEND_NOLOCKFS = 1
    RESUME = 2


class Helper:
    """Forked at construction for ``devices``; one operation at a time. Raises `DeviceError` if it does not come up.

    Construct it before anything is suspended and before threads are started that hold locks.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        if len(devices) > 255:
            raise ValueError("at most 255 devices")
        self._devices = tuple(devices)
        self._pending: tuple[Operation, Device, Cookie] | None = None
        prepare()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            _serve(theirs, self._devices)
        theirs.close()
        if not self._readable(_START_SECONDS) or self._socket.recv(1) != _READY:
            self.close()
            raise DmIoctlError("start a helper for", "device-mapper", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        """Whether something was started and not waited for to its end."""
        return self._pending is not None

    def start(self, operation: Operation, device: Device) -> Cookie:
        """Have it make one ioctl; `wait` for it. Raises `DmIoctlError` if the helper is gone, ValueError if the last
        one has not been waited for.

        The cookie of a resume is owed a `Cookie.wait` once `Device.info` says that the device is not suspended any
        more, also if the ioctl never returns. If `wait` raises, it is gone. Other operations have an empty one.
        """
        if self._pending is not None:
            raise ValueError("the helper is at work")
        cookie = Cookie.new() if operation is Operation.RESUME else Cookie(0)
        try:
            self._socket.send(_COMMAND.pack(operation, self._devices.index(device), cookie.value))
        except OSError as err:  # it was killed
            cookie.drop()
            raise failure(_verb(operation), device.name, 0) from err
        self._pending = (operation, device, cookie)
        return cookie

    def wait(self, timeout: float) -> bool:
        """Whether what was started is done; False if it still sits in the ioctl after ``timeout`` seconds.

        Raises what the operation raised, as `failure` makes it of the errno.
        """
        if self._pending is None:
            raise ValueError("nothing was started")
        if not self._readable(timeout):
            return False
        operation, device, cookie = self._pending
        self._pending = None
        try:
            answer = self._socket.recv(_REPLY.size)
        except OSError:  # it was killed before it had read what to do
            answer = b""
        number = _REPLY.unpack(answer)[0] if len(answer) == _REPLY.size else -1
        if number:
            cookie.drop()
            raise failure(_verb(operation), device.name, max(number, 0))
        return True

    def close(self) -> None:
        """Let it go: an idle helper ends at once and is reaped, a stuck one is left to the kernel and to init."""
        self._socket.close()
        if self._pending is None:
            os.waitpid(self.pid, 0)

    def _readable(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(max(0, int(timeout * 1000))))


def _verb(operation: Operation) -> str:
    return operation.name.split("_", maxsplit=1)[0].lower()


def _serve(channel: socket.socket, devices: tuple[Device, ...]) -> Never:
    """The child: never returns into the caller's code, whatever happens."""
    try:
        isolate(channel.fileno())
        memory.spare()
        memory.lock()
        memory.set_io_flusher(True)
        channel.send(_READY)
        while command := channel.recv(_COMMAND.size):
            operation, index, cookie = _COMMAND.unpack(command)
            number = _perform(Operation(operation), devices[index], Cookie(cookie))
            channel.send(_REPLY.pack(number))
    finally:
        os._exit(0)


def _perform(operation: Operation, device: Device, cookie: Cookie) -> int:
    """The errno, 0 if it went well, -1 if there was none."""
    try:
        match operation:
            case Operation.SUSPEND | Operation.SUSPEND_NOLOCKFS:
                device.suspend(lockfs=operation is Operation.SUSPEND)
            case Operation.RESUME:
                device.resume(cookie=cookie)
    except DmIoctlError as err:
        return err.errno or -1
    except DmsoftError as err:
        return _ERRNOS.get(err.code, -1)
    return 0


_ERRNOS: Final = {"dm-not-found": errno.ENXIO, "dm-busy": errno.EBUSY, "not-root": errno.EPERM}


def isolate(*keep: int) -> None:
    """In a forked child, drop what the parent had: signals of its terminal, open files but ``keep`` and the control
    device (a lock lives while a copy of its file does)."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    close_files(*keep)


def close_files(*keep: int) -> None:
    """The part of `isolate` that is about files; those of the terminal lead nowhere afterwards."""
    # What the parent has left to be collected is not collected here: it would close numbers that are other files by
    # then, and unmap addresses, of buffers that a fork does not inherit, where other memory is.
    gc.freeze()
    os.chdir("/")
    for entry in os.listdir("/proc/self/fd"):
        number = int(entry)
        if number in keep:
            continue
        try:
            if os.readlink(f"/proc/self/fd/{number}") != libdevmapper.CONTROL:
                os.close(number)
        except OSError:
            continue
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
