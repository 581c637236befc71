# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads metadata blocks past the page cache: a buffered reader keeps seeing what a live target has replaced."""

import errno
import mmap
import os
import stat
from collections.abc import Sequence
from typing import Final, Self

from dmsoft.era.errors import EraMetadataError
from dmsoft.era.layout import BLOCK_BYTES
from dmsoft.errors import DeviceError, NotFoundError

# A gap of this many unwanted blocks is read through: cheaper than a second request on any disk.
_GAP_BLOCKS: Final = 16
# The kernel takes 1024 buffers in one request; each wanted run may be followed by one gap.
_MAX_BUFFERS: Final = 1000


def aligned_buffer(blocks: int) -> memoryview:
    """Zeroed memory for ``blocks`` metadata blocks, aligned as O_DIRECT wants it."""
    # Private memory is there sooner than what could be shared.
    return memoryview(mmap.mmap(-1, blocks * BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class MetadataDevice:
    """The metadata region of ``path``, opened read-only and not exclusively (a live target holds it).

    ``offset_bytes`` and ``length_bytes`` are whole metadata blocks; length None is up to the end.
    Raises `NotFoundError`, `DeviceError`.
    """

    def __init__(self, path: str | os.PathLike[str], *, offset_bytes: int = 0, length_bytes: int | None = None) -> None:
        if offset_bytes % BLOCK_BYTES or (length_bytes or 0) % BLOCK_BYTES or offset_bytes < 0:
            raise ValueError("the metadata region must be whole 4096-byte blocks")
        self.path = os.fspath(path)
        self._offset = offset_bytes
        self._fd = _open(self.path)
        try:
            size = os.lseek(self._fd, 0, os.SEEK_END) - offset_bytes
            if length_bytes is not None and length_bytes > size:
                raise DeviceError(f"{path} ends before its era metadata does.")
        except BaseException:
            self.close()
            raise
        self.blocks = (size if length_bytes is None else length_bytes) // BLOCK_BYTES
        self._gap = aligned_buffer(_GAP_BLOCKS)
        self._one = aligned_buffer(1)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_block(self, block: int) -> bytes:
        """The 4096 bytes of one metadata block."""
        self.read_blocks([block], self._one)
        return bytes(self._one)

    def read_blocks(self, blocks: Sequence[int], buffer: memoryview) -> None:
        """Read ``blocks``, in any order, into ``buffer``, one after the other. Long runs are one request."""
        for start, views in self._requests(blocks, buffer):
            self._read(start, views)

    def _requests(self, blocks: Sequence[int], buffer: memoryview) -> list[tuple[int, list[memoryview]]]:
        """Requests (first block, buffers) that fill ``buffer``: neighbours on the disk are put together."""
        requests: list[tuple[int, list[memoryview]]] = []
        end = 0
        for block, place, count in sorted(_runs(blocks)):
            if block < 0 or block + count > self.blocks:
                raise EraMetadataError(block + count - 1, f"is outside the metadata device of {self.blocks} blocks")
            view = buffer[place * BLOCK_BYTES : (place + count) * BLOCK_BYTES]
            gap = block - end
            if requests and 0 <= gap <= _GAP_BLOCKS and len(requests[-1][1]) < _MAX_BUFFERS:
                if gap:
                    requests[-1][1].append(self._gap[: gap * BLOCK_BYTES])
                requests[-1][1].append(view)
            else:
                requests.append((block, [view]))
            end = block + count
        return requests

    def _read(self, block: int, views: list[memoryview]) -> None:
        offset = self._offset + block * BLOCK_BYTES
        while views:
            try:
                done = os.preadv(self._fd, views, offset)
            except OSError as err:
                raise DeviceError(
                    f"Reading era metadata at byte {offset} of {self.path} failed: {err.strerror}."
                ) from err
            done -= done % BLOCK_BYTES
            if not done:
                raise EraMetadataError((offset - self._offset) // BLOCK_BYTES, "the device ends before it")
            offset += done
            while views and done >= len(views[0]):
                done -= len(views.pop(0))
            if done:
                views[0] = views[0][done:]


def _runs(blocks: Sequence[int]) -> list[tuple[int, int, int]]:
    """``blocks`` as runs (first block, place of the first in ``blocks``, length) that ascend by one."""
    runs: list[tuple[int, int, int]] = []
    first = place = 0
    for index, block in enumerate(blocks):
        if index and block == first + index - place:
            continue
        if index:
            runs.append((first, place, index - place))
        first, place = block, index
    if blocks:
        runs.append((first, place, len(blocks) - place))
    return runs


def _open(path: str) -> int:
    """A descriptor past the page cache; a regular file where that is not possible is opened the plain way."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        try:
            return os.open(path, flags | os.O_DIRECT)
        except OSError as err:
            if err.errno != errno.EINVAL or not stat.S_ISREG(os.stat(path).st_mode):
                raise
            return os.open(path, flags)
    except FileNotFoundError as err:
        raise NotFoundError(f"There is no {path}.") from err
    except OSError as err:
        raise DeviceError(f"Opening {path} failed: {err.strerror}.") from err
