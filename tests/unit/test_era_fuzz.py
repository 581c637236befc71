# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of the fuzzer, and a longer one; ``python -m tests.fuzz.era`` makes a million mutations."""

import pytest

from tests.fuzz.era import fuzz


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_metadata(count: int, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    tally = fuzz(count, seed)
    with capsys.disabled():
        print(f"\nseed {seed}: {tally}", flush=True)
    assert tally.count == count
    # All of these ends must occur, or the mutations miss what they are for.
    assert min(tally.ends[end] for end in ("damaged era-metadata-bad", "sealed era-metadata-bad", "sealed read")) > 50
