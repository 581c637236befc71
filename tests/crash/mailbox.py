# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk that is a mailbox between the host and a program in its VM: tasks, answers, and marks on the tape.

At byte 0 lies the task, at 512 KiB the answer, each with its number and length before it; a page written at 1 MiB is a
mark. What the guest writes here stands on the tape between its writes to the other disks.
"""

import json
import queue
import struct
from typing import Any

from tests.crash.medium import Event, Tape

PAGE = 4096
TASK, ANSWER, MARK, SIZE = 0, 512 << 10, 1 << 20, 2 << 20
MOST = 256 << 10
LENGTH = struct.Struct("<QQ")


class Mailbox:
    """The host's end; a `tests.harness.nbd.Store`."""

    size = SIZE

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._task = bytes(MOST)
        self._number = 0
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answer = bytearray(MOST)

    def post(self, task: dict[str, Any]) -> None:
        self._number += 1
        data = json.dumps(task).encode()
        assert len(data) <= MOST - LENGTH.size
        self._task = (LENGTH.pack(self._number, len(data)) + data).ljust(MOST, b"\0")

    def answer(self, seconds: float) -> dict[str, Any]:
        """The answer to the last task; raises `queue.Empty` after so long."""
        return self._answers.get(timeout=seconds)

    def read(self, offset: int, length: int) -> bytes:
        return self._task[offset : offset + length].ljust(length, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        if offset == MARK:
            self._tape.append(Event(mark=data.rstrip(b"\0").decode()))
        elif ANSWER <= offset < ANSWER + MOST:
            # A large request may come in parts.
            at = offset - ANSWER
            self._answer[at : at + len(data)] = data
            number, length = LENGTH.unpack_from(self._answer)
            if number == self._number and at + len(data) >= LENGTH.size + length:
                self._answers.put(json.loads(self._answer[LENGTH.size : LENGTH.size + length]))
                self._answer = bytearray(MOST)

    def flush(self) -> None:
        pass
