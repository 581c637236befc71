# SPDX-License-Identifier: GPL-2.0-or-later
"""Telling a service manager how it goes: the datagrams of sd_notify(3)."""

import contextlib
import os
import socket
from dataclasses import dataclass


@dataclass(slots=True)
class Notifier:
    """Says nothing where nobody listens. ``watchdog``: the seconds within which it has to hear of us, None for ever."""

    address: str | None
    watchdog: float | None = None
    _status: str = ""

    @classmethod
    def from_environment(cls) -> "Notifier":
        """Takes the variables out of the environment, as they are not meant for children."""
        address = os.environ.pop("NOTIFY_SOCKET", None)
        pid, limit = os.environ.pop("WATCHDOG_PID", None), os.environ.pop("WATCHDOG_USEC", "")
        ours = pid is None or pid == str(os.getpid())
        microseconds = int(limit) if limit.isascii() and limit.isdigit() and len(limit) <= 18 and ours else 0
        return cls(address, microseconds / 1e6 if microseconds else None)

    def ready(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line of text; the same one is not sent twice."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, text: str) -> None:
        if not self.address or self.address[0] not in "/@":
            return
        address = f"\0{self.address[1:]}" if self.address[0] == "@" else self.address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.setblocking(False)
            to.sendto(text.encode(), address)
