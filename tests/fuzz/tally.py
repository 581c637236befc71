# SPDX-License-Identifier: GPL-2.0-or-later
"""What every fuzzer counts, and the limits that it holds its victim to."""

import contextlib
import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

# Processor seconds, so that other work on the machine does not fail this. Most answers take about a millisecond.
MOST_SECONDS = 1.0
MOST_MEMORY_GROWTH = 64 << 20


@dataclass
class Tally:
    """How the tries ended."""

    count: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def add(self, other: "Tally") -> None:
        self.count += other.count
        self.ends += other.ends
        self.slowest = max(self.slowest, other.slowest)

    @contextlib.contextmanager
    def bounded(self, what: str) -> Iterator[None]:
        """One try, of which ``what`` tells how to repeat it: it takes little time and memory, or `AssertionError`."""
        begin, memory = time.process_time(), _peak_memory()
        try:
            yield
        except Exception as err:
            err.add_note(what)
            raise
        took = time.process_time() - begin
        assert took < MOST_SECONDS, f"{what}: took {took:.1f} s"
        assert _peak_memory() - memory < MOST_MEMORY_GROWTH, f"{what}: took too much memory"
        self.count += 1
        self.slowest = max(self.slowest, took)

    def __str__(self) -> str:
        ends = ", ".join(f"{name} {count:,}" for name, count in sorted(self.ends.items()))
        return f"{self.count:,} tries, the slowest {self.slowest:.3f} s: {ends}"


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
