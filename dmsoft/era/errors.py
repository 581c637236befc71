# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be wrong with era metadata. Every one of them means: nothing is known, compare every block."""

from typing import ClassVar

from dmsoft.errors import BusyError, MetadataError

COMPARE_HINT = "The next resync of this mirror must compare every block."


class EraMetadataError(MetadataError):
    """A metadata block does not verify or contradicts another. ``block`` is its number (4096-byte units)."""

    code: ClassVar[str] = "era-metadata-bad"

    def __init__(self, block: int, what: str) -> None:
        super().__init__(f"Era metadata block {block}: {what}.", hint=COMPARE_HINT)
        self.block = block
        self.what = what


class EraUnusedError(MetadataError):
    """The metadata was formatted but its target never resumed, so that it knows of no block yet."""

    code: ClassVar[str] = "era-metadata-unused"


class EraAheadError(MetadataError):
    """The era asked for lies in the metadata's future: it went backwards or is another metadata."""

    code: ClassVar[str] = "era-ahead"


class SnapshotMissingError(MetadataError):
    """A metadata snapshot was asked for and there is none."""

    code: ClassVar[str] = "era-snapshot-missing"


class EraBusyError(BusyError):
    """The metadata changed faster than it could be read, or was resized or replaced meanwhile."""

    code: ClassVar[str] = "era-busy"
