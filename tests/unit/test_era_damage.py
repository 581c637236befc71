# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged metadata is an error that names a block, never a smaller set."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dmsoft.era import reader as reader_module
from dmsoft.era.errors import EraMetadataError
from dmsoft.era.reader import EraReader
from tests.era_image import BLOCK, EraModel, ImageWriter

NR = 1018 * 9 + 7
CURRENT_ERA = 12


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_TORN_WAIT_SECONDS", 0)


def image() -> ImageWriter:
    """Three levels of array, two of writeset tree, a current writeset of two blocks."""
    noise = np.random.default_rng(8)
    eras = noise.integers(0, 4, NR, np.uint32)
    writesets = {era: noise.random(NR) < 0.1 for era in (4, 5, 7, 8, 11)}
    writer = ImageWriter(128, fanout=3)
    writer.write(EraModel(eras, CURRENT_ERA, writesets, noise.random(60000) < 0.1))
    return writer


class Roots:
    """Where things are in an image."""

    def __init__(self, writer: ImageWriter) -> None:
        fields = struct.unpack_from("<IQQQ", writer.image[0].tobytes(), 188)
        self.bits, self.current, self.tree, self.array = fields
        self.array_nodes = children(writer, self.array)
        self.array_leaf = children(writer, self.array_nodes[0])[0]
        self.blocks = children(writer, self.array_leaf)
        self.tree_leaves = children(writer, self.tree)


def children(writer: ImageWriter, node: int) -> list[int]:
    data = writer.image[node].tobytes()
    nr, room = struct.unpack_from("<II", data, 16)
    return list(struct.unpack_from(f"<{nr}Q", data, 32 + 8 * room))


def read(path: Path, writer: ImageWriter, era: int = 1) -> int:
    path.write_bytes(writer.image.tobytes())
    with EraReader(path) as reader:
        return reader.written_since(era).blocks.count()


def test_the_image_is_good(tmp_path: Path) -> None:
    assert read(tmp_path / "metadata", image()) > NR * 0.7
    assert read(tmp_path / "metadata", image(), CURRENT_ERA) > NR * 0.05


def test_every_reachable_block_is_checked(tmp_path: Path) -> None:
    """A flipped bit anywhere in a block that was written is found."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    writer, path = image(), tmp_path / "metadata"
    path.write_bytes(writer.image.tobytes())
    with EraReader(path) as reader, path.open("r+b", buffering=0) as file:
        for block in writer.kinds:
            for bit in [*rng.sample(range(40 * 8), 8), *rng.sample(range(BLOCK * 8), 8)]:
                byte = block * BLOCK + bit // 8
                for round_ in range(2):
                    file.seek(byte)
                    (value,) = file.read(1)
                    file.seek(byte)
                    file.write(bytes([value ^ 1 << bit % 8]))
                    if round_:
                        break
                    with pytest.raises(EraMetadataError) as caught:
                        reader.written_since(1)
                    assert caught.value.block == block
        assert reader.written_since(1).blocks.count()


def test_what_was_not_digested_is_read_without_the_array(tmp_path: Path) -> None:
    """It is what a disk of any size has to read while its writers wait."""
    writer, path = image(), tmp_path / "metadata"
    whole = [read(path, writer, era) for era in (4, 8, CURRENT_ERA, CURRENT_ERA + 1)]
    writer.image[Roots(writer).array] = 0
    assert [read(path, writer, era) for era in (4, 8, CURRENT_ERA, CURRENT_ERA + 1)] == whole
    for era in (1, 3, 6):  # digested
        with pytest.raises(EraMetadataError):
            read(path, writer, era)


def test_swapped_blocks(tmp_path: Path) -> None:
    writer = image()
    first, second = Roots(writer).blocks[:2]
    writer.image[[first, second]] = writer.image[[second, first]]
    with pytest.raises(EraMetadataError, match=f"block {first}: .*says block {second}"):
        read(tmp_path / "metadata", writer)


def test_truncated_device(tmp_path: Path) -> None:
    writer, path = image(), tmp_path / "metadata"
    for blocks in (1, 60, 127):
        path.write_bytes(writer.image[:blocks].tobytes())
        with EraReader(path) as reader, pytest.raises(EraMetadataError, match="its device only"):
            reader.written_since(1)
    path.write_bytes(b"")
    with EraReader(path) as reader, pytest.raises(EraMetadataError, match="outside the metadata device"):
        reader.written_since(1)


def test_a_foreign_superblock_is_named(tmp_path: Path) -> None:
    writer = image()
    writer.put(0, 160774, writer.image[0].tobytes())
    with pytest.raises(EraMetadataError, match="a thin-pool superblock"):
        read(tmp_path / "metadata", writer)


Patch = Callable[[ImageWriter, Roots], object]

# What an attacker, or a kernel that went wrong, may write with right checksums: the damage, and what is said of it.
SEALED: dict[str, tuple[Patch, str]] = {
    "superblock number": (lambda w, r: w.patch(0, 8, "Q", 1), "says it is block 1"),
    "magic": (lambda w, r: w.patch(0, 32, "Q", 1), "magic"),
    "version": (lambda w, r: w.patch(0, 40, "I", 2), "version is 2"),
    "space map size": (lambda w, r: w.patch(0, 44, "Q", 1 << 60), "more metadata blocks than the format"),
    "space map use": (lambda w, r: w.patch(0, 52, "Q", 1 << 60), "in use"),
    "data block size 0": (lambda w, r: w.patch(0, 172, "I", 0), "data block size is zero"),
    "data block size": (lambda w, r: w.patch(0, 172, "I", 12), "not whole 4 KiB"),
    "metadata block size": (lambda w, r: w.patch(0, 176, "I", 16), "metadata block size"),
    "too many data blocks": (lambda w, r: w.patch(0, 180, "I", 1 << 31), "more than dm-era can have"),
    "data blocks without room": (lambda w, r: w.patch(0, 180, "I", (1 << 31) - 1), "do not fit"),
    "fewer data blocks": (lambda w, r: w.patch(0, 180, "I", NR - 1018), "lacks blocks .* or has others"),
    "one data block less": (lambda w, r: w.patch(0, 180, "I", NR - 1), "does not fit its place"),
    "more data blocks": (lambda w, r: w.patch(0, 180, "I", NR + 1018), "lacks blocks"),
    "current era": (lambda w, r: w.patch(0, 184, "I", 10), "blocks of era 11 are recorded"),
    "current bits": (lambda w, r: w.patch(0, 188, "I", 0xFFFFFFFF), "does not fit into the metadata"),
    "fewer current bits": (lambda w, r: w.patch(0, 188, "I", 100), "lacks blocks"),
    "current root": (lambda w, r: w.patch(0, 192, "Q", 1 << 40), "is outside"),
    "current root elsewhere": (lambda w, r: w.patch(0, 192, "Q", r.array), "lacks blocks .* or has others"),
    "current root in a leaf": (
        lambda w, r: w.patch(0, 192, "Q", r.blocks[0]),
        "should be a btree node but is an array",
    ),
    "tree root": (lambda w, r: w.patch(0, 200, "Q", 0), "is outside"),
    "tree root elsewhere": (lambda w, r: w.patch(0, 200, "Q", r.array), "values have 8 bytes, not 12"),
    "array root": (lambda w, r: w.patch(0, 208, "Q", 128), "is outside"),
    "snapshot": (lambda w, r: w.patch(0, 216, "Q", 128), "is outside"),
    "node number": (lambda w, r: w.patch(r.array, 8, "Q", 5), "says it is block 5"),
    "node flags none": (lambda w, r: w.patch(r.array, 4, "I", 0), "neither an internal node nor a leaf"),
    "node flags both": (lambda w, r: w.patch(r.array, 4, "I", 3), "neither an internal node nor a leaf"),
    "leaf that says internal": (lambda w, r: w.patch(r.array_leaf, 4, "I", 1), "another level"),
    "node entries": (lambda w, r: w.patch(r.array, 16, "I", 253), "has 253 entries"),
    "node empty": (lambda w, r: w.patch(r.array_leaf, 16, "I", 0), "empty node"),
    "node entries missing": (lambda w, r: w.patch(r.array_leaf, 16, "I", 1), "lacks blocks"),
    "node room": (lambda w, r: w.patch(r.array, 20, "I", 251), "has room for 251"),
    "node value size": (lambda w, r: w.patch(r.array, 24, "I", 4), "values have 4 bytes"),
    "keys equal": (lambda w, r: w.patch(r.array, 40, "Q", 0), "do not ascend"),
    "keys descend": (lambda w, r: w.patch(r.array_leaf, 32, "Q", 5), "do not ascend"),
    "key outside its parent's range": (lambda w, r: w.patch(r.array_leaf, 40, "Q", 900), "outside"),
    "child 0": (lambda w, r: w.patch(r.array, 32 + 8 * 252, "Q", 0), "block 0: .*outside the metadata"),
    "child outside": (lambda w, r: w.patch(r.array, 32 + 8 * 252, "Q", 1 << 63), "outside the metadata"),
    "cycle": (lambda w, r: w.patch(r.array, 32 + 8 * 252, "Q", r.array), "occurs twice"),
    "child twice": (lambda w, r: w.patch(r.array, 40 + 8 * 252, "Q", r.array_nodes[0]), "occurs twice"),
    "array block 0": (lambda w, r: w.patch(r.array_leaf, 32 + 8 * 252, "Q", 0), "outside the metadata"),
    "array block outside": (lambda w, r: w.patch(r.array_leaf, 32 + 8 * 252, "Q", 1 << 50), "outside the metadata"),
    "array block twice": (lambda w, r: w.patch(r.array_leaf, 40 + 8 * 252, "Q", r.blocks[0]), "one block twice"),
    "array room": (lambda w, r: w.patch(r.blocks[0], 4, "I", 1017), "does not fit its place"),
    "array entries": (lambda w, r: w.patch(r.blocks[0], 8, "I", 1017), "does not fit its place"),
    "array value size": (lambda w, r: w.patch(r.blocks[0], 12, "I", 8), "does not fit its place"),
    "array number": (lambda w, r: w.patch(r.blocks[0], 16, "Q", 99), "does not fit its place"),
    "era from the future": (lambda w, r: w.patch(r.blocks[0], 24, "I", 13), "blocks of era 13 are recorded"),
    "writeset without root": (lambda w, r: w.patch(r.tree_leaves[0], 32 + 8 * 201 + 4, "Q", 0), "without its bits"),
    "writeset's era": (lambda w, r: w.patch(r.tree_leaves[1], 48, "Q", 1 << 33), "no era"),
    "writesets larger than everything": (
        lambda w, r: w.patch(r.tree_leaves[0], 32 + 8 * 201, "I", 0xFFFFFFFF),
        "larger than the metadata",
    ),
    "two eras, one bitset": (
        lambda w, r: w.patch(
            r.tree_leaves[0], 36 + 8 * 201, "Q", struct.unpack_from("<Q", w.image[r.tree_leaves[0]], 48 + 8 * 201)[0]
        ),
        "the same bitset",
    ),
}


@pytest.mark.parametrize("name", SEALED)
def test_right_checksums_wrong_content(name: str, tmp_path: Path) -> None:
    writer = image()
    patch, complaint = SEALED[name]
    patch(writer, Roots(writer))
    with pytest.raises(EraMetadataError, match=complaint):
        read(tmp_path / "metadata", writer)


def test_a_tree_without_end(tmp_path: Path) -> None:
    """A chain of nodes with one child each is cut off, however long it is."""
    writer = image()
    roots = Roots(writer)
    node = roots.array
    for _ in range(20):
        node = writer.node(1, [(0, struct.pack("<Q", node))], 8)
    writer.patch(0, 208, "Q", node)
    with pytest.raises(EraMetadataError, match="deeper than"):
        read(tmp_path / "metadata", writer)


def test_damage_in_the_snapshot_only(tmp_path: Path) -> None:
    writer, path = ImageWriter(64), tmp_path / "metadata"
    live, old = EraModel(np.full(50, 3, np.uint32), 5), EraModel(np.full(50, 2, np.uint32), 4)
    live.snapshot = old
    writer.write(live)
    (snapshot,) = struct.unpack_from("<Q", writer.image[0].tobytes(), 216)
    writer.image[snapshot, 100] ^= 1
    assert read(path, writer) == 50
    with EraReader(path) as reader, pytest.raises(EraMetadataError, match=f"block {snapshot}"):
        reader.written_since(1, snapshot=True)
