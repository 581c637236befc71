# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a copy may read the primary: what the user asked for, and what the primary's own load leaves. Pure.

*max* never waits. A rate is bytes a second, evenly. A share is that part of the time. *adaptive* holds back only while
somebody else uses the primary: it stops for a moment, to learn how long their requests take when nothing is copied,
then gives them that and little more, and goes as fast as that allows. It never goes below the rate at which the copy
gets to an end.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from dmsoft.errors import DmsoftError, UsageError
from dmsoft.units import KIB, MIB, format_size, parse_size

Kind = Literal["max", "rate", "share", "adaptive"]

# A share of the time opens and shuts so often.
SHARE_SECONDS = 2.0
LEAST_RATE = MIB
# Others may take so much longer than without the copy on the average, more where that may be chance; twice as long is
# too long at once.
_TOLERANCE, _CHANCE = 0.05, 0.6
_ALARM, _ALARM_CHANCE = 1.0, 3.0
# The kernel counts how often its clock ticked during a request: right on the average, and wide for short ones.
_TICK_SECONDS = 0.004
_STEP_SECONDS, _STEP_REQUESTS, _STEP_AT_MOST = 0.2, 600, 3.0
_ALARM_REQUESTS = 16
# What a rate becomes after a step: when it was too fast; when it is far from what was too fast last; near that, after a
# long calm.
_BACK, _ON, _FEEL = 0.7, 1.25, 1.05
_NEAR = 0.85
_CALM_SECONDS = 20.0
_PROBE_REQUESTS, _PROBE_SECONDS, _FIRST_PROBE_SECONDS, _SETTLE_SECONDS = 1000, 0.6, 1.0, 1.0
_PROBE_EVERY = 10.0
# What was heard before counts at most so many times what is heard now.
_MEMORY = 2
_IDLE_SECONDS = 1.0
# So many requests within that time, or one that does not end: somebody uses the primary.
_USED_REQUESTS, _USED_SECONDS = 10, 1.0
_FIRST_SHARE = 0.1
_PERCENT = re.compile(r"(\d{1,3})\s*%")


@dataclass(frozen=True, slots=True)
class Limit:
    """What the user asks for. ``value``: bytes a second of a rate, 0 to 1 of a share."""

    kind: Kind = "adaptive"
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """*max*, *adaptive*, a percentage, or a size, which is meant a second; raises `UsageError`."""
        word = text.strip().lower()
        if word == "max":
            return cls("max")
        if word == "adaptive":
            return cls("adaptive")
        share = _PERCENT.fullmatch(word)
        if share is not None and 1 <= int(share[1]) <= 100:
            return cls("share", int(share[1]) / 100)
        try:
            rate = parse_size(word.removesuffix("/s"))
        except DmsoftError:
            rate = 0
        if rate < 4 * KIB:
            raise UsageError(
                f"'{text}' is not a rate.",
                hint="Write bytes a second such as 50M (4K at least), a share such as 50%, adaptive or max.",
            )
        return cls("rate", rate)

    def __str__(self) -> str:
        if self.kind == "rate":
            return f"{format_size(int(self.value))}/s"
        return f"{self.value:.0%}" if self.kind == "share" else self.kind


ADAPTIVE = Limit()


@dataclass(slots=True)
class Bucket:
    """Spreads bytes evenly over time; what was not used is not saved up for later."""

    free_at: float = 0.0

    def wait(self, size_bytes: int, rate: float, now: float) -> float:
        """Take so many bytes at that rate; returns the seconds to wait before they are read."""
        start = max(self.free_at, now)
        self.free_at = start + size_bytes / rate
        return start - now


def shut(share: float, since: float, now: float) -> float:
    """Seconds until a share of the time begins again, 0 within it; counted from ``since``."""
    at = (now - since) % SHARE_SECONDS
    return 0.0 if at < share * SHARE_SECONDS else SHARE_SECONDS - at


@dataclass(frozen=True, slots=True)
class Seen:
    """What others did within so many seconds: requests that ended, how long these took in all, and how many are on
    their way; and the bytes that the copy read."""

    seconds: float
    requests: int
    waited: float
    in_flight: int
    copied: int = 0

    def __add__(self, later: "Seen") -> "Seen":
        return Seen(
            self.seconds + later.seconds, self.requests + later.requests, self.waited + later.waited, later.in_flight,
            self.copied + later.copied,
        )  # fmt: skip

    @property
    def busy(self) -> bool:
        return bool(self.requests or self.in_flight)

    @property
    def latency(self) -> float:
        """Mean seconds of a request; what is on its way without any that ended has taken at least this long."""
        return self.waited / self.requests if self.requests else self.seconds


NOTHING = Seen(0.0, 0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The state of the controller. ``rate``: bytes a second, None while nothing is held back, and 0 while it listens to
    what the others' requests take without the copy, which becomes ``usual``; ``_settled``: seconds since then
    in which nothing of it was read."""

    rate: float | None = None
    usual: float | None = None
    _heard: Seen = NOTHING
    _settled: float = 0.0
    _known: int = 0
    _quiet: float = 0.0
    _stuck: float = 0.0
    _since_probe: float = 0.0
    _resume_at: float = LEAST_RATE
    _too_fast: float | None = None
    _calm: float = 0.0

    def after(self, seen: Seen, floor: float = LEAST_RATE) -> "Adaptive":
        """The state after another look; ``floor``: the least rate that gets the copy to an end."""
        floor = max(floor, LEAST_RATE)
        quiet = 0.0 if seen.busy else self._quiet + seen.seconds
        if quiet >= _IDLE_SECONDS:
            return Adaptive()
        stuck = self._stuck + seen.seconds if seen.in_flight and not seen.requests else 0.0
        now = replace(self, _quiet=quiet, _stuck=stuck, _since_probe=self._since_probe + seen.seconds)
        if self.rate is None:
            return now._free(self._heard + seen, floor)
        if self.rate == 0:
            return now._listen(seen, floor)
        return now._steer(self._heard + seen, floor)

    def _free(self, heard: Seen, floor: float) -> "Adaptive":
        """Nothing is held back for the sake of a few requests a second."""
        stuck = heard.in_flight and not heard.requests and heard.seconds >= _USED_SECONDS
        if stuck or heard.requests >= _USED_REQUESTS:
            return self._probe(max(floor, _FIRST_SHARE * heard.copied / heard.seconds))
        return replace(self, _heard=heard if heard.seconds < _USED_SECONDS else NOTHING)

    def _probe(self, resume_at: float) -> "Adaptive":
        return replace(self, rate=0.0, _heard=NOTHING, _settled=0.0, _resume_at=resume_at, _since_probe=0.0)

    def _listen(self, seen: Seen, floor: float) -> "Adaptive":
        # As long as reads of the copy end, others wait for it; then for what has gathered meanwhile.
        if seen.copied > 0 and self._since_probe < _FIRST_PROBE_SECONDS:
            return replace(self, _settled=0.0)
        if self._settled < (_SETTLE_SECONDS if self.usual is None else min(seen.seconds, _SETTLE_SECONDS)):
            return replace(self, _settled=self._settled + seen.seconds)
        heard = self._heard + seen
        most = _FIRST_PROBE_SECONDS if self.usual is None else _PROBE_SECONDS
        if heard.requests < _PROBE_REQUESTS and heard.seconds < most:
            return replace(self, _heard=heard)
        now = replace(self, rate=max(floor, self._resume_at), _heard=NOTHING)
        if not heard.requests:
            return now
        # What is long may be so for other reasons, what is short is not.
        memory = _MEMORY if heard.latency > (self.usual or 0.0) else 1
        known = min(self._known, memory * heard.requests)
        usual = (known * (self.usual or 0.0) + heard.waited) / (known + heard.requests)
        return replace(now, usual=usual, _known=known + heard.requests)

    def _steer(self, heard: Seen, floor: float) -> "Adaptive":
        rate = self.rate or floor
        slower = max(heard.latency, self._stuck) / self.usual if self.usual else math.inf
        few = heard.requests < _STEP_REQUESTS and heard.seconds < _STEP_AT_MOST
        stuck = self._stuck >= _STEP_SECONDS
        spread = max(1.0, _TICK_SECONDS / (self.usual or 1.0))
        chance = math.sqrt(spread * (1 / max(1, heard.requests) + 1 / max(1, self._known)))
        alarm = (stuck or heard.requests >= _ALARM_REQUESTS) and slower > 1 + _ALARM + _ALARM_CHANCE * chance
        if not alarm and (heard.seconds < _STEP_SECONDS or few):
            return replace(self, rate=max(floor, rate), _heard=heard)
        if heard.busy and slower > 1 + _TOLERANCE + _CHANCE * chance:
            now = replace(self, rate=max(floor, _BACK * rate), _too_fast=rate, _calm=0.0, _stuck=0.0, _heard=NOTHING)
        else:
            rate = max(rate, min(self._raised(rate), 2 * heard.copied / heard.seconds))
            known = self._too_fast if self._too_fast is not None and rate <= self._too_fast else None
            calm = self._calm + heard.seconds
            now = replace(self, rate=max(floor, rate), _too_fast=known, _calm=calm, _heard=NOTHING)
        return now._probe(now.rate or floor) if self._since_probe >= _PROBE_EVERY else now

    def _raised(self, rate: float) -> float:
        """A rate for the next step. Near the one that was too fast it waits: each time that it goes beyond, everybody
        has to wait for what has gathered."""
        if self._too_fast is None:
            return _ON * rate
        near = _NEAR * self._too_fast
        if rate < near:
            return min(_ON * rate, near)
        return _FEEL * rate if self._calm >= _CALM_SECONDS else rate
