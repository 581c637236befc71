# SPDX-License-Identifier: GPL-2.0-or-later
"""Which blocks were written in or after an era, from metadata that a live target may be changing meanwhile.

A block is in the set if its digested era is at least the era asked for, or if it is in an undigested or the current
writeset of such an era. Where metadata lies still (stopped, suspended, a metadata snapshot) the set is exact.

Why it is never too small on a live target, though the superblock has no transaction number (the kernel allocates
lowest first, so that the superblock after next can equal this one byte for byte) and blocks freed by one commit are
overwritten while the next is built:

- Marks only ever move: current writeset, then writeset tree, then (digested) the array. Whatever is read in that
  order is seen at least once. So writesets come first, and one that has gone meanwhile is in the array.
- A block that a tree still names after it was read was not reused in between. This is what `settle` checks, for
  each array block on its own: what moved is read again. A pointer that was valid leads to its own content or to
  newer content, never to older, and a node says which tree and which keys it is for.
- Could a block have left its place and come back? Not in an archived writeset, which nobody writes. Not in the
  array while one writeset is digested: that is a single ascending pass. The lowest key of the writeset tree tells
  whether it is still the same pass. In the current writeset it could, by four commits within one reading; so marks
  of the era that is still being written are proved only when metadata lies still. They belong to the next pass of a
  resync anyhow, whose last one reads suspended metadata.

The array, by far the largest part, is read only if it has something to say. The kernel digests the eldest writeset
first. So while that of the era asked for waits, no later one was begun with, and what was digested of it so far is in
it still. The last pass of a resync asks for an era that ended this moment: what it reads while everybody waits is one
writeset, however large the disk.
"""

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from dmsoft.era import layout, marks
from dmsoft.era.array import ArrayReader, ArrayShape
from dmsoft.era.blocks import BlockSet
from dmsoft.era.btree import MAX_KEY, BtreeReader
from dmsoft.era.errors import EraAheadError, EraBusyError, EraMetadataError, EraUnusedError
from dmsoft.era.layout import Numbers
from dmsoft.era.settle import Patience, settle
from dmsoft.era.superblock import Superblock, WritesetRoot
from dmsoft.units import align_up

# Failures allowed for what is small, and for what can be read in smaller parts instead.
_TRIES: Final = 256
_QUICK_TRIES: Final = 4
# An array that moves is read in windows of so many blocks, or of a multiple.
_ERAS_UNIT: Final = 32
_MAX_ERA: Final = (1 << 32) - 1
# A value of the writeset tree: number of bits, root of the bitset.
WRITESET: Final = struct.Struct("<IQ")


class Changes(NamedTuple):
    """``blocks`` has every block written in or after the era asked for, as of the commit of ``superblock``.

    It may have blocks written while it was read. Only of the era that was current on a live target a mark may, in
    theory, be missing: see above. Sets that have to be final are read from suspended metadata or a snapshot.
    """

    blocks: BlockSet
    superblock: Superblock


class Walk:
    """One reading of the metadata. ``load`` reads and verifies the superblock to go by, each time it is called."""

    def __init__(self, load: Callable[[], Superblock], btree: BtreeReader, arrays: ArrayReader, since: int) -> None:
        self._load = load
        self._btree = btree
        self._arrays = arrays
        self._since = max(since, 1)
        # The newest era seen, of those from `since` on: one that has not come yet is among them.
        self._newest = 0
        self._first = self._last = load()
        first = self._first
        if not first.nr_blocks or not first.current_era:
            raise EraUnusedError("The era metadata was never used: it knows of no blocks.")
        if since > min(first.current_era + 1, _MAX_ERA):
            raise EraAheadError(
                f"Era {since} was asked for, but the metadata is only at era {first.current_era}.",
                hint="The metadata went back or was replaced; the next resync must compare every block.",
            )
        self._blocks = BlockSet.empty(first.nr_blocks)

    def run(self) -> Changes:
        """The set. Raises `EraMetadataError`, `EraBusyError`, `DeviceError`."""
        for era in self._patience(_TRIES).keep_trying(self._wanted):
            self._read_writeset(era)
        if self._patience(_TRIES).keep_trying(self._is_digested):
            self._read_eras()
        last = self._reload()
        if self._newest > last.current_era:
            raise EraMetadataError(
                last.blocknr, f"the current era is {last.current_era}, but blocks of era {self._newest} are recorded"
            )
        return Changes(self._blocks, self._first)

    def _reload(self) -> Superblock:
        """The superblock as it is now, which must be a later one of the same life."""
        now, first = self._load(), self._first
        if (now.nr_blocks, now.data_block_size) != (first.nr_blocks, first.data_block_size):
            raise EraBusyError("The era metadata was resized or replaced while it was read.")
        if now.current_era < self._last.current_era:
            raise EraMetadataError(now.blocknr, f"the era went back from {self._last.current_era} to {now.current_era}")
        self._last = now
        return now

    def _writesets(self, superblock: Superblock, low: int = 0, high: int = MAX_KEY) -> dict[int, WritesetRoot]:
        """The eras ``low`` .. ``high`` in the writeset tree of ``superblock``, or a later one, ascending."""
        limit, root = superblock.space_map.nr_blocks, superblock.writeset_tree_root
        found = self._btree.entries(root, value_size=WRITESET.size, max_entries=limit, limit=limit, low=low, high=high)
        writesets = {
            era: WritesetRoot(nr_bits, bits)
            for era, (nr_bits, bits) in zip(found.keys, WRITESET.iter_unpack(found.values), strict=True)
        }
        for era, writeset in writesets.items():
            if not writeset.root:
                raise EraMetadataError(root, f"era {era} was archived without its bits")
        if len({writeset.root for writeset in writesets.values()}) != len(writesets):
            raise EraMetadataError(root, "two eras have the same bitset")
        if max(writesets, default=0) > _MAX_ERA:
            raise EraMetadataError(root, f"there is no era {max(writesets)}")
        # All of them exist at once and share nothing: this bounds the work that made-up metadata can ask for. Each
        # has a root and its array blocks.
        if sum(1 + _bitset(writeset.nr_bits).blocks for writeset in writesets.values()) > limit:
            raise EraMetadataError(root, "the bitsets of its eras are larger than the metadata")
        self._newest = max(self._newest, max(writesets, default=0))
        return writesets

    def _wanted(self) -> list[int]:
        """The eras from ``since`` on that are not digested; the set is true from here on."""
        self._first = first = self._reload()
        eras = {era for era in self._writesets(first) if era >= self._since}
        if first.current_writeset.root and first.current_era >= self._since:
            eras.add(first.current_era)
        return sorted(eras)

    def _is_digested(self) -> bool:
        """Whether digestion may have come as far as the era asked for: asked after all writesets were read, so that
        one that went meanwhile is in the array."""
        now = self._reload()
        if self._since > now.current_era or (self._since == now.current_era and now.current_writeset.root):
            return False
        return self._since not in self._writesets(now, self._since, self._since)

    def _read_writeset(self, era: int) -> None:
        """Take over the bits of ``era``, wherever they are by now; nothing to do once it is digested."""
        nr_bits = 0

        def locate() -> Numbers | None:
            nonlocal nr_bits
            now = self._reload()
            found: WritesetRoot | None = now.current_writeset
            if era != now.current_era or not now.current_writeset.root:
                found = self._writesets(now, era, era).get(era)
            if found is None:
                return None
            nr_bits, shape = found.nr_bits, _bitset(found.nr_bits)
            if shape.blocks >= now.space_map.nr_blocks:
                raise EraMetadataError(found.root, f"a bitset of {nr_bits} bits does not fit into the metadata")
            return self._arrays.index(found.root, shape, now.space_map.nr_blocks)

        def read(first: int, blocks: Numbers) -> None:
            valid = min(nr_bits, self._blocks.nr_blocks)
            self._arrays.scan(
                blocks, first, _bitset(nr_bits), lambda at, array: marks.take_bits(self._blocks.bits, valid, at, array)
            )

        settle(locate, read, 1, self._patience(_TRIES))

    def _read_eras(self) -> None:
        """Take over what is digested: in one go if the array holds still that long, else in ever smaller windows."""
        shape = ArrayShape(self._first.nr_blocks, 4)
        windows = [(0, shape.blocks)]
        tries = _TRIES
        while windows:
            first, count = windows.pop()
            smallest = count <= _ERAS_UNIT
            try:
                if self._settle_window(shape, first, count, self._patience(_TRIES if smallest else _QUICK_TRIES)):
                    continue
                tries -= 1
            except EraBusyError:
                if smallest:
                    raise
            if tries <= 0:
                raise EraBusyError("One writeset after the other is being digested.", hint="Try again.")
            step = max(_ERAS_UNIT, align_up(count // 16, _ERAS_UNIT))
            windows += [(at, min(step, first + count - at)) for at in range(first, first + count, step)][::-1]

    def _settle_window(self, shape: ArrayShape, first: int, count: int, patience: Patience) -> bool:
        """Read a window of the array. False if more than one writeset was being digested meanwhile."""
        digesting: object = None

        def locate() -> Numbers | None:
            nonlocal digesting
            now = self._reload()
            eldest = next(iter(self._writesets(now)), None)
            found = ("idle", now.current_era) if eldest is None else ("era", eldest)
            if digesting not in (None, found):
                return None
            digesting = found
            whole = None if count == shape.blocks else count
            return self._arrays.index(now.era_array_root, shape, now.space_map.nr_blocks, first, whole)

        def read(at: int, blocks: Numbers) -> None:
            self._arrays.scan(blocks, first + at, shape, self._take_eras)

        return settle(locate, read, _ERAS_UNIT, patience)

    def _patience(self, tries: int) -> Patience:
        return Patience(lambda: self._last, tries)

    def _take_eras(self, first: int, array: memoryview) -> None:
        """Add the blocks whose era in array blocks ``first`` and following is recent enough."""
        newest = marks.take_eras(self._blocks.bits, self._blocks.nr_blocks, first, array, self._since)
        self._newest = max(self._newest, newest)


def _bitset(nr_bits: int) -> ArrayShape:
    return ArrayShape(layout.blocks_needed(nr_bits, 64), 8)
