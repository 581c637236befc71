# SPDX-License-Identifier: GPL-2.0-or-later
"""The fuzzers by name, and a part of a campaign, as a process of its own runs it."""

import faulthandler
import sys
from collections.abc import Callable

from tests.fuzz import commands, era, files, headers, journals, texts
from tests.fuzz.tally import Tally

# Each takes a number of tries and a seed, and raises `AssertionError` at the first wrong answer.
FUZZERS: dict[str, Callable[[int, int], Tally]] = {
    "headers": headers.fuzz,
    "journals": journals.fuzz,
    "era": era.fuzz,
    "files": files.fuzz,
    "texts": texts.fuzz,
    "commands": commands.fuzz,
}
# Whoever waits for ever uses no processor: a part that takes this long is ended, and `faulthandler` says where it was.
_HANG_SECONDS = 3600


def part(name: str, count: int, seed: int) -> Tally:
    faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True, file=sys.__stderr__)
    return FUZZERS[name](count, seed)
