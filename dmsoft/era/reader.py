# SPDX-License-Identifier: GPL-2.0-or-later
"""The one way to read a mirror's era metadata."""

import os
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Final, Self

from dmsoft.era.device import MetadataDevice
from dmsoft.era.errors import EraBusyError, EraMetadataError, SnapshotMissingError
from dmsoft.era.superblock import Superblock, WritesetRoot, parse_superblock

if TYPE_CHECKING:
    from dmsoft.era.array import ArrayReader
    from dmsoft.era.btree import BtreeReader
    from dmsoft.era.changes import Changes

# A superblock read while it is being written may be torn; one that stays the same is damaged.
_TORN_READS: Final = 8
_TORN_WAIT_SECONDS: Final = 0.002


class EraReader:
    """Reads the era metadata in ``path``, live or not, and changes nothing.

    ``path`` is the metadata device, or a device or file that has it at ``offset_bytes`` for ``length_bytes`` (None:
    to the end). Raises `NotFoundError`, `DeviceError`; the methods also `EraMetadataError`.
    """

    def __init__(self, path: str | os.PathLike[str], *, offset_bytes: int = 0, length_bytes: int | None = None) -> None:
        self._device = MetadataDevice(path, offset_bytes=offset_bytes, length_bytes=length_bytes)

    def close(self) -> None:
        if "_arrays" in self.__dict__:
            self._arrays.close()
        self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def superblock(self) -> Superblock:
        """The live superblock, verified."""
        return self._load(0)

    def block_digest(self) -> str:
        """SHA-256 (hex) of metadata block 0, whatever is in it."""
        import hashlib

        return hashlib.sha256(self._device.read_block(0)).hexdigest()

    def is_zero(self) -> bool:
        """True if metadata block 0 is all zero: the kernel would format it without being asked."""
        return not any(self._device.read_block(0))

    def written_since(self, era: int, *, snapshot: bool = False) -> "Changes":
        """The blocks written in ``era`` or later, never too few; what "later" ends with is `Changes.superblock`.

        ``snapshot`` reads the metadata snapshot, which covers the eras before its own, never its current writeset.
        Raises `EraMetadataError` at any doubt, `EraAheadError` if the metadata has not come to ``era`` yet,
        `EraUnusedError`, `SnapshotMissingError`, and `EraBusyError` if metadata never held still.
        """
        from dmsoft.era.changes import Walk

        if era < 0:
            raise ValueError("eras are not negative")
        load = self._snapshot_loader() if snapshot else self.superblock
        return Walk(load, self._btree, self._arrays, era).run()

    def check_space_map(self) -> None:
        """Verify what the kernel, but no reader of eras, needs; only for metadata that lies still.

        Raises `EraMetadataError`.
        """
        from dmsoft.era.spacemap import check_space_map

        check_space_map(self._device, self.superblock().space_map)

    def undigested(self) -> list[int]:
        """Of each writeset that waits to be digested the number of bits, eldest first."""
        from dmsoft.era.changes import WRITESET
        from dmsoft.era.settle import Patience

        def read() -> list[int]:
            now = self.superblock()
            limit = now.space_map.nr_blocks
            found = self._btree.entries(now.writeset_tree_root, value_size=12, max_entries=limit, limit=limit)
            return [nr_bits for nr_bits, _ in WRITESET.iter_unpack(found.values)]

        return Patience(self.superblock, _TORN_READS).keep_trying(read)

    @cached_property
    def _btree(self) -> "BtreeReader":
        from dmsoft.era.btree import BtreeReader

        return BtreeReader(self._device)

    @cached_property
    def _arrays(self) -> "ArrayReader":
        from dmsoft.era.array import ArrayReader

        return ArrayReader(self._device)

    def _load(self, location: int) -> Superblock:
        last = b""
        for _ in range(_TORN_READS):
            block = self._device.read_block(location)
            try:
                return parse_superblock(block, location=location, device_blocks=self._device.blocks)
            except EraMetadataError:
                if block == last:
                    raise
            last = block
            time.sleep(_TORN_WAIT_SECONDS)
        raise EraBusyError("The era superblock changes faster than it can be read.")

    def _snapshot_loader(self) -> Callable[[], Superblock]:
        """Reads the snapshot's superblock, which must stay what it is at the first reading."""
        first: Superblock | None = None

        def load() -> Superblock:
            nonlocal first
            location = self.superblock().metadata_snap
            if not location and first is None:
                raise SnapshotMissingError("The era metadata has no metadata snapshot.")
            # Its current writeset is the live one's, whose blocks are written and reused.
            clone = self._load(location)
            clone = clone._replace(current_writeset=WritesetRoot(clone.current_writeset.nr_bits, 0))
            if clone != (first or clone):
                raise EraBusyError("The metadata snapshot was dropped or replaced while it was read.")
            first = clone
            return clone

        return load
