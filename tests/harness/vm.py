# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one command in a throw-away VM on this checkout, and say clearly how that ended."""

import enum
import json
import os
import selectors
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import accel, bootimage, emulator, initramfs, kernels, qemu
from tests.harness.cached import cache_folder
from tests.harness.errors import HarnessError

# Ten times what a boot takes under emulation on a quiet machine.
BOOT_SECONDS = 300
DRAIN_SECONDS = 60
Sink = Callable[[bytes], object]


class Outcome(enum.Enum):
    """How a VM ended; the value is the exit status of ``./dev vm`` where COMMAND's own does not exist."""

    EXITED = 0
    CUT = 121
    PANIC = 122
    RESET = 123
    TIMEOUT = 124
    FAILED = 125


@dataclass(frozen=True)
class Disk:
    """A disk of the guest: an empty sparse one of ``size`` bytes for this run, the file ``path``, which stays, or the
    store of that name at the socket ``server``, see `tests.harness.nbd`.

    ``log`` names a file that is to hold every request to the disk afterwards, see `tests.harness.writelog`. ``speed``
    and ``iops``: bytes and requests a second that it takes at most, 0 for as many as it can.
    """

    serial: str
    size: int = 0
    path: Path | None = None
    log: Path | None = None
    speed: int = 0
    iops: int = 0
    server: Path | None = None


@dataclass(frozen=True)
class Result:
    """The end of a run; ``status`` is COMMAND's, or the outcome's value, and ``message`` one line for a person."""

    outcome: Outcome
    status: int
    message: str
    stdout: bytes
    stderr: bytes
    console: str
    boot_seconds: float
    seconds: float


@dataclass(frozen=True)
class Options:
    """Everything about a VM but its command; ``timeout`` in seconds covers the boot too."""

    disks: tuple[Disk, ...] = ()
    kernel: str = kernels.DEFAULT
    memory: int = 1024
    cpus: int = 1
    timeout: float = 600
    accelerator: str | None = None
    env: dict[str, str] = field(default_factory=dict)


def run(
    command: Sequence[str],
    *,
    disks: Sequence[Disk] = (),
    kernel: str = kernels.DEFAULT,
    timeout: float = 600,
    memory: int = 1024,
    cpus: int = 1,
    env: dict[str, str] | None = None,
    accelerator: str | None = None,
    cut_at: bytes | None = None,
) -> Result:
    """Boot, run ``command`` as root, return everything it wrote.

    With ``cut_at`` QEMU is killed the moment the command's standard output has it: to the guest that is a power cut,
    while what it has written to its disks, flushed or not, stays in their files. Raises `HarnessError` if no VM can
    be started.
    """
    out, err = bytearray(), bytearray()

    def watch(data: bytes) -> None:
        out.extend(data)
        if cut_at and cut_at in out[-len(data) - len(cut_at) :]:
            raise _PowerCut

    options = Options(tuple(disks), kernel, memory, cpus, timeout, accelerator, env or {})
    return stream(command, options, watch, err.extend, (out, err))


def stream(
    command: Sequence[str],
    options: Options,
    out: Sink,
    err: Sink,
    kept: tuple[bytearray, bytearray] | None = None,
) -> Result:
    """As `run`, but hand over output as it comes; ``kept`` are the buffers, if any, that the result shall hold."""
    with tempfile.TemporaryDirectory(prefix="dmsoft-vm-") as folder:
        machine = Machine(options, Path(folder))
        try:
            end = machine.run(command, out, err)
        except _PowerCut:
            end = _End(Outcome.CUT, "the power was cut")
        finally:
            machine.kill()
        stdout, stderr = kept or (b"", b"")
        return Result(
            end.outcome,
            end.status if end.outcome is Outcome.EXITED else end.outcome.value,
            end.message,
            bytes(stdout),
            bytes(stderr),
            machine.console(),
            machine.boot_seconds,
            time.monotonic() - machine.started,
        )


class _PowerCut(Exception):
    """Raised by a sink to have QEMU killed at once."""


@dataclass(frozen=True)
class _End:
    outcome: Outcome
    message: str
    status: int = 0


class Machine:
    """One QEMU process and the three sockets to the agent in its guest."""

    def __init__(self, options: Options, folder: Path) -> None:
        self._options = options
        self._console = folder / "console.log"
        self.started = time.monotonic()
        self.boot_seconds = 0.0
        kernel = kernels.find(options.kernel)
        cache = cache_folder()
        hardware = qemu.Hardware(
            program=emulator.find(),
            kernel=kernel,
            boot_image=bootimage.build(kernel, cache),
            initramfs=initramfs.build(kernel, cache),
            images=tuple(self._image(disk, folder) for disk in options.disks),
            memory=options.memory,
            cpus=options.cpus,
            accel=options.accelerator or accelerator(options.kernel),
            console=self._console,
        )
        pairs = {name: socket.socketpair() for name in ("control", "stdout", "stderr")}
        self._control, self._stdout, self._stderr = (pair[0] for pair in pairs.values())
        guest = {name: pair[1].fileno() for name, pair in pairs.items()}
        argv = qemu.arguments(hardware, guest)
        self._errors = folder / "qemu.log"
        with self._errors.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=guest.values(),
                start_new_session=True,
            )
        for _, theirs in pairs.values():
            theirs.close()

    @staticmethod
    def _image(disk: Disk, folder: Path) -> qemu.Image:
        if disk.server is not None:
            return qemu.Image(disk.server.absolute(), disk.serial, served=True)
        path = disk.path or folder / f"{disk.serial}.img"
        if disk.path is None:
            with path.open("xb") as file:
                file.truncate(disk.size)
        elif not path.is_file() and not path.is_block_device():
            raise HarnessError(f"{path} is not a file")
        if disk.log is not None:
            disk.log.write_bytes(b"")
        return qemu.Image(path.absolute(), disk.serial, disk.log and disk.log.absolute(), disk.speed, disk.iops)

    def console(self) -> str:
        return self._console.read_bytes().decode(errors="replace") if self._console.exists() else ""

    def kill(self) -> None:
        """End the VM at once: what the guest had not flushed may be lost, as in a power cut of the machine."""
        self._process.kill()
        self._process.wait()
        for sock in (self._control, self._stdout, self._stderr):
            sock.close()

    def run(self, command: Sequence[str], out: Sink, err: Sink) -> _End:
        """Run ``command`` to whatever end it or the guest comes to."""
        conversation = _Conversation(self._control, {self._stdout: out, self._stderr: err}, self._request(command))
        selector = selectors.DefaultSelector()
        ended = os.pidfd_open(self._process.pid)
        for descriptor in (ended, self._control, self._stdout, self._stderr):
            selector.register(descriptor, selectors.EVENT_READ)
        try:
            while True:
                now = time.monotonic()
                if conversation.complete:
                    return self._finish(conversation)
                if late := self._too_late(now, conversation):
                    return late
                ready = [key.fileobj for key, _ in selector.select(timeout=1)]
                for sock in ready:
                    if isinstance(sock, socket.socket) and not conversation.read(sock):
                        selector.unregister(sock)
                if conversation.ready and not self.boot_seconds:
                    self.boot_seconds = time.monotonic() - self.started
                # The sockets are read to their end before the death of QEMU is believed: it may have said all.
                if ready == [ended]:
                    return self._finish(conversation) if conversation.complete else self._died()
        finally:
            selector.close()
            os.close(ended)

    def _request(self, command: Sequence[str]) -> dict[str, object]:
        venv = qemu.CHECKOUT / ".venv/bin"
        env = {
            "PATH": f"{venv}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            **self._options.env,
        }
        persistent = any(disk.path for disk in self._options.disks)
        return {"argv": list(command), "cwd": str(qemu.CHECKOUT), "env": env, "sync": persistent}

    def _too_late(self, now: float, conversation: "_Conversation") -> _End | None:
        if now - self.started > self._options.timeout:
            return _End(Outcome.TIMEOUT, f"timed out after {self._options.timeout:g} s")
        if not conversation.ready and now - self.started > BOOT_SECONDS:
            return _End(Outcome.FAILED, f"the guest did not boot within {BOOT_SECONDS} s")
        if conversation.end and now - conversation.last_heard > DRAIN_SECONDS:
            return _End(Outcome.FAILED, "the guest's output did not arrive in full")
        return None

    def _finish(self, conversation: "_Conversation") -> _End:
        """Let QEMU close its images in order, then report COMMAND's end."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            return _End(Outcome.FAILED, "QEMU did not end")
        if not conversation.end["synced"]:
            return _End(Outcome.FAILED, "the guest could not write its page cache back")
        status = conversation.end["exit"]
        return _End(Outcome.EXITED, f"exited with status {status}", status)

    def _died(self) -> _End:
        """Why QEMU ended before COMMAND did."""
        status = self._process.wait()
        panics = [line for line in self.console().splitlines() if "Kernel panic" in line]
        if panics:
            return _End(Outcome.PANIC, f"kernel panic: {panics[-1].split('Kernel panic - not syncing: ')[-1]}")
        if status == 0:
            return _End(Outcome.RESET, "the guest was reset or powered off before the command ended")
        said = self._errors.read_text(errors="replace").strip().splitlines()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return _End(Outcome.FAILED, f"QEMU {how}{': ' + said[-1] if said else ''}")


class _Conversation:
    """What has been heard from the agent so far."""

    def __init__(self, control: socket.socket, sinks: dict[socket.socket, Sink], request: dict[str, object]) -> None:
        self._control = control
        self._sinks = sinks
        self._request = request
        self._received = [0] * len(sinks)
        self._text = b""
        self.ready = False
        self.end: dict[str, int] = {}
        self.last_heard = 0.0

    @property
    def complete(self) -> bool:
        return bool(self.end) and self._received == [self.end["stdout"], self.end["stderr"]]

    def read(self, sock: socket.socket) -> bool:
        """Take what a readable socket holds; False at its end."""
        try:
            data = sock.recv(1 << 18)
        except ConnectionError:
            data = b""
        if not data:
            return False
        if sock is self._control:
            self._listen(data)
        else:
            self._received[list(self._sinks).index(sock)] += len(data)
            self._sinks[sock](data)
        self.last_heard = time.monotonic()
        return True

    def _listen(self, data: bytes) -> None:
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "ready" in message:
                self.ready = True
                self._control.sendall(json.dumps(self._request).encode() + b"\n")
            else:
                self.end = message


def accelerator(kernel: str = kernels.DEFAULT) -> str:
    """``kvm`` if a trial boot proved it on this machine, else ``tcg``."""
    return accel.choose(cache_folder(), lambda: _boots_with_kvm(kernel))


def _boots_with_kvm(kernel: str) -> bool:
    """A boot that fails or hangs in any way is no proof."""
    try:
        return run(["true"], kernel=kernel, timeout=accel.TRIAL_SECONDS, accelerator="kvm").outcome is Outcome.EXITED
    except HarnessError:
        return False
