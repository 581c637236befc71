# SPDX-License-Identifier: GPL-2.0-or-later
"""Btrees of persistent-data, read level by level: every node verified, nothing believed.

Source of the format: ``dm-btree-internal.h`` and ``node_check`` in ``dm-btree-spine.c``.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dmsoft.era import layout
from dmsoft.era.device import MetadataDevice, aligned_buffer
from dmsoft.era.errors import EraMetadataError

Numbers = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

MAX_KEY: Final = (1 << 64) - 1
_INTERNAL: Final = 1
_LEAF: Final = 2
# A tree over every data block dm-era can track is four levels deep, half full.
_MAX_DEPTH: Final = 8
_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Entries:
    """What a walk found: ascending ``keys`` and the bytes of their values, shape (n, value size)."""

    keys: Numbers
    values: Bytes

    def numbers(self) -> Numbers:
        """The values as 64-bit numbers, which they must be."""
        return self.values.reshape(-1).view("<u8")


@dataclass(frozen=True, slots=True)
class _Pointer:
    """A node to visit and the range its keys must lie in, both ends included."""

    block: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Node:
    pointer: _Pointer
    leaf: bool
    keys: Numbers
    values: Bytes


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
    csum, flags, *_ = header = np.frombuffer(block, "<u4", 8).tolist()
    blocknr, nr, most, size = header[2] | header[3] << 32, header[4], header[5], header[6]
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
    keys = np.frombuffer(block, "<u8", nr, layout.NODE_HEADER_BYTES).copy()
    if (keys[1:] <= keys[:-1]).any():
        raise EraMetadataError(pointer.block, "its keys do not ascend")
    if nr and not (pointer.low <= int(keys[0]) and int(keys[-1]) <= pointer.high):
        raise EraMetadataError(pointer.block, f"its keys are outside {pointer.low}..{pointer.high}")
    start = layout.NODE_HEADER_BYTES + 8 * most
    values = np.frombuffer(block, np.uint8, nr * value_size, start).reshape(nr, value_size).copy()
    return _Node(pointer, not internal, keys, values)


def _children(node: _Node, low: int, high: int) -> list[_Pointer]:
    """The children of an internal node that may have keys ``low`` .. ``high``."""
    keys: list[int] = node.keys.tolist()
    blocks: list[int] = node.values.reshape(-1).view("<u8").tolist()
    ends = [key - 1 for key in keys[1:]] + [node.pointer.high]
    return [
        _Pointer(block, key, end)
        for block, key, end in zip(blocks, keys, ends, strict=True)
        if key <= high and end >= low
    ]


def _collect(nodes: list[_Node], low: int, high: int, value_size: int) -> Entries:
    if not nodes:
        return Entries(np.empty(0, np.uint64), np.empty((0, value_size), np.uint8))
    keys = np.concatenate([node.keys for node in nodes])
    values = np.concatenate([node.values for node in nodes])
    begin, end = np.searchsorted(keys, np.array([low, high], np.uint64)).tolist()
    if end < len(keys) and int(keys[end]) == high:
        end += 1
    return Entries(keys[begin:end], values[begin:end])
