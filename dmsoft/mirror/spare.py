# SPDX-License-Identifier: GPL-2.0-or-later
"""Secondaries that can stand in for the primary where it cannot be read: one that is here and has that block clean."""

import contextlib
import os
import threading
from dataclasses import dataclass

from dmsoft.era.blocks import BlockSet
from dmsoft.era.reader import EraReader
from dmsoft.errors import DmsoftError
from dmsoft.member import header
from dmsoft.member import record as records
from dmsoft.member.disk import FdDisk, open_for_read
from dmsoft.member.payload import Secondary
from dmsoft.mirror.decision import Decision, decide
from dmsoft.mirror.generation import require_older
from dmsoft.mirror.running import Running, node_path
from dmsoft.resync.copy import Side, read_all


@dataclass(frozen=True, slots=True)
class _Spare:
    side: Side
    decision: Decision


class Spares:
    """The secondaries of a mirror as they stand when a run begins; a context manager that raises as
    `Running.era_reader`. What the run itself writes to them are blocks that they do not have clean.

    A reader is for one thread at a time: this one has its own, and asks it under a lock.
    """

    def __init__(self, running: Running, current_era: int | None) -> None:
        self._running, self._era = running, current_era
        self._spares: list[_Spare] = []
        self._reader: EraReader | None = None
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Spares":
        self._reader = self._stack.enter_context(self._running.era_reader())
        for label in self._running.assembly.secondaries:
            with contextlib.suppress(DmsoftError, OSError):
                self._spares.append(self._open(label))
        return self

    def __exit__(self, *_: object) -> None:
        self._spares = []
        self._stack.close()

    def read(self, offset: int, view: memoryview) -> bool:
        """Fill ``view`` with these bytes of the data, which lie in one block; False when nobody here can. Called by
        several threads.

        First read, then asked: a block that is clean afterwards was clean while it was read.
        """
        block = offset // self._running.block_bytes
        for spare in self._spares:
            try:
                read_all(spare.side, view, offset)
                with self._lock:
                    owed = spare.decision.owed(self._written_since, self._nr_blocks)
            except (OSError, DmsoftError):
                continue
            if block not in owed:
                return True
        return False

    @property
    def _nr_blocks(self) -> int:
        return -(-self._running.data.length // self._running.block_bytes)

    def _written_since(self, era: int) -> BlockSet:
        return BlockSet.full(self._nr_blocks) if self._reader is None else self._reader.written_since(era).blocks

    def _open(self, label: str) -> _Spare:
        running = self._running
        record, placed = running.payload.member(label), running.assembly.secondaries[label]
        fd = open_for_read(node_path(placed.number))
        try:
            scan = header.read(fd, key=running.assembly.key)
            found = scan.header
            payload = None if found is None or not found.verified or scan.doubt else found.payload
            if record is None or found is None or not isinstance(payload, Secondary):
                raise OSError("no secondary")
            if payload.member_uuid != record.member_uuid or payload.regions["data"].length != running.data.length:
                raise OSError("another secondary")
            require_older(running.payload, payload)
            journal = records.read(FdDisk(fd), found, running.assembly.key)
            decision = decide(running.payload, record, payload, self._era)
            if decision.since is None or (journal is not None and journal.committed):
                raise OSError("in doubt")
        except BaseException:
            os.close(fd)
            raise
        self._stack.callback(os.close, fd)
        return _Spare(Side(fd, payload.regions["data"].offset), decision)
