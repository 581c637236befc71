# SPDX-License-Identifier: GPL-2.0-or-later
"""Where in a device the blocks of a set lie, in a few numbers: the data of a map."""

import itertools

from dmsoft.era.blocks import BlockSet


def spread(blocks: BlockSet, parts: int) -> tuple[int, ...]:
    """How much of each of ``parts`` equal parts of the device is in the set, in percent.

    0 says none of it and 100 all of it: what is in between is 1 to 99. Fewer parts if there are fewer blocks.
    """
    total = blocks.nr_blocks
    parts = min(parts, total)
    bounds = [total * part // parts for part in range(parts + 1)] if parts else []
    return tuple(_percent(_count(blocks.bits, begin, end), end - begin) for begin, end in itertools.pairwise(bounds))


def _percent(count: int, size: int) -> int:
    if count in (0, size):
        return 100 if count else 0
    return min(max(100 * count // size, 1), 99)


def _count(bits: bytearray, begin: int, end: int) -> int:
    """How many of the bits ``begin`` .. ``end`` - 1 are set."""
    part = int.from_bytes(bits[begin >> 3 : (end + 7) >> 3], "little") >> (begin & 7)
    return (part & ((1 << (end - begin)) - 1)).bit_count()
