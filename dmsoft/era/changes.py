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
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmsoft.era import layout
from dmsoft.era.array import HEADER_WORDS, VERIFY_BLOCKS, ArrayReader, ArrayShape, Leaves
from dmsoft.era.blocks import BlockSet
from dmsoft.era.btree import MAX_KEY, BtreeReader, Numbers
from dmsoft.era.errors import EraAheadError, EraBusyError, EraMetadataError, EraUnusedError
from dmsoft.era.settle import Patience, settle
from dmsoft.era.superblock import Superblock, WritesetRoot
from dmsoft.units import align_up

# Failures allowed for what is small, and for what can be read in smaller parts instead.
_TRIES: Final = 256
_QUICK_TRIES: Final = 4
# Array blocks of eras whose bits fill whole words of a set.
_ERAS_UNIT: Final = 32
_MAX_ERA: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Changes:
    """``blocks`` has every block written in or after the era asked for, as of the commit of ``superblock``.

    It may have blocks written while it was read. Only of the era that was current on a live target a mark may, in
    theory, be missing: see above. Sets that have to be final are read from suspended metadata or a snapshot.
    """

    blocks: BlockSet
    superblock: Superblock


class _Writesets(NamedTuple):
    """Of the writeset tree: ascending eras, and for each the length and root of its bitset."""

    eras: Numbers
    nr_bits: NDArray[np.int64]
    roots: Numbers


class Walk:
    """One reading of the metadata. ``load`` reads and verifies the superblock to go by, each time it is called."""

    def __init__(self, load: Callable[[], Superblock], btree: BtreeReader, arrays: ArrayReader, since: int) -> None:
        self._load = load
        self._btree = btree
        self._arrays = arrays
        self._since = max(since, 1)
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
        self._bytes = self._blocks.words.view(np.uint8)
        self._recent = np.empty((VERIFY_BLOCKS, layout.array_capacity(4)), np.bool_)

    def run(self) -> Changes:
        """The set. Raises `EraMetadataError`, `EraBusyError`, `DeviceError`."""
        for era in self._patience(_TRIES).keep_trying(self._wanted):
            self._read_writeset(era)
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

    def _writesets(self, superblock: Superblock, low: int = 0, high: int = MAX_KEY) -> _Writesets:
        """The eras ``low`` .. ``high`` in the writeset tree of ``superblock``, or a later one."""
        limit, root = superblock.space_map.nr_blocks, superblock.writeset_tree_root
        found = self._btree.entries(root, value_size=12, max_entries=limit, limit=limit, low=low, high=high)
        bits = np.ascontiguousarray(found.values[:, :4]).view("<u4").reshape(-1).astype(np.int64)
        roots = np.ascontiguousarray(found.values[:, 4:]).view("<u8").reshape(-1)
        if not roots.all():
            raise EraMetadataError(root, f"era {found.keys[roots == 0][0]} was archived without its bits")
        if len(np.unique(roots)) != len(roots):
            raise EraMetadataError(root, "two eras have the same bitset")
        if len(roots) and int(found.keys[-1]) > _MAX_ERA:
            raise EraMetadataError(root, f"there is no era {found.keys[-1]}")
        # All of them exist at once and share nothing: this bounds the work that made-up metadata can ask for. Each
        # has a root and its array blocks.
        per_block = layout.array_capacity(8)
        if int((1 - (-bits // 64 // per_block)).sum()) > limit:
            raise EraMetadataError(root, "the bitsets of its eras are larger than the metadata")
        self._newest = max(self._newest, int(found.keys[-1]) if len(roots) else 0)
        return _Writesets(found.keys, bits, roots)

    def _wanted(self) -> list[int]:
        """The eras from ``since`` on that are not digested; the set is true from here on."""
        self._first = first = self._reload()
        eras = {int(era) for era in self._writesets(first).eras if era >= self._since}
        if first.current_writeset.root and first.current_era >= self._since:
            eras.add(first.current_era)
        return sorted(eras)

    def _read_writeset(self, era: int) -> None:
        """Take over the bits of ``era``, wherever they are by now; nothing to do once it is digested."""
        shape = ArrayShape(0, 8)
        nr_bits = 0

        def locate() -> Numbers | None:
            nonlocal shape, nr_bits
            now = self._reload()
            root = now.current_writeset
            if era != now.current_era or not now.current_writeset.root:
                archived = self._writesets(now, era, era)
                if not len(archived.eras):
                    return None
                root = WritesetRoot(int(archived.nr_bits[0]), int(archived.roots[0]))
            nr_bits = root.nr_bits
            shape = ArrayShape(layout.blocks_needed(nr_bits, 64), 8)
            if shape.blocks >= now.space_map.nr_blocks:
                raise EraMetadataError(root.root, f"a bitset of {nr_bits} bits does not fit into the metadata")
            return self._arrays.index(root.root, shape, now.space_map.nr_blocks)

        def read(first: int, blocks: Numbers) -> None:
            self._arrays.scan(blocks, first, shape, lambda at, leaves: self._take_bits(at, leaves, nr_bits))

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
            eras = self._writesets(now).eras
            found = ("era", int(eras[0])) if len(eras) else ("idle", now.current_era)
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

    def _take_bits(self, first: int, leaves: Leaves, nr_bits: int) -> None:
        """Add the bits in array blocks ``first`` and following of a bitset of ``nr_bits``."""
        valid = min(nr_bits, self._blocks.nr_blocks)
        words = leaves.view("<u8")[:, HEADER_WORDS // 2 :].reshape(-1)
        begin = first * layout.array_capacity(8)
        words = words[: max(layout.blocks_needed(valid, 64) - begin, 0)]
        if not len(words):
            return
        if begin + len(words) > valid // 64:
            words[-1] &= np.uint64((1 << valid % 64) - 1)
        self._blocks.words[begin : begin + len(words)] |= words

    def _take_eras(self, first: int, leaves: Leaves) -> None:
        """Add the blocks whose era in array blocks ``first`` and following is recent enough."""
        per_block = layout.array_capacity(4)
        eras = leaves[:, HEADER_WORDS:]
        beyond = (first + len(leaves)) * per_block - self._blocks.nr_blocks
        if beyond > 0:
            eras = eras.copy()
            eras[-1, per_block - beyond :] = 0
        self._newest = max(self._newest, int(eras.max()))
        recent = np.greater_equal(eras, np.uint32(self._since), out=self._recent[: len(leaves)])
        marked = np.packbits(recent.reshape(-1), bitorder="little")
        begin = first * per_block // 8
        target = self._bytes[begin : begin + len(marked)]
        target |= marked[: len(target)]
