# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be wrong with era metadata. Every one of them means: nothing is known, compare every block."""

from typing import ClassVar

from dmsoft.errors import BusyError, MetadataError

COMPARE_HINT = "The next resync of this mirror must compare every block."


class EraMetadataError(MetadataError):
    """The record of which blocks were written cannot be read.

    A block of the era metadata is damaged or contradicts another, so what a secondary misses is not known. The data on
    the primary is not touched by that. Stop the mirror and start it again: tracking begins anew, and the next resync
    compares every block. If it happens again, suspect the disk.
    """

    code: ClassVar[str] = "era-metadata-bad"

    def __init__(self, block: int, what: str) -> None:
        """``block`` is the number of the metadata block (4096 bytes each), ``what`` a phrase about it."""
        super().__init__(f"Era metadata block {block}: {what}.", hint=COMPARE_HINT)
        self.block = block
        self.what = what


class EraUnusedError(MetadataError):
    """The record of which blocks were written was made but never used.

    The mirror was never started to the end. Run `dmsoft start NAME`.
    """

    code: ClassVar[str] = "era-metadata-unused"


class EraAheadError(MetadataError):
    """A secondary knows of a time that the primary has not reached.

    The era metadata went back: most likely the primary was restored from an older image of itself. Nothing is believed
    of that secondary, and the next resync compares every block.
    """

    code: ClassVar[str] = "era-ahead"


class SnapshotMissingError(MetadataError):
    """A snapshot of the era metadata was to be read, and there is none.

    Somebody dropped it meanwhile. Run the command again.
    """

    code: ClassVar[str] = "era-snapshot-missing"


class EraBusyError(BusyError):
    """The record of which blocks were written changes faster than it can be read.

    Run the command again when the mirror is less busy. Nothing was changed.
    """

    code: ClassVar[str] = "era-busy"
