# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM whose disks are in this process: they can be given any content, and nothing that happens to them is missed."""

import contextlib
import queue
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmsoft.units import MIB
from tests.crash.mailbox import Mailbox
from tests.crash.medium import Event, Platter, Tape
from tests.harness import kernels, nbd, vm

SIZES = {"p": 18 * MIB, "a": 18 * MIB, "b": 18 * MIB, "c": 16 * MIB}
_TASK_SECONDS = 400.0
_POLL_SECONDS = 1.0


class LabError(Exception):
    """The guest died, hung or could not do what it was told; the message says all that is known."""


class Lab:
    """One VM, while it is entered. ``tape`` has all that was written and marked since the last `load`."""

    def __init__(self, seed: int, *, kernel: str = kernels.DEFAULT, seconds: float = 3600) -> None:
        noise = np.random.default_rng(seed)
        self.tape: Tape = []
        self.disks = {name: Platter(name, bytearray(noise.bytes(size)), self.tape) for name, size in SIZES.items()}
        self.kernel = kernel
        self._mail = Mailbox(self.tape)
        self._seconds = seconds
        self._said, self._end = bytearray(), ""

    def __enter__(self) -> "Lab":
        # A socket's path must be short.
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dmsoft-lab-")))
            server = stack.enter_context(nbd.Server(folder / "disks", {**self.disks, "mail": self._mail}))
            disks = tuple(vm.Disk(name, server=server.path) for name in (*self.disks, "mail"))
            options = vm.Options(disks, self.kernel, timeout=self._seconds)
            self._machine = vm.Machine(options, folder)
            stack.callback(self._machine.kill)
            self._thread = threading.Thread(target=self._live, daemon=True)
            self._thread.start()
            self._exits = stack.pop_all()
        return self

    def _live(self) -> None:
        command = [".venv/bin/python", "-m", "tests.crash.guest"]
        with contextlib.suppress(OSError, ValueError):  # its sockets are closed under it at the end
            self._end = self._machine.run(command, self._said.extend, self._said.extend).message

    def __exit__(self, *_: object) -> None:
        self._exits.close()
        self._thread.join()

    def load(self, images: dict[str, bytearray]) -> None:
        """Give the disks this content, as if they had always had it; the tape begins anew."""
        self.tape.clear()
        for name, image in images.items():
            self.disks[name].image = image

    def images(self) -> dict[str, bytes]:
        return {name: bytes(disk.image) for name, disk in self.disks.items()}

    def mark(self, text: str) -> None:
        self.tape.append(Event(mark=text))

    def do(self, what: str, **task: Any) -> Any:
        """Have the guest do something; raises `LabError` if that failed."""
        self._mail.post({"do": what, **task})
        deadline = time.monotonic() + _TASK_SECONDS
        while True:
            try:
                answer = self._mail.answer(_POLL_SECONDS)
            except queue.Empty:
                if not self._thread.is_alive() or time.monotonic() > deadline:
                    raise LabError(f"{what}: {self._end or 'it hangs'}\n{self._known()}") from None
                continue
            if "failed" in answer:
                raise LabError(f"{what}: {answer['failed']}")
            return answer["is"]

    def _known(self) -> str:
        marks = [event.mark for event in self.tape if event.mark and not event.mark.startswith("synced")]
        return "\n".join([*marks[-12:], self._said.decode(errors="replace")[-5000:], self._machine.console()[-3000:]])

    def verbs(self, *words: Sequence[str]) -> list[dict[str, Any]]:
        """Run these verbs of dmsoft one after another: exit status, output, error output, seconds of each."""
        found: list[dict[str, Any]] = self.do("verbs", verbs=[list(each) for each in words])
        return found
