# SPDX-License-Identifier: GPL-2.0-or-later
"""Btrees of persistent-data, read level by level: every node verified, nothing believed.

Source of the format: ``dm-btree-internal.h`` and ``node_check`` in ``dm-btree-spine.c``.
"""

import operator
import struct
from array import array
from bisect import bisect_left, bisect_right
from itertools import islice
from typing import Final, NamedTuple

from dmsoft.era import layout
from dmsoft.era.device import MetadataDevice, aligned_buffer
from dmsoft.era.errors import EraMetadataError
from dmsoft.era.layout import Numbers

MAX_KEY: Final = (1 << 64) - 1
_INTERNAL: Final = 1
_LEAF: Final = 2
# A tree over every data block dm-era can track is four levels deep, half full.
_MAX_DEPTH: Final = 8
_BATCH: Final = 256
# csum, flags, blocknr, number of entries, room for entries, bytes of a value
_HEADER: Final = struct.Struct("<IIQIII")


class Entries(NamedTuple):
    """What a walk found: ascending ``keys``, and their values, one after the other."""

    keys: Numbers
    values: bytes

    def numbers(self) -> Numbers:
        """The values as 64-bit numbers, which they must be."""
        return layout.numbers(self.values)


class _Pointer(NamedTuple):
    """A node to visit and the range its keys must lie in, both ends included."""

    block: int
    low: int
    high: int


class _Node(NamedTuple):
    pointer: _Pointer
    leaf: bool
    keys: Numbers
    values: bytes


class BtreeReader:
    """Walks btrees on ``device``; block numbers from ``limit`` on are outside the metadata."""

    def __init__(self, device: MetadataDevice) -> None:
        self._device = device
        self._buffer = aligned_buffer(_BATCH)

    def entries(
        self, root: int, *, value_size: int, max_entries: int, limit: int, low: int = 0, high: int = MAX_KEY
    ) -> Entries:
        """The entries of the tree at ``root`` whose keys are ``low`` .. ``high``; visits no other nodes.

        ``max_entries`` and ``limit`` (metadata blocks in use by the format) bound time and memory: more entries, a
        node outside or a node met twice raise `EraMetadataError`.
        """
        level = [_Pointer(root, 0, MAX_KEY)]
        seen: set[int] = set()
        for _ in range(_MAX_DEPTH):
            nodes = self._read_level(level, value_size, max_entries, limit, seen)
            if len({node.leaf for node in nodes}) != 1:
                raise EraMetadataError(nodes[0].pointer.block, "its siblings are on another level of the tree")
            if nodes[0].leaf:
                return _collect(nodes, low, high, value_size)
            level = [child for node in nodes for child in _children(node, low, high)]
            if len(level) > max_entries:
                raise EraMetadataError(root, f"the tree below it has more than {max_entries} nodes on one level")
            if not level:
                return _collect([], low, high, value_size)
        raise EraMetadataError(root, f"the tree below it is deeper than {_MAX_DEPTH} levels")

    def _read_level(
        self, level: list[_Pointer], value_size: int, max_entries: int, limit: int, seen: set[int]
    ) -> list[_Node]:
        nodes: list[_Node] = []
        total = 0
        for at in range(0, len(level), _BATCH):
            batch = level[at : at + _BATCH]
            for pointer in batch:
                if not 0 < pointer.block < limit:
                    raise EraMetadataError(pointer.block, "is a btree node by its parent, but outside the metadata")
                if pointer.block in seen:
                    raise EraMetadataError(pointer.block, "occurs twice in one btree")
                seen.add(pointer.block)
            self._device.read_blocks([pointer.block for pointer in batch], self._buffer)
            for index, pointer in enumerate(batch):
                offset = index * layout.BLOCK_BYTES
                node = _parse(self._buffer[offset : offset + layout.BLOCK_BYTES], pointer, value_size, len(level) > 1)
                nodes.append(node)
                total += len(node.keys) if node.leaf else 0
                if total > max_entries:
                    raise EraMetadataError(pointer.block, f"the tree has more than {max_entries} entries")
        return nodes


def _parse(block: memoryview, pointer: _Pointer, value_size: int, has_siblings: bool) -> _Node:
    """The node in ``block``, copied out of it. Raises `EraMetadataError`."""
    csum, flags, blocknr, nr, most, size = _HEADER.unpack_from(block)
    if csum != layout.checksum(block, layout.NODE_SALT):
        raise EraMetadataError(pointer.block, layout.describe_checksum(block, layout.NODE_SALT))
    internal = flags == _INTERNAL
    if internal:
        value_size = 8
    checks = (
        (blocknr == pointer.block, f"says it is block {blocknr}"),
        (internal or flags == _LEAF, f"is neither an internal node nor a leaf (flags {flags:#x})"),
        (size == value_size, f"its values have {size} bytes, not {value_size}"),
        (most == layout.node_capacity(value_size), f"has room for {most} entries, which its values' size forbids"),
        (nr <= most, f"has {nr} entries and room for {most}"),
        (nr > 0 or not (internal or has_siblings), "is an empty node inside a tree"),
    )
    for holds, what in checks:
        if not holds:
            raise EraMetadataError(pointer.block, what)
    keys = layout.numbers(block[layout.NODE_HEADER_BYTES : layout.NODE_HEADER_BYTES + 8 * nr])
    if not all(map(operator.lt, keys, islice(keys, 1, None))):
        raise EraMetadataError(pointer.block, "its keys do not ascend")
    if nr and not (pointer.low <= keys[0] and keys[-1] <= pointer.high):
        raise EraMetadataError(pointer.block, f"its keys are outside {pointer.low}..{pointer.high}")
    start = layout.NODE_HEADER_BYTES + 8 * most
    return _Node(pointer, not internal, keys, bytes(block[start : start + nr * value_size]))


def _children(node: _Node, low: int, high: int) -> list[_Pointer]:
    """The children of an internal node that may have keys ``low`` .. ``high``."""
    keys, blocks = node.keys, layout.numbers(node.values)
    ends = [*(key - 1 for key in keys[1:]), node.pointer.high]
    return [
        _Pointer(block, key, end)
        for block, key, end in zip(blocks, keys, ends, strict=True)
        if key <= high and end >= low
    ]


def _collect(nodes: list[_Node], low: int, high: int, value_size: int) -> Entries:
    keys = array("Q")
    for node in nodes:
        keys += node.keys
    begin, end = bisect_left(keys, low), bisect_right(keys, high)
    values = b"".join(node.values for node in nodes)
    return Entries(keys[begin:end], values[begin * value_size : end * value_size])
