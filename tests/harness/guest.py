# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent inside the guest: runs one command, relays its output byte for byte, reports its end.

Runs under the system's Python with the standard library alone, before any virtual environment matters. It talks to
the host over three virtio-serial ports: ``control`` carries one JSON object a line, ``stdout`` and ``stderr`` raw
bytes. The command gets pipes instead of the ports themselves, because a port can be opened only once, and a program
may well open ``/dev/stdout`` again.
"""

import json
import os
import select
import signal
import subprocess
import time
from typing import Any, NoReturn

PORTS = "/dev/virtio-ports/dmsoft."
CHUNK = 1 << 18
SYNC_SECONDS = 60


def open_port(name: str) -> int:
    """The descriptor of one port; udev has made its link by the time the agent starts, but never assume it."""
    for _ in range(200):
        try:
            return os.open(PORTS + name, os.O_RDWR if name == "control" else os.O_WRONLY)
        except FileNotFoundError:
            time.sleep(0.05)
    raise SystemExit(f"port {name} did not appear")


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def send(control: int, **message: object) -> None:
    write_all(control, json.dumps(message).encode() + b"\n")


def receive(control: int) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        # A port whose host side is not connected yet reads as end of file.
        part = os.read(control, 65536)
        if not part:
            time.sleep(0.05)
        line += part
    message: dict[str, Any] = json.loads(line)
    return message


class Relay:
    """Moves what arrives in a pipe to a port, and counts it, so that the host knows when it has everything."""

    def __init__(self, port: str) -> None:
        self.port = open_port(port)
        self.source, self.sink = os.pipe()
        os.set_blocking(self.source, False)
        self.moved = 0

    def move(self) -> bool:
        """Move what is there now; False once every writer has closed the pipe."""
        while True:
            try:
                data = os.read(self.source, CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            write_all(self.port, data)
            self.moved += len(data)


def start(argv: list[str], cwd: str, env: dict[str, str], out: Relay, err: Relay) -> "subprocess.Popen[bytes] | int":
    """The running command, or the shell's status for a command that cannot start (126, 127), said on stderr."""
    try:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out.sink,
            stderr=err.sink,
            start_new_session=True,
        )
    except OSError as error:
        os.write(err.sink, f"{argv[0]}: {error.strerror}\n".encode())
        return 127 if isinstance(error, FileNotFoundError) else 126


def relay_until_exit(child: "subprocess.Popen[bytes]", out: Relay, err: Relay) -> int:
    """Relay both streams until the command itself ended; what it left running may hold the pipes open for ever."""
    ended = os.pidfd_open(child.pid)
    poll = select.poll()
    streams = {out.source: out, err.source: err}
    for descriptor in (*streams, ended):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        for descriptor in ready:
            if descriptor in streams and not streams[descriptor].move():
                poll.unregister(descriptor)
        if ended in ready:
            status = child.wait()
            return status if status >= 0 else 128 - status


def synchronize() -> bool:
    """Write back the page cache for disks that outlive the VM; False if that hangs (a suspended device, say)."""
    child = os.fork()
    if not child:
        os.sync()
        os._exit(0)
    return bool(select.select([os.pidfd_open(child)], [], [], SYNC_SECONDS)[0])


def main() -> NoReturn:
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    control = open_port("control")
    send(control, ready=True)
    request = receive(control)
    out, err = Relay("stdout"), Relay("stderr")
    child = start(request["argv"], request["cwd"], request["env"], out, err)
    os.close(out.sink)
    os.close(err.sink)
    status = child if isinstance(child, int) else relay_until_exit(child, out, err)
    out.move()
    err.move()
    synced = synchronize() if request["sync"] else True
    send(control, exit=status, stdout=out.moved, stderr=err.moved, synced=synced)
    # The host ends the VM; powering off here would race with what the ports still hold.
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
