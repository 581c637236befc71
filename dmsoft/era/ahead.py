# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads many metadata blocks in order, with the next requests under way while the last one is looked at."""

import threading
from collections.abc import Generator
from queue import SimpleQueue
from typing import Final

from dmsoft.era import layout
from dmsoft.era.device import MetadataDevice, aligned_buffer
from dmsoft.era.layout import Numbers
from dmsoft.threads import launch

# Blocks read by one request, and requests under way, so that the disk never waits for the processor.
READ_BLOCKS: Final = 128
_REQUESTS: Final = 3


class Buffer:
    """Memory for one request, and what is handed out of it over and over again."""

    def __init__(self, blocks: int) -> None:
        self.memory = aligned_buffer(blocks)
        starts = range(0, len(self.memory), layout.BLOCK_BYTES)
        self.blocks = [self.memory[at : at + layout.BLOCK_BYTES] for at in starts]
        self.summed = [block[4:] for block in self.blocks]
        self.headers = [block[: layout.ARRAY_HEADER_BYTES] for block in self.blocks]


class _Request:
    """One read into ``buffer``, by a thread; ``done`` gets its error, or None."""

    def __init__(self, blocks: Numbers, buffer: Buffer) -> None:
        self.blocks = blocks
        self.buffer = buffer
        self.done: SimpleQueue[BaseException | None] = SimpleQueue()


class ReadAhead:
    """Threads that read from ``device``; they are started when there is something for them to do."""

    def __init__(self, device: MetadataDevice) -> None:
        self._device = device
        self._buffers: list[Buffer] = []
        self._threads: list[threading.Thread] = []
        self._wanted: SimpleQueue[_Request | None] = SimpleQueue()

    def close(self) -> None:
        for _ in self._threads:
            self._wanted.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def read(self, blocks: Numbers) -> Generator[tuple[int, Numbers, Buffer], None, None]:
        """Parts of ``blocks``: the index of the first, the part, and a buffer that has it until the next is asked for.

        To be closed before the next reading. Raises `EraMetadataError`, `DeviceError`.
        """
        parts = [(at, blocks[at : at + READ_BLOCKS]) for at in range(0, len(blocks), READ_BLOCKS)]
        if len(parts) == 1:
            self._device.read_blocks(blocks, self._buffer(0).memory)
            yield 0, blocks, self._buffer(0)
            return
        under_way: list[_Request] = []
        try:
            for number, (at, part) in enumerate(parts):
                for coming in range(number + len(under_way), min(number + _REQUESTS + 1, len(parts))):
                    under_way.append(self._begin(parts[coming][1], self._buffer(coming)))
                request = under_way.pop(0)
                error = request.done.get()
                if error is not None:
                    raise error
                yield at, part, request.buffer
        finally:
            # Nothing may write into the buffers behind the back of the next reading.
            for request in under_way:
                request.done.get()

    def _buffer(self, number: int) -> Buffer:
        """Memory for part ``number``: there is one more than are read at a time, which is the one looked at."""
        number %= _REQUESTS + 1
        while len(self._buffers) <= number:
            self._buffers.append(Buffer(READ_BLOCKS))
        return self._buffers[number]

    def _begin(self, blocks: Numbers, buffer: Buffer) -> _Request:
        if len(self._threads) < _REQUESTS:
            thread = threading.Thread(target=self._serve, name="era-read", daemon=True)
            launch(thread)
            self._threads.append(thread)
        request = _Request(blocks, buffer)
        self._wanted.put(request)
        return request

    def _serve(self) -> None:
        while (request := self._wanted.get()) is not None:
            error: BaseException | None = None
            try:
                self._device.read_blocks(request.blocks, request.buffer.memory)
            except BaseException as err:
                error = err
            request.done.put(error)
