# SPDX-License-Identifier: GPL-2.0-or-later
"""What `dmsoft.era.marks` promises, for an installation without a compiler: as right, and numpy has to be loaded."""

import numpy as np

from dmsoft.era import layout

_HEADER_WORDS = layout.ARRAY_HEADER_BYTES // 4
_ERAS = layout.array_capacity(4)
_WORDS = layout.array_capacity(8)


def take_eras(bits: bytearray, blocks: int, first: int, array: memoryview, since: int) -> int:
    leaves = np.frombuffer(array, "<u4").reshape(-1, layout.BLOCK_BYTES // 4)
    begin = first * _ERAS
    eras = leaves[:, _HEADER_WORDS:].reshape(-1)[: max(blocks - begin, 0)]
    newest = int(eras.max(initial=0))
    if newest < since:
        return 0
    # In front of them as many as there are before them in their byte of the set.
    recent = np.zeros(begin % 8 + len(eras), np.bool_)
    np.greater_equal(eras, np.uint32(since), out=recent[begin % 8 :])
    marked = np.packbits(recent, bitorder="little")
    target = np.frombuffer(bits, np.uint8)[begin // 8 : begin // 8 + len(marked)]
    target |= marked
    return newest


def take_bits(bits: bytearray, valid: int, first: int, array: memoryview) -> None:
    leaves = np.frombuffer(array, "<u8").reshape(-1, layout.BLOCK_BYTES // 8)
    begin, end = first * _WORDS, layout.blocks_needed(valid, 64)
    words = leaves[:, _HEADER_WORDS // 2 :].reshape(-1)[: max(end - begin, 0)].copy()
    if not len(words):
        return
    if valid % 64 and begin + len(words) == end:
        words[-1] &= np.uint64((1 << valid % 64) - 1)
    target = np.frombuffer(bits, "<u8")[begin : begin + len(words)]
    target |= words


def flips(bits: bytearray, begin: int, end: int) -> bytes:
    words = np.frombuffer(bits, "<u8")
    here = words[begin:end]
    before = here << np.uint64(1)
    before[1:] |= here[:-1] >> np.uint64(63)
    if begin and len(here):
        before[0] |= words[begin - 1] >> np.uint64(63)
    changed = here ^ before
    used = np.flatnonzero(changed)
    places = np.flatnonzero(np.unpackbits(changed[used].view(np.uint8), bitorder="little"))
    return bytes(((used[places >> 6] + begin) * 64 + (places & 63)).astype(np.int64))
