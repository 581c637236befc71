# SPDX-License-Identifier: GPL-2.0-or-later
"""A side that is compared and never written: it notes what differs."""

import threading
from collections.abc import Sequence

from dmsoft.era.blocks import BlockSet
from dmsoft.errors import DeviceError
from dmsoft.mirror.job import Job
from dmsoft.mirror.progress import Progress
from dmsoft.mirror.running import Running
from dmsoft.resync.copy import REQUEST_BYTES, Copier, Piece, Side
from dmsoft.resync.extents import requests, runs
from dmsoft.resync.throttle import Throttle


class Witness(Side):
    """A target that is compared and never written: it notes what would have been."""

    differing: list[tuple[int, int]]

    def __init__(self, side: Side) -> None:
        super().__init__(side.fd, side.offset)
        object.__setattr__(self, "differing", [])

    def put(self, pieces: Sequence[Piece]) -> None:
        self.differing.extend((offset, len(view)) for offset, view in pieces)

    def blocks(self, block_bytes: int) -> list[int]:
        """The blocks that what differs touches, ascending."""
        found = (range(at // block_bytes, -(-(at + length) // block_bytes)) for at, length in self.differing)
        return sorted({block for blocks in found for block in blocks})


def suspected(
    running: Running, source: Side, job: Job, blocks: BlockSet, cancelled: threading.Event, throttle: Throttle,
    progress: Progress,
) -> tuple[list[int], int]:  # fmt: skip
    """Those of ``blocks`` that differ on both sides while they may be written, and how many bytes were compared.

    Raises `DeviceError` when either side cannot be read, and `CancelledError`.
    """
    witness = Witness(job.side)
    copier = Copier(
        source, [witness], compare=1, cancelled=cancelled, piece_bytes=running.block_bytes, read=throttle.read,
        on_progress=progress.advance,
    )  # fmt: skip
    copier.run(
        requests(
            runs([blocks]), block_bytes=running.block_bytes, data_bytes=running.data.length,
            request_bytes=REQUEST_BYTES,
        )
    )  # fmt: skip
    tally = copier.tally
    if tally.failed:
        raise DeviceError(f"{job.label} could not be read: {tally.failed[0].strerror}.")
    if tally.unread:
        at = tally.unread[0].offset
        raise DeviceError(f"The primary could not be read at byte {at}.", hint="Look at its health now.")
    return [block for block in witness.blocks(running.block_bytes) if block in blocks], tally.compared
