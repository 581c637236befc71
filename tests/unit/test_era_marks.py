# SPDX-License-Identifier: GPL-2.0-or-later
"""The inner loops, compiled and not, against bits that are set one by one."""

import random
import struct
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.era import marks, slow_marks
from dmsoft.era.layout import ARRAY_HEADER_BYTES, BLOCK_BYTES, array_capacity
from dmsoft.era.reader import EraReader
from tests.era_image import random_model, write_image

ERAS, WORDS = array_capacity(4), array_capacity(8)


def compiled() -> ModuleType:
    pytest.importorskip("dmsoft.era._marks", reason="no compiler was there when dmsoft was installed")
    from dmsoft.era import _marks

    return _marks


@pytest.fixture(params=["compiled", "slow"])
def loops(request: pytest.FixtureRequest) -> ModuleType:
    return compiled() if request.param == "compiled" else slow_marks


def array_blocks(count: int, values: list[int], code: str) -> memoryview:
    """``count`` array blocks with ``values``, and what must not matter everywhere else."""
    per_block = (BLOCK_BYTES - ARRAY_HEADER_BYTES) // struct.calcsize("<" + code)
    noise = random.Random(len(values))
    image = bytearray(noise.randbytes(count * BLOCK_BYTES))
    for index, value in enumerate(values):
        block, place = divmod(index, per_block)
        struct.pack_into(
            "<" + code, image, block * BLOCK_BYTES + ARRAY_HEADER_BYTES + place * (8 if code == "Q" else 4), value
        )
    return memoryview(image)


def members(bits: bytes | bytearray) -> set[int]:
    return {8 * index + bit for index, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1}


def words_for(blocks: int) -> bytearray:
    return bytearray(8 * -(-blocks // 64))


@pytest.mark.parametrize("first", [0, 1, 3, 32])
@pytest.mark.parametrize("cut", [0, 1, 63, 64, 1000, ERAS, ERAS + 5])
@pytest.mark.parametrize("since", [1, 5, 1 << 31, (1 << 32) - 1])
def test_take_eras(loops: ModuleType, first: int, cut: int, since: int) -> None:
    """Also where the blocks end within an array block, and where they end before it."""
    chance = random.Random(f"{first} {cut} {since}")
    eras = [chance.choice([0, since - 1, since, min(since + 1, (1 << 32) - 1), 3]) for _ in range(2 * ERAS)]
    blocks = max((first + 2) * ERAS - cut, 0)
    bits = words_for(blocks)
    bits[0] |= 1  # what is in the set stays
    valid = {first * ERAS + index: era for index, era in enumerate(eras) if first * ERAS + index < blocks}
    newest = loops.take_eras(bits, blocks, first, array_blocks(2, eras, "I"), since)
    assert newest == max((era for era in valid.values() if era >= since), default=0)
    assert members(bits) == {0} | {block for block, era in valid.items() if era >= since}


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("valid", [0, 1, 63, 64, 65, 64 * WORDS, 64 * WORDS + 7, 2 * 64 * WORDS - 1, 4 * 64 * WORDS])
def test_take_bits(loops: ModuleType, first: int, valid: int) -> None:
    chance = random.Random(f"{first} {valid}")
    words = [chance.randrange(1 << 64) & chance.randrange(1 << 64) for _ in range(2 * WORDS)]
    bits = words_for(4 * 64 * WORDS)
    bits[-1] |= 0x80
    loops.take_bits(bits, valid, first, array_blocks(2, words, "Q"))
    there = {
        64 * (first * WORDS + index) + bit for index, word in enumerate(words) for bit in range(64) if word >> bit & 1
    }
    assert members(bits) == {8 * len(bits) - 1} | {block for block in there if block < valid}


@given(st.binary(max_size=40).map(lambda data: bytearray(data + bytes(-len(data) % 8))), st.data())
def test_flips(bits: bytearray, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(bits) // 8))
    end = data.draw(st.integers(begin, len(bits) // 8))
    there = members(bits)
    wanted = [block for block in range(64 * begin, 64 * end) if (block in there) != (block - 1 in there)]
    for module in (compiled(), slow_marks):
        assert memoryview(module.flips(bits, begin, end)).cast("q").tolist() == wanted


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("take_eras", (bytearray(8), 65, 0, memoryview(bytes(BLOCK_BYTES)), 1)),
        ("take_eras", (bytearray(7), 50, 0, memoryview(bytes(BLOCK_BYTES)), 1)),
        ("take_eras", (bytearray(8), 64, 0, memoryview(bytes(BLOCK_BYTES - 1)), 1)),
        ("take_eras", (bytearray(8), 64, 1 << 60, memoryview(bytes(BLOCK_BYTES)), 1)),
        ("take_bits", (bytearray(8), 65, 0, memoryview(bytes(BLOCK_BYTES)))),
        ("take_bits", (bytearray(8), 1 << 63, 0, memoryview(bytes(BLOCK_BYTES)))),
        ("flips", (bytearray(8), 0, 2)),
        ("flips", (bytearray(8), 1, 0)),
        ("flips", (bytearray(7), 0, 0)),
    ],
)
def test_compiled_loops_stay_in_their_buffers(name: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError):
        getattr(compiled(), name)(*arguments)


@pytest.mark.parametrize("number", range(10))
def test_the_reader_finds_the_same_without_a_compiler(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    model = random_model(random.Random(seed + number))
    path = tmp_path / "metadata"
    write_image(path, model)
    for name in ("take_eras", "take_bits", "flips"):
        monkeypatch.setattr(marks, name, getattr(slow_marks, name))
    with EraReader(path) as reader:
        for era in range(model.current_era + 2):
            found = [
                block
                for first, count in reader.written_since(era).blocks.runs()
                for block in range(first, first + count)
            ]
            assert found == model.since(era).nonzero()[0].tolist(), f"era {era}"
