# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of the fuzzer; ``python -m tests.fuzz.era`` is the long one."""

import random

from tests.fuzz.era import fuzz

COUNT = 3000


def test_mutated_metadata() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    tally = fuzz(COUNT, seed)
    print(tally)
    assert tally.count == COUNT
    # All four ends must occur, or the mutations miss what they are for.
    assert min(tally.ends[end] for end in ("damaged era-metadata-bad", "sealed era-metadata-bad", "sealed read")) > 50
