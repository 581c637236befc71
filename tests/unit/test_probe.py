# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe that udev runs: right about headers, silent about all else, unmoved by whatever is on a disk."""

import hashlib
import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.hotplug import probe
from dmsoft.member import prefix
from dmsoft.member.header import HEADER_BYTES, SLOT_BYTES
from dmsoft.member.payload import Secondary
from tests.header_model import member

SCRIPT = Path(probe.__file__)
WHOLE = {
    "DMSOFT_MEMBER": "1", "DMSOFT_ROLE": "secondary", "DMSOFT_MIRROR": "m", "DMSOFT_MIRROR_UUID": "a" * 32,
    "DMSOFT_MEMBER_UUID": "b" * 32, "DMSOFT_LABEL": "b",
}  # fmt: skip


def probed(image: bytes) -> dict[str, str]:
    fd = os.memfd_create("disk")
    try:
        os.write(fd, image)
        return probe.probe(fd)
    finally:
        os.close(fd)


def image(number: int = 1) -> bytes:
    return bytes(member(number).medium)


def test_it_repeats_the_offsets_of_the_header() -> None:
    assert (probe.MAGIC, probe.PREFIX_BYTES, probe.SLOT_BYTES) == (prefix.MAGIC, prefix.PREFIX_BYTES, SLOT_BYTES)
    assert probe.MAX_PAYLOAD_BYTES == prefix.MAX_PAYLOAD_BYTES
    assert set(probe.PROPERTIES) - {"role"} <= set(Secondary.__struct_fields__)


def test_a_member() -> None:
    assert probed(image()) == WHOLE


@pytest.mark.parametrize("damaged", [0, 1])
def test_one_torn_copy_is_enough(damaged: int) -> None:
    torn = bytearray(image())
    torn[damaged * SLOT_BYTES + 4100] ^= 1
    assert probed(torn) == WHOLE


def test_both_copies_torn_is_still_no_other_disk() -> None:
    torn = bytearray(image())
    torn[4100] ^= 1
    torn[SLOT_BYTES + 40] ^= 1
    assert probed(torn) == {"DMSOFT_MEMBER": "1"}


@pytest.mark.parametrize("content", [b"", bytes(HEADER_BYTES), b"\x89DMSOFT\n", os.urandom(HEADER_BYTES)])
def test_other_disks(content: bytes) -> None:
    assert probed(content) == {}


def test_what_is_nested_or_odd_is_not_taken_for_the_members_own() -> None:
    text = json.dumps(
        {
            "role": "secondary", "label": "bad\nDMSOFT_ROLE=primary", "mirror_name": 5, "member_uuid": ["c"],
            "members": [{"mirror_uuid": "no"}], "created": "label", "mirror_uuid": "yes",
        },
        separators=(",", ":"),
    )  # fmt: skip
    assert probe.strings(text.encode()) == {"DMSOFT_ROLE": "secondary", "DMSOFT_MIRROR_UUID": "yes"}


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.text() | st.sampled_from([*probe.PROPERTIES]), inner)))  # fmt: skip
def test_it_finds_what_a_json_parser_finds(value: object) -> None:
    text = json.dumps(value, separators=(",", ":")).encode()
    wanted = {}
    if isinstance(value, dict):
        for name, key in probe.PROPERTIES.items():
            found = value.get(name)
            if isinstance(found, str) and 0 < len(found) <= 64 and probe.LETTERS.issuperset(found):
                wanted[key] = found
    assert probe.strings(text) == wanted


def test_mutated_headers(seed: int) -> None:
    """Bytes changed anywhere, checksums put right or not: it ends, and prints nothing that udev could misread."""
    chance = random.Random(seed)
    good = image()
    fd = os.memfd_create("disk")
    os.write(fd, good)
    for _ in range(2000):
        slot = chance.choice([0, SLOT_BYTES])
        bad = bytearray(good[slot : slot + 8192])
        for _ in range(chance.randint(1, 8)):
            bad[chance.randrange(4096 + 1200)] = chance.randrange(256)
        if chance.random() < 0.5:
            bad[28:32] = chance.choice([0, 1, 4000, 256 << 10, (1 << 32) - 1]).to_bytes(4, "little")
        if chance.random() < 0.7:
            length = int.from_bytes(bad[28:32], "little")
            bad[32:64] = hashlib.sha256(bad[:32] + bytes(32) + bad[64 : 4096 + length]).digest()
        os.pwrite(fd, bad, slot)
        found = probe.probe(fd)
        assert found.get("DMSOFT_MEMBER") == "1"  # the other copy is whole
        for name, value in found.items():
            assert name.startswith("DMSOFT_") and value and probe.LETTERS.issuperset(value)
        os.pwrite(fd, good[slot : slot + 8192], slot)
    os.close(fd)


def test_as_udev_runs_it(tmp_path: Path) -> None:
    """By the script's own first line, and without any library that costs time."""
    disk = tmp_path / "disk"
    disk.write_bytes(image())
    done = subprocess.run([SCRIPT, disk], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == sorted(f"{name}={value}" for name, value in WHOLE.items())
    assert subprocess.run([SCRIPT, tmp_path / "none"], check=False).returncode == 1
    assert SCRIPT.read_text().startswith("#!/usr/bin/python3 -IS\n")
    loaded = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c",
         f"import sys; sys.argv = ['', {str(disk)!r}]; exec(open({str(SCRIPT)!r}).read().replace('sys.exit(main())',"
         "'main()')); print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()[-1].split()  # fmt: skip
    assert not {"re", "json", "os", "hashlib", "dmsoft", "click", "numpy"} & set(loaded)
