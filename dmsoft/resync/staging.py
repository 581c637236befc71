# SPDX-License-Identifier: GPL-2.0-or-later
"""What the final barrier reads, which is written when everything is resumed."""

from collections.abc import Collection, Iterable, Sequence

from dmsoft.resync.buffers import aligned_buffer
from dmsoft.resync.copy import BATCH_PIECES, REQUEST_BYTES, Side, Tally, Target, read_all
from dmsoft.resync.extents import Request, batches


class Staging:
    """Memory for the final copy: filled inside the barrier, written after it. Allocated and touched beforehand."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._view = aligned_buffer(capacity_bytes, present=True)
        self._held: list[tuple[Request, memoryview]] = []

    def fill(self, source: Side, requests: Iterable[Request]) -> None:
        """Read every request; raises OSError when the source cannot be read, MemoryError when they do not fit, and
        holds nothing then."""
        self._held = []
        used, held = 0, []
        for request in requests:
            if used + request.length > self.capacity_bytes:
                raise MemoryError
            view = self._view[used : used + request.length]
            read_all(source, view, request.offset)
            held.append((request, view))
            used += request.length
        self._held = held

    def drain(self, targets: Sequence[Target], tally: Tally, only: Collection[int] | None = None) -> None:
        """Write what is held to its targets (``only`` those, if given); ``tally`` notes those that fail."""
        views = {request.offset: view for request, view in self._held}
        requests = [request for request, _ in self._held]
        for batch in batches(requests, batch_bytes=REQUEST_BYTES, most=BATCH_PIECES):
            for index, target in enumerate(targets):
                mine = [(r.offset, views[r.offset]) for r in batch if r.targets >> index & 1]
                if not mine or index in tally.failed or (only is not None and index not in only):
                    continue
                try:
                    target.put(mine)
                    tally.written[index] += sum(len(view) for _, view in mine)
                except OSError as err:
                    tally.failed[index] = err
            tally.read += sum(request.length for request in batch)
