# SPDX-License-Identifier: GPL-2.0-or-later
"""From stale sets to requests in disk order. Pure.

Several secondaries miss different blocks. The runs of their union are cut wherever the set of secondaries changes, so
that a block which several miss is read once and written to each.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dmsoft.era.blocks import BlockSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

# Blocks (whole words of 64) and rows that are looked at together: what that takes on the way stays within some MiB.
_WINDOW: Final = 1 << 18
_ROWS: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class Request:
    """One read of the source and its writes: a byte range of the data region; bit i of ``targets`` is target i."""

    offset: int
    length: int
    targets: int


def runs(sets: Sequence[BlockSet]) -> "Rows":
    """Rows (first block, count, target mask) of the union of up to 62 sets, ascending, cut where the mask changes."""
    import numpy as np

    nr_blocks = sets[0].nr_blocks if sets else 0
    found: list[Rows] = []
    for first in range(0, nr_blocks, _WINDOW):
        rows = _runs([each.window(first, min(_WINDOW, nr_blocks - first)) for each in sets])
        rows[:, 0] += first
        if found and len(found[-1]) and len(rows) and _touch(found[-1][-1], rows[0]):
            rows[0, :2] = found[-1][-1, 0], found[-1][-1, 1] + rows[0, 1]
            found[-1] = found[-1][:-1]
        found.append(rows)
    return np.concatenate([np.empty((0, 3), np.int64), *found])


def _touch(one: "Rows", other: "Rows") -> bool:
    """Whether two rows that follow each other are one."""
    return bool(one[0] + one[1] == other[0] and one[2] == other[2])


def _runs(sets: Sequence[BlockSet]) -> "Rows":
    import numpy as np

    extents = [each.extents() for each in sets]
    bounds = np.unique(np.concatenate([np.cumsum(e, axis=1).ravel() for e in extents]))
    if len(bounds) == 0:
        return np.empty((0, 3), np.int64)
    change = np.zeros(len(bounds), np.int64)
    for bit, extent in enumerate(extents):
        change[np.searchsorted(bounds, extent[:, 0])] += 1 << bit
        change[np.searchsorted(bounds, extent.sum(axis=1))] -= 1 << bit
    masks = np.cumsum(change)[:-1]
    table = np.column_stack((bounds[:-1], np.diff(bounds), masks))
    kept: Rows = table[masks != 0]
    return kept


def requests(rows: "Rows", *, block_bytes: int, data_bytes: int, request_bytes: int) -> Iterator[Request]:
    """The rows as byte ranges of at most ``request_bytes``, the last one cut at the end of the data region."""
    for at in range(0, len(rows), _ROWS):
        for first, count, mask in rows[at : at + _ROWS].tolist():
            offset, end = first * block_bytes, min((first + count) * block_bytes, data_bytes)
            while offset < end:
                length = min(request_bytes, end - offset)
                yield Request(offset, length, mask)
                offset += length


def count(rows: "Rows", *, block_bytes: int, data_bytes: int, request_bytes: int) -> int:
    """How many requests `requests` makes of the rows."""
    ends = ((rows[:, 0] + rows[:, 1]) * block_bytes).clip(max=data_bytes)
    return int((-((rows[:, 0] * block_bytes - ends) // request_bytes)).sum())


def batches(requests: Iterable[Request], *, batch_bytes: int, most: int, rise: int = 0) -> Iterator[list[Request]]:
    """The requests in groups, in the same order: at most ``most`` of them and ``batch_bytes`` each, or a single one.
    With a ``rise`` so many groups are single ones, as many have two at most, and so on: how long they take shows soon.
    """
    group: list[Request] = []
    total = made = 0
    for request in requests:
        limit = min(most, 1 + made // rise) if rise else most
        if group and (len(group) >= limit or total + request.length > batch_bytes):
            yield group
            group, total, made = [], 0, made + 1
        group.append(request)
        total += request.length
    if group:
        yield group


def size_bytes(blocks: BlockSet, *, block_bytes: int, data_bytes: int) -> int:
    """Bytes that the blocks cover; the last block of a device may be a short one."""
    total = blocks.count() * block_bytes
    last = blocks.nr_blocks - 1
    short = blocks.nr_blocks * block_bytes - data_bytes
    return total - short if short and last in blocks else total
