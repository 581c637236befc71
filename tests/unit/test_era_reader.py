# SPDX-License-Identifier: GPL-2.0-or-later
"""The reader on whole images: those of the shipped tools, and those of the tests' own writer."""

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dmsoft.era.blocks import BlockSet
from dmsoft.era.errors import EraAheadError, EraMetadataError, EraUnusedError, SnapshotMissingError
from dmsoft.era.reader import EraReader
from dmsoft.errors import DeviceError, NotFoundError
from tests.era_image import Bits, EraModel, ImageWriter, random_bits, random_model, write_image


def bits_of(blocks: BlockSet) -> Bits:
    return np.unpackbits(np.frombuffer(blocks.bits, np.uint8), bitorder="little")[: blocks.nr_blocks].astype(np.bool_)


def assert_reads(path: Path, model: EraModel, *, snapshot: bool = False) -> None:
    """Every question that can be asked of the image has the naive rule's answer."""
    with EraReader(path) as reader:
        for era in range(model.current_era + 2):
            changes = reader.written_since(era, snapshot=snapshot)
            assert changes.superblock.nr_blocks == len(model.eras)
            assert np.array_equal(bits_of(changes.blocks), model.since(era)), f"era {era}"
        with pytest.raises(EraAheadError):
            reader.written_since(model.current_era + 2, snapshot=snapshot)


@pytest.mark.parametrize("number", range(60))
def test_random_images(number: int, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    model = random_model(rng)
    path = tmp_path / "metadata"
    write_image(path, model, fanout=rng.choice([3, 5, 252]), seed=rng.choice([None, number]))
    assert_reads(path, model)
    with EraReader(path) as reader:
        assert reader.superblock().current_era == model.current_era
        assert reader.superblock().block_bytes == 65536
    if model.snapshot:
        model.snapshot.current = None
        assert_reads(path, model.snapshot, snapshot=True)
    else:
        with EraReader(path) as reader, pytest.raises(SnapshotMissingError):
            reader.written_since(1, snapshot=True)


def test_deep_tree_and_many_batches(tmp_path: Path) -> None:
    """More array blocks than one read takes, under a tree of several levels, all over the device."""
    noise = np.random.default_rng(3)
    nr = 1018 * 1500 + 5
    eras = noise.integers(0, 7, nr, np.uint32)
    model = EraModel(eras, 8, {7: noise.random(nr) < 0.001}, noise.random(nr + 99) < 0.001)
    path = tmp_path / "metadata"
    write_image(path, model, blocks=4096, fanout=7, seed=1)
    with EraReader(path) as reader:
        for era in (1, 6, 7, 8):
            assert np.array_equal(bits_of(reader.written_since(era).blocks), model.since(era))


def test_region_of_a_larger_file(tmp_path: Path) -> None:
    model = random_model(random.Random(5))
    image = ImageWriter(512).write(model).tobytes()
    path = tmp_path / "disk"
    path.write_bytes(b"\xff" * 8192 + image + b"\xff" * 4096)
    with EraReader(path, offset_bytes=8192, length_bytes=len(image)) as reader:
        assert np.array_equal(bits_of(reader.written_since(1).blocks), model.since(1))
    with pytest.raises(DeviceError):
        EraReader(path, offset_bytes=8192, length_bytes=len(image) + 8192)
    with EraReader(path) as reader, pytest.raises(EraMetadataError, match="block 0"):
        reader.superblock()


def test_bad_regions(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8192))
    for arguments in ({"offset_bytes": 512}, {"length_bytes": 100}, {"offset_bytes": -4096}):
        with pytest.raises(ValueError):
            EraReader(path, **arguments)
    with pytest.raises(NotFoundError):
        EraReader(tmp_path / "nothing")
    with pytest.raises(DeviceError):
        EraReader(tmp_path)


def test_zeroed_metadata(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    path.write_bytes(bytes(1 << 20))
    with EraReader(path) as reader:
        assert reader.is_zero()
        assert reader.block_digest() == "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7"
        with pytest.raises(EraMetadataError, match="all zero"):
            reader.superblock()
        with pytest.raises(EraMetadataError):
            reader.written_since(1)


def test_metadata_that_was_never_used(tmp_path: Path) -> None:
    """An empty set of no blocks would look like "nothing was written"."""
    path = tmp_path / "metadata"
    write_image(path, EraModel(np.zeros(0, np.uint32), 0))
    with EraReader(path) as reader:
        assert reader.superblock().nr_blocks == 0
        assert not reader.is_zero()
        with pytest.raises(EraUnusedError):
            reader.written_since(0)


def test_negative_era(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    write_image(path, EraModel(np.ones(5, np.uint32), 3))
    with EraReader(path) as reader, pytest.raises(ValueError):
        reader.written_since(-1)


def xml_of(model: EraModel) -> str:
    """``model`` as `era_restore` takes it; it knows neither current writeset nor snapshot."""
    rows = [f'<superblock uuid="" block_size="128" nr_blocks="{len(model.eras)}" current_era="{model.current_era}">']
    for era, bits in model.writesets.items():
        rows.append(f'<writeset era="{era}" nr_bits="{len(bits)}">')
        rows += [f'<bit block="{block}" value="{str(bool(bit)).lower()}"/>' for block, bit in enumerate(bits)]
        rows.append("</writeset>")
    rows.append("<era_array>")
    rows += [f'<era block="{block}" era="{era}"/>' for block, era in enumerate(model.eras)]
    return "\n".join([*rows, "</era_array>", "</superblock>"])


@pytest.mark.parametrize("number", range(6))
def test_images_of_era_restore(number: int, tmp_path: Path, seed: int) -> None:
    model = random_model(random.Random(seed), snapshot=False)
    model.current = None
    model.writesets = {
        era: np.resize(bits, len(model.eras)) for era, bits in model.writesets.items() if era < model.current_era
    }
    xml, path = tmp_path / "xml", tmp_path / "metadata"
    xml.write_text(xml_of(model))
    path.write_bytes(bytes(4 << 20))
    subprocess.run(["era_restore", "-i", xml, "-o", path], check=True, capture_output=True)
    assert_reads(path, model)


def call(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("number", range(6))
def test_the_writer_against_era_dump(number: int, tmp_path: Path, seed: int) -> None:
    """The tests' own images are dm-era metadata to others, too."""
    rng = random.Random(seed)
    model = random_model(rng, snapshot=False)
    noise = np.random.default_rng(seed)
    # Releases from 1.0 on want eras without a gap up to the current one, as a running kernel leaves them, and print
    # bitsets of another length than the device's wrongly.
    eras = range(max(model.current_era - rng.randint(0, 3), 1), model.current_era)
    model.writesets = {era: np.resize(random_bits(rng, noise, len(model.eras)), len(model.eras)) for era in eras}
    model.current = np.resize(random_bits(rng, noise, len(model.eras)), len(model.eras))
    path = tmp_path / "metadata"
    write_image(path, model, seed=number)
    dumped = call("era_dump", path)
    if not call("era_dump", "--version").startswith("0."):
        # They print the current writeset as one more.
        model.writesets[model.current_era] = model.current
    assert "".join(dumped.split()) == "".join(xml_of(model).split())
