# SPDX-License-Identifier: GPL-2.0-or-later
"""Short runs of the fuzzers, and longer ones; ``./dev fuzz`` goes on as long as one likes."""

import pytest

from tests.fuzz.__main__ import FUZZERS, main

# How many are tried in about half a second, and ends that must occur, or the fuzzer misses what it is for.
SHORT = {
    "headers": (150, ("not-authentic", "metadata-bad", "no header")),
    "journals": (150, ("damaged old",)),
    "era": (1500, ("damaged era-metadata-bad", "sealed era-metadata-bad", "sealed read")),
    "files": (
        1000,
        ("key key-file", "entry nothing", "progress nothing", "lock read", "plug nothing", "bulletin read"),
    ),
    "texts": (
        5000,
        ("status target-text", "table read", "mounts ValueError", "wipefs probe", "ways usage", "links read"),
    ),
    "commands": (120, ("status 0", "status 2", "status 5")),
}


@pytest.mark.parametrize("name", FUZZERS)
@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.long)])
def test_nothing_misleads(name: str, times: int, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    count, ends = SHORT[name]
    tally = FUZZERS[name](times * count, seed)
    with capsys.disabled():
        print(f"\n{name}, seed {seed}: {tally}", flush=True)
    assert tally.count == times * count
    assert all(tally.ends[end] for end in ends), tally


def test_a_campaign_says_what_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["texts", "files", "--count", "200", "--seed", "7"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "seed 7"
    assert [line.split(",")[0] for line in said[1:]] == ["texts", "files"] and all(
        "200 tries" in line for line in said[1:]
    )
