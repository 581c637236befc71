# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading while the metadata changes between any two blocks that are read."""

import random
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dmsoft.era import ahead
from dmsoft.era import reader as reader_module
from dmsoft.era.device import MetadataDevice
from dmsoft.era.errors import EraBusyError
from dmsoft.era.layout import BLOCK_BYTES
from dmsoft.era.reader import EraReader
from tests.era_kernel import EraKernel

NR = 1018 * 90 + 11
METADATA_BLOCKS = 700
READINGS = 40


@pytest.mark.parametrize(
    ("pace", "more", "fanout"), [(0.1, 0.1, 8), (0.5, 0.1, 8), (2.0, 0.1, 100), (5.0, 0.1, 252), (1.0, 2.0, 252)]
)
def test_nothing_is_missed(
    pace: float, more: float, fanout: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pace``: blocks the kernel writes while one request is under way. At 5 it commits every two or three.

    ``more``: what one more block in a request costs, in requests.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kernel = EraKernel(rng, NR, METADATA_BLOCKS, fanout)
    debt = 0.0
    alone = threading.Lock()

    def read(_device: MetadataDevice, block: int, views: list[memoryview]) -> None:
        with alone:
            read_alone(block, views)

    def read_alone(block: int, views: list[memoryview]) -> None:
        nonlocal debt
        debt += pace
        for view in views:
            for at in range(0, len(view), BLOCK_BYTES):
                debt += pace * rng.random() * more
                while debt >= 1:
                    kernel.step()
                    debt -= 1
                offset = block * BLOCK_BYTES
                view[at : at + BLOCK_BYTES] = kernel.image[offset : offset + BLOCK_BYTES]
                block += 1

    monkeypatch.setattr(MetadataDevice, "_read", read)
    if more < 1:
        # The array is read in several requests, by threads.
        monkeypatch.setattr(ahead, "READ_BLOCKS", 16)
    monkeypatch.setattr(reader_module, "_TORN_WAIT_SECONDS", 0)
    path = tmp_path / "metadata"
    path.write_bytes(bytes(len(kernel.image)))
    ends: Counter[str] = Counter()
    with EraReader(path) as reader:
        for _ in range(READINGS):
            for _ in range(rng.randint(0, 300)):
                kernel.step()
            era, last, closed = kernel.truth
            since = rng.randint(max(1, era - 6), era)
            commits = kernel.commits
            try:
                blocks = reader.written_since(since).blocks
            except EraBusyError:
                ends["busy"] += 1
                continue
            found = np.unpackbits(np.frombuffer(blocks.bits, np.uint8), bitorder="little")[:NR].astype(np.bool_)
            missing = np.flatnonzero((closed >= since) & ~found)
            assert not len(missing), f"since {since} at {era}: {missing[:10]} are missing"
            ends["current era missed"] += int(((last >= since) & ~found).any())
            ends["more than there was"] += int((found & ~(kernel.last >= since)).any())
            ends["read"] += 1
            ends["commits"] += kernel.commits - commits
    print(dict(ends))
    # No real disk is as slow beside its kernel as the last case has it; there, too, most readings must come through.
    assert ends["read"] >= READINGS * (0.5 if more > 1 else 0.9)
