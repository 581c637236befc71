# SPDX-License-Identifier: GPL-2.0-or-later
"""The space map, on metadata of era_restore: every byte of it is either verified or said to mean nothing."""

import contextlib
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmsoft.era.errors import EraMetadataError
from dmsoft.era.reader import EraReader
from tests.era_image import BLOCK, seal

INDEX_SALT = 160478
# A second bitmap block begins at 16320 metadata blocks.
BLOCKS = 20000


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space-map")
    xml, path = folder / "xml", folder / "metadata"
    eras = "".join(f'<era block="{block}" era="{block % 3}"/>' for block in range(5000))
    xml.write_text(
        '<superblock uuid="" block_size="128" nr_blocks="5000" current_era="3">'
        f"<era_array>{eras}</era_array></superblock>"
    )
    with path.open("wb") as file:
        file.truncate(BLOCKS * BLOCK)
    subprocess.run(["era_restore", "-i", xml, "-o", path], check=True, capture_output=True)
    return path


def check(path: Path) -> None:
    with EraReader(path) as reader:
        reader.check_space_map()


@contextlib.contextmanager
def patched(path: Path, block: int, data: bytes) -> Iterator[None]:
    """Other bytes in one metadata block for a while."""
    with path.open("r+b", buffering=0) as file:
        before = os.pread(file.fileno(), BLOCK, block * BLOCK)
        os.pwrite(file.fileno(), data, block * BLOCK)
        try:
            yield
        finally:
            os.pwrite(file.fileno(), before, block * BLOCK)


def read(path: Path, block: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), BLOCK, block * BLOCK)


def roots(path: Path) -> tuple[int, list[int], int]:
    """Index block, bitmap blocks and the root of the reference counts."""
    blocks, _, index, counts = struct.unpack_from("<QQQQ", read(path, 0), 44)
    entries = read(path, index)
    return index, [struct.unpack_from("<Q", entries, 16 + 16 * n)[0] for n in range(-(-blocks // 16320))], counts


def test_every_block_of_it_is_verified(metadata: Path, seed: int) -> None:
    check(metadata)
    index, bitmaps, counts = roots(metadata)
    assert len(bitmaps) == 2
    chance = random.Random(seed)
    for block in (index, *bitmaps, counts):
        for _ in range(20):
            damaged = bytearray(read(metadata, block))
            damaged[chance.randrange(BLOCK)] ^= 1 << chance.randrange(8)
            with patched(metadata, block, damaged), pytest.raises(EraMetadataError) as caught:
                check(metadata)
            assert caught.value.block == block


@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [
        (16, BLOCKS, "outside the metadata"),
        (16, 0, "outside the metadata"),
        (24, 16321, "free blocks"),
        (16 + 16, None, "twice"),
        (8, 7, "says it is block"),
    ],
)
def test_absurd_numbers_with_the_right_checksum(metadata: Path, offset: int, value: int | None, what: str) -> None:
    index, bitmaps, _ = roots(metadata)
    damaged = bytearray(read(metadata, index))
    struct.pack_into("<Q", damaged, offset, bitmaps[0] if value is None else value)
    with patched(metadata, index, seal(bytes(damaged), INDEX_SALT)), pytest.raises(EraMetadataError, match=what):
        check(metadata)
