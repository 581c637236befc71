# SPDX-License-Identifier: GPL-2.0-or-later
"""Secondaries that can stand in for the primary where it cannot be read: one that is here and has that block clean."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from dmsoft.era.blocks import BlockSet
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
    fd: int
    side: Side
    decision: Decision


class Spares:
    """The secondaries of a mirror as they stand when a run begins; a context manager. What the run itself writes to
    them are blocks that they do not have clean."""

    def __init__(self, running: Running, current_era: int | None, written_since: Callable[[int], BlockSet]) -> None:
        self._running, self._era, self._written_since = running, current_era, written_since
        self._spares: list[_Spare] = []

    def __enter__(self) -> "Spares":
        for label in self._running.assembly.secondaries:
            with contextlib.suppress(DmsoftError, OSError):
                self._open(label)
        return self

    def __exit__(self, *_: object) -> None:
        for spare in self._spares:
            os.close(spare.fd)
        self._spares = []

    def read(self, offset: int, view: memoryview) -> bool:
        """Fill ``view`` with these bytes of the data, which lie in one block; False when nobody here can.

        First read, then asked: a block that is clean afterwards was clean while it was read.
        """
        block = offset // self._running.block_bytes
        for spare in self._spares:
            try:
                read_all(spare.side, view, offset)
                owed = spare.decision.owed(self._written_since, self._nr_blocks)
            except (OSError, DmsoftError):
                continue
            if block not in owed:
                return True
        return False

    @property
    def _nr_blocks(self) -> int:
        return -(-self._running.data.length // self._running.block_bytes)

    def _open(self, label: str) -> None:
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
        self._spares.append(_Spare(fd, Side(fd, payload.regions["data"].offset), decision))
