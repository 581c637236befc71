# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft monitor`` in a process of its own, as a service manager would run it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmsoft.mirror import bulletin
from tests.vm.rig import NAME, dmsoft, suspended, wait_until

LONG = 120


class Monitor:
    """Started at once; ``start`` again after a ``kill``. What it tells is kept in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "events"
        self._log.touch()
        self.start()

    def start(self) -> None:
        path = self._folder / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, self._log.open("a") as log:
            manager.bind(str(path))
            manager.settimeout(LONG)
            environment = {**os.environ, "NOTIFY_SOCKET": str(path)}
            argv = [sys.executable, "-m", "dmsoft.cli", "monitor"]
            self.process = subprocess.Popen(argv, stderr=log, stdin=subprocess.DEVNULL, env=environment)
            assert manager.recv(4096) == b"READY=1"

    def events(self, event: str | None = None, **fields: object) -> list[dict[str, Any]]:
        """What it has told, of one kind or all."""
        found = [json.loads(line) for line in self._log.read_text().splitlines()]
        wanted = fields | ({} if event is None else {"event": event})
        return [each for each in found if all(each.get(key) == value for key, value in wanted.items())]

    def wait_for(self, event: str, count: int = 1, **fields: object) -> None:
        def come() -> bool:
            assert self.process.poll() is None, self._log.read_text()
            return len(self.events(event, **fields)) >= count

        try:
            wait_until(f"{event} {fields}", come, LONG)
        except AssertionError:
            print(self._log.read_text(), dmsoft("status"))
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0, self._log.read_text()


@contextlib.contextmanager
def monitoring(folder: Path) -> Iterator[Monitor]:
    """The daemon for a while; it must end as it should."""
    monitor = Monitor(folder)
    try:
        yield monitor
        monitor.stop()
    finally:
        monitor.kill()
    assert not suspended() and not bulletin.PATH.exists()


def current(*labels: str, state: str = "current") -> None:
    def there() -> bool:
        found = {
            each["label"]: each["state"] for each in dmsoft("status", NAME, "--json").json["mirrors"][0]["secondaries"]
        }
        return all(found[label] == state for label in labels)

    wait_until(f"{labels} are {state}", there, LONG)
