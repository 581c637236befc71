# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev fuzz [NAME]...``: damages what dmsoft reads from others, and sees that it is not misled.

Without a NAME all of them, one after the other. A run stops at the first wrong answer, with the seed that repeats it.
"""

import argparse
import faulthandler
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

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
_PART = 20_000
# Whoever waits for ever uses no processor: a part that takes this long is ended, and `faulthandler` says where it was.
_HANG_SECONDS = 3600


def _part(name: str, count: int, seed: int) -> Tally:
    faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True, file=sys.__stderr__)
    return FUZZERS[name](count, seed)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *FUZZERS], help=", ".join(FUZZERS))
    parser.add_argument("--count", type=int, default=100_000, help="tries of each (default %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--jobs", type=int, default=1, help="processes (default %(default)s)")
    options = parser.parse_args(argv)
    print(f"seed {options.seed}", flush=True)
    part = min(_PART, options.count)
    seeds = range(options.seed, options.seed + -(-options.count // part))
    with ProcessPoolExecutor(options.jobs) as pool:
        for name in options.names or FUZZERS:
            total, begin = Tally(), time.monotonic()
            for number, tally in enumerate(pool.map(partial(_part, name, part), seeds), 1):
                total.add(tally)
                if number % 5 == 0 or number == len(seeds):
                    print(f"{name}, {time.monotonic() - begin:.0f} s: {total}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
