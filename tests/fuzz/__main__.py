# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev fuzz [NAME]...``: damages what dmsoft reads from others, and sees that it is not misled.

Without a NAME all of them, one after the other. A run stops at the first wrong answer, with the seed that repeats it.
"""

import argparse
import multiprocessing
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.fuzz.part import FUZZERS, part
from tests.fuzz.tally import Tally

_PART = 20_000


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *FUZZERS], help=", ".join(FUZZERS))
    parser.add_argument("--count", type=int, default=100_000, help="tries of each (default %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--jobs", type=int, default=1, help="processes (default %(default)s)")
    options = parser.parse_args(argv)
    print(f"seed {options.seed}", flush=True)
    count = min(_PART, options.count)
    seeds = range(options.seed, options.seed + -(-options.count // count))
    # Not by a fork: whoever watches a test for a hang has a thread and a lock, and a child would have the lock alone.
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for name in options.names or FUZZERS:
            total, begin = Tally(), time.monotonic()
            for number, tally in enumerate(pool.map(partial(part, name, count), seeds), 1):
                total.add(tally)
                if number % 5 == 0 or number == len(seeds):
                    print(f"{name}, {time.monotonic() - begin:.0f} s: {total}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
