# SPDX-License-Identifier: GPL-2.0-or-later
"""One secondary in the daemon's care: how far it lags, and when it is to be caught up. Pure; times are seconds."""

import math
from dataclasses import dataclass
from typing import Final

from dmsoft.monitor.facts import SecondaryFacts

NEVER: Final = math.inf
# What is written behind by the kernel is proved by comparing, but not all the time.
PROOF_SECONDS: Final = 3600.0
_HOPELESS: Final = frozenset({"failed", "diverged", "missing", "away"})


@dataclass(slots=True)
class Care:
    """One secondary. ``clean_at`` is the last moment of which it has everything, ``writes`` the count of writes that
    went with it while that lasts; ``urgent``: it is not to wait for its interval; ``took`` how long its last catch-up
    took; ``missed``: it lags further than promised; ``unproved``:
    coupled since ``since``, it was written to after the last comparison, when the count was ``proved_writes``."""

    facts: SecondaryFacts
    since: float
    clean_at: float | None = None
    writes: int | None = None
    urgent: bool = False
    retry_at: float = 0.0
    failures: int = 0
    took: float = 0.0
    missed: bool = False
    unproved: bool = True
    proved_writes: int | None = None
    error: str | None = None

    def due(self) -> float:
        """When to catch it up."""
        facts = self.facts
        if facts.here is None or facts.state in _HOPELESS:
            return NEVER
        if facts.mode == "write-behind":
            wanted = self._proof() if facts.state == "attached" else self._coupling()
        elif self.writes is not None or not facts.interval:
            wanted = NEVER
        else:
            start = self.since if self.clean_at is None else self.clean_at
            wanted = start + facts.interval - self._lead()
        if self.urgent:
            wanted = min(wanted, self.since)
        return max(wanted, self.retry_at)

    def _coupling(self) -> float:
        return self.since if self.facts.copied else self.since + self.facts.interval

    def _proof(self) -> float:
        """When what was written to a coupled secondary is compared, after which it counts as copied."""
        if not self.facts.interval or not self.unproved:
            return NEVER
        return self.since + max(self.facts.interval, PROOF_SECONDS)

    def _lead(self) -> float:
        """How long before its time a catch-up begins, so that it has ended by then."""
        return min(self.facts.interval / 2, max(1.0, self.facts.interval / 20, 1.5 * self.took))

    def misses_at(self) -> float:
        """When its lag is longer than promised, if nothing is done."""
        facts = self.facts
        if facts.mode != "periodic" or not facts.interval or facts.here is None or self.writes is not None:
            return NEVER
        return NEVER if self.clean_at is None else self.clean_at + facts.interval
