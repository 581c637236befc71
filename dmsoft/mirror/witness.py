# SPDX-License-Identifier: GPL-2.0-or-later
"""A side that is compared and never written: it notes what differs."""

from collections.abc import Sequence

from dmsoft.resync.copy import Piece, Side


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
