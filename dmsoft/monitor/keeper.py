# SPDX-License-Identifier: GPL-2.0-or-later
"""What to do for one mirror, and when: decided from what is known of it and the clock. Pure.

Two workers at most are at it: one that looks, and one that acts (it takes the mirror's operation lock). The daemon
feeds in what it sees and what came of its workers, asks `actions`, and comes back at `wake`.

How far a secondary lags is known without asking any disk: a full look says that it has everything, and while the
kernel's count of writes to the mirror stays as it was then, it still has. So a mirror that is not written is left
alone, and its disks may sleep.
"""

from dataclasses import dataclass, field
from typing import Final

from dmsoft.errors import MetadataError
from dmsoft.mirror.bulletin import Held, Said
from dmsoft.mirror.views import Alert
from dmsoft.monitor.alarms import Alarms
from dmsoft.monitor.care import NEVER, Care
from dmsoft.monitor.events import Event
from dmsoft.monitor.facts import (
    Action,
    CaughtUp,
    Facts,
    Failure,
    Kind,
    Marked,
    Mended,
    Part,
    Pulse,
    Result,
    SecondaryFacts,
    Shed,
    waits,
)
from dmsoft.units import format_duration

# After something was plugged: udev and the kernel tell several times.
SETTLE_SECONDS: Final = 0.5
# For so long after it a disk that cannot be used is looked at again, as often.
RELOOK_FOR_SECONDS: Final = 30.0
RELOOK_SECONDS: Final = 5.0
BUSY_SECONDS: Final = 5.0
LONGEST_BUSY: Final = 60.0
MEND_SECONDS: Final = 60.0
FIRST_BACKOFF: Final = 15.0
LONGEST_BACKOFF: Final = 900.0
# Without tracking every run compares every block and promises nothing.
UNTRACKED_SECONDS: Final = 3600.0
LOOK_SECONDS: Final = 60.0
ACT_SECONDS: Final = 120.0
# A large cache that is drained, or a disk that flushes, shows no progress meanwhile.
STILL_SECONDS: Final = 600.0
TICK_SECONDS: Final = 10.0

_DONE: Final = frozenset({"current", "attached"})
# What cannot wait for a copy that is under way, in the order of their urgency.
_RESCUES: Final[tuple[Kind, ...]] = ("mark", "shed", "mend")


@dataclass(slots=True)
class Keeper:
    """One mirror that runs."""

    name: str
    events: list[Event] = field(default_factory=list)
    cares: dict[str, Care] = field(default_factory=dict)
    looker: Action | None = None
    actor: Action | None = None
    _writes: int | None = None
    _look_writes: int | None = None
    _act_writes: int | None = None
    _pulsed_writes: int | None = None
    _look_at: float = 0.0
    _plugged_at: float = -NEVER
    _pulse_at: float = 0.0
    _pulsed_at: float = -NEVER
    _rescues: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(_RESCUES, NEVER))
    _left_out: bool = False
    _mended_at: float = -NEVER
    _began: dict[str, float] = field(default_factory=dict)
    _shown: int | None = None
    _moved_at: float = -NEVER
    _cancelling: bool = False
    _untracked: bool = False
    _blind: bool = False
    _alarms: Alarms = field(init=False)

    def __post_init__(self) -> None:
        self._alarms = Alarms(self.name)

    # What is fed in.

    def sampled(self, writes: int | None, now: float) -> None:
        """The kernel's count of writes to the mirror, None if it cannot be read."""
        self._writes = writes
        for care in self.cares.values():
            if care.writes is not None and care.writes == writes:
                care.clean_at = now
            elif care.writes is not None:
                care.writes = None
            care.unproved = care.proved_writes is None or care.proved_writes != writes
        if writes is None or writes != self._pulsed_writes:  # else nothing can have gone wrong with the record
            self._pulse_at = min(self._pulse_at, self._pulsed_at + TICK_SECONDS)
        self._watch(now)

    def moved(self, shown: int | None, now: float) -> None:
        """Where the run at work is, by anything that changes as long as it goes on."""
        if shown == self._shown:
            return
        self._shown, self._moved_at = shown, now
        if self.actor is not None and self.actor.kind == "catch-up":
            self._alarms.note("actor", None)

    def plugged(self, now: float) -> None:
        """Something was plugged in or out that may be ours."""
        self._plugged_at = now
        self._look_at = min(self._look_at, now + SETTLE_SECONDS)
        self._pulse_at = min(self._pulse_at, now)

    def lower_changed(self, now: float) -> None:
        """The device under the top had an event: a leg may have failed."""
        self._pulse_at = min(self._pulse_at, now)

    def finished(self, action: Action, result: Result | Failure, now: float) -> None:
        """What came of a worker."""
        seconds = now - self._began.pop(action.kind, now)
        self._alarms.note("looker" if action.looks_only else "actor", None)
        if action.looks_only:
            self.looker = None
        else:
            self.actor, self._cancelling = None, False
            if action.kind not in _RESCUES or not waits(result):  # else nothing was done
                self._look_at = min(self._look_at, now)
        match result:
            case Failure():
                self._failed(action, result, now)
            case Facts():
                self._looked(result, now - seconds, now)
            case Pulse():
                self._felt(result, now)
            case CaughtUp():
                self._caught_up(action, result, seconds, now)
            case Shed():
                self._alarms.note("shed", None)
                self.events += [Event("leg-detached", self.name, label) for label in result.labels]
            case Marked():
                self._alarms.note("mark", None)
                self._left_out = result.labels is not None  # else the next pulse has it tried again
                self.events += [Event("secondary-alone", self.name, label) for label in result.labels or ()]
            case Mended():
                self._mended(result)
        self._tell_alerts()

    # What comes out.

    def actions(self, now: float) -> list[Action]:
        """What to begin now."""
        found = []
        if (look := self._next_look(now)) is not None:
            self.looker = look
            found.append(look)
        if (act := self._next_act(now)) is not None:
            self.actor, self._act_writes = act, self._writes
            found.append(act)
        self._began |= {action.kind: now for action in found}
        return found

    def cancels(self, now: float) -> bool:
        """Whether the catch-up at work is to end, because something else cannot wait for it."""
        if self.actor is None or self.actor.kind != "catch-up" or self._cancelling:
            return False
        self._cancelling = min(self._rescues.values()) <= now
        return self._cancelling

    def wake(self, now: float) -> float:
        """When to ask again, whatever happens; never in the past."""
        moments = [now + self.tick()]
        if self.looker is None:
            moments += [self._look_at, self._pulse_at]
        if self.actor is None:
            moments += self._rescues.values()
            if not self._is_looking(now) and not self._blind:
                moments += [care.due() for care in self.cares.values()]
        moments += [missed for care in self.cares.values() if (missed := care.misses_at()) > now]
        return max(now, min(moments))

    def tick(self) -> float:
        """How often to sample the count of writes."""
        intervals = [care.facts.interval for care in self.cares.values() if care.facts.interval]
        shortest = min(intervals, default=TICK_SECONDS * 5)
        return max(1.0, min(TICK_SECONDS, shortest / 5))

    def said(self, epoch: float, now: float) -> Said:
        """What `status` is told; ``epoch`` is the clock of the day at ``now``."""
        held = {
            label: Held(care.facts.token, round(epoch - (now - care.clean_at), 1))
            for label, care in self.cares.items()
            if care.facts.token is not None and care.clean_at is not None
        }
        return Said(held, tuple((alert.code, alert.summary) for alert in self._alarms.own.values()))

    @property
    def alerts(self) -> tuple[Alert, ...]:
        return self._alarms.raised

    # How it is decided.

    def _next_look(self, now: float) -> Action | None:
        if self.looker is not None:
            return None
        if self._pulse_at <= now:  # first: it is quick, and tells what cannot wait
            self._pulse_at, self._pulsed_at, self._pulsed_writes = NEVER, now, self._writes
            return Action("pulse")
        if self._look_at <= now:
            self._look_at, self._look_writes = NEVER, self._writes
            return Action("look")
        return None

    def _next_act(self, now: float) -> Action | None:
        if self.actor is not None:
            return None
        for kind, at in self._rescues.items():
            if at <= now:
                self._rescues[kind] = NEVER
                self._mended_at = now if kind == "mend" else self._mended_at
                return Action(kind)
        if self._is_looking(now) or self._blind:
            return None  # what is decided next rests on it
        due = {label: care.due() for label, care in self.cares.items()}
        if min(due.values(), default=NEVER) > now:
            return None
        # One run reads what several lack once, so those that are nearly due come along.
        ready = [label for label, at in due.items() if at <= now + self.cares[label].facts.interval / 10]
        return Action("catch-up", tuple(ready))

    def _is_looking(self, now: float) -> bool:
        return self._look_at <= now or (self.looker is not None and self.looker.kind == "look")

    def _looked(self, facts: Facts, began: float, now: float) -> None:
        self._blind = not facts.assembled
        if facts.assembled:
            self._learned(facts, began, now)
        if self._blind or any(each.state == "failed" and each.here is None for each in facts.secondaries):
            soon = began < self._plugged_at + RELOOK_FOR_SECONDS  # nothing tells when such a disk answers again
            self._look_at = min(self._look_at, now + (RELOOK_SECONDS if soon else LONGEST_BACKOFF))
        self._alarms.seen = facts.alerts
        if any(alert.code == "left-suspended" for alert in facts.alerts):
            self._want_mend(now)

    def _learned(self, facts: Facts, began: float, now: float) -> None:
        """What a look says of the secondaries; without the primary it could not say, and what was known stays."""
        self._untracked = facts.active and not facts.tracked
        busy = set(self.actor.labels) if self.actor is not None else set()
        fresh = {each.label: each for each in facts.secondaries}
        for label in self.cares.keys() - fresh.keys():
            del self.cares[label]
            self._alarms.note(f"copy {label}", None)
        for label, each in fresh.items():
            self._saw(each, busy=label in busy, began=began, now=now)

    def _saw(self, facts: SecondaryFacts, *, busy: bool, began: float, now: float) -> None:
        care = self.cares.get(facts.label)
        came = facts.here is not None and (care is None or care.facts.here != facts.here)
        if care is None:
            care = self.cares[facts.label] = Care(facts, now)
            care.clean_at = None if facts.lag is None else now - facts.lag
            # A daemon that was killed, or never ran: what is doubtful or uncoupled does not wait.
            care.urgent = facts.copied and (facts.state == "unknown" or facts.mode == "write-behind")
            came = False
        if care.facts.here is not None and facts.here is None:
            self.events.append(Event("disk-went", self.name, facts.label))
            care.error = None
        if came:
            self.events.append(Event("disk-came", self.name, facts.label))
            care.since, care.retry_at, care.failures, care.urgent = now, 0.0, 0, True
        elif facts.state == "unknown" and care.facts.state != "unknown":
            care.since, care.urgent = now, True
        elif facts.state != "attached" and care.facts.state == "attached":
            care.since = now
        care.facts = facts
        if facts.state in _DONE and facts.here is not None:
            care.urgent, care.error, care.failures = False, None, 0
        if facts.state == "current":
            care.clean_at, care.writes = max(care.clean_at or -NEVER, began), self._look_writes
        elif not busy:
            care.writes = None
            if facts.lag is not None:
                care.clean_at = max(care.clean_at or -NEVER, now - facts.lag)

    def _felt(self, pulse: Pulse, now: float) -> None:
        if pulse.left_out and not self._left_out:
            self._rescue("mark", now)
            self._look_at = min(self._look_at, now)  # which tells it
        elif pulse.failing and not pulse.left_out:  # else nothing but the legs has what is newest
            self._rescue("shed", now)
        if pulse.left_out:
            self._rescues["shed"] = NEVER
        self._left_out = pulse.left_out
        if pulse.tracking in ("failed", "suspended"):
            self._want_mend(now)
        elif pulse.tracking == "filling":
            self._want_mend(now)
            self._pulsed_writes = None  # look again at the next tick

    def _want_mend(self, now: float) -> None:
        self._rescue("mend", max(now, self._mended_at + MEND_SECONDS))

    def _rescue(self, kind: Kind, at: float) -> None:
        self._rescues[kind] = min(self._rescues[kind], at)

    def _mended(self, result: Mended) -> None:
        self._alarms.note("mend", None)
        if result.doubt is not None:
            self.events.append(Event("tracking-mended", self.name, summary=result.untracked or result.doubt))

    def _caught_up(self, action: Action, result: CaughtUp, seconds: float, now: float) -> None:
        for part in result.parts:
            care = self.cares.get(part.label)
            if part.error is not None:
                self._missed(part.label, part.error, now)
                continue
            self.events.append(self._told(part, result))
            if care is None:
                continue
            care.urgent, care.failures, care.error, care.took, care.retry_at = False, 0, None, seconds, now
            if care.facts.mode == "write-behind":
                care.since, care.proved_writes = now, self._act_writes
            if result.converged:
                continue
            if self._untracked:  # and the run could not begin it anew
                care.retry_at = now + max(UNTRACKED_SECONDS, 10 * seconds)
            else:
                care.urgent, care.retry_at = True, now + min(care.facts.interval, FIRST_BACKOFF)

    def _told(self, part: Part, result: CaughtUp) -> Event:
        return Event(
            "caught-up", self.name, part.label, kind=part.kind, bytes_copied=part.bytes_copied,
            seconds=result.seconds, stall_ms=result.stall_ms, consistent_as_of=part.consistent_as_of,
        )  # fmt: skip

    def _failed(self, action: Action, failure: Failure, now: float) -> None:
        passing = waits(failure)
        match action.kind:
            case "look":
                self._look_at = min(self._look_at, now + (BUSY_SECONDS if passing else FIRST_BACKOFF))
            case "pulse":
                self._pulsed_writes = None  # once more at the next tick
            case "mark" | "shed" | "mend" as kind:
                later = MEND_SECONDS if kind == "mend" else FIRST_BACKOFF
                self._rescues[kind] = now + (1.0 if passing else later)
                if not passing:
                    self._alarms.note(kind, Alert("rescue-failed", failure.message))
            case "catch-up":
                if failure.exit_code == MetadataError.exit_code:  # the record cannot be read, whatever the kernel says
                    self._want_mend(now)
                for label in action.labels:
                    if passing:
                        self._wait(label, now)
                    else:
                        self._missed(label, failure.message, now)

    def _wait(self, label: str, now: float) -> None:
        """Another command is at work, which may take as long as a first copy does."""
        care = self.cares.get(label)
        if care is not None:
            care.retry_at = now + min(LONGEST_BUSY, max(BUSY_SECONDS, care.facts.interval / 10))

    def _missed(self, label: str, message: str, now: float) -> None:
        self.events.append(Event("catch-up-failed", self.name, label, summary=message))
        care = self.cares.get(label)
        if care is not None:
            care.error, care.urgent = message, True
            care.retry_at = now + min(LONGEST_BACKOFF, FIRST_BACKOFF * 2**care.failures)
            care.failures += 1

    def _watch(self, now: float) -> None:
        """Workers that take longer than they should are told of; nobody waits for them."""
        for slot, action, most in (("looker", self.looker, LOOK_SECONDS), ("actor", self.actor, ACT_SECONDS)):
            if action is None or slot in self._alarms.own:
                continue
            began, copies = self._began.get(action.kind, now), action.kind == "catch-up"
            since, limit = (max(began, self._moved_at), STILL_SECONDS) if copies else (began, most)
            if now - since > limit:
                how = "has stood still for" if copies else "has no end after"
                what = f"A {action.kind} at {self.name} {how} {format_duration(limit)}"
                alert = Alert("not-answering", f"{what}: a disk or the kernel does not answer.")
                self._alarms.note(slot, alert)
        for care in self.cares.values():
            missed = care.misses_at() <= now
            if missed and not care.missed:
                self._look_at = min(self._look_at, now)  # which tells it with figures
            care.missed = missed
        self._tell_alerts()

    def _tell_alerts(self) -> None:
        for label, care in self.cares.items():
            alert = None if care.error is None else Alert("catch-up-failed", f"{label}: {care.error}")
            self._alarms.note(f"copy {label}", alert)
        self.events += self._alarms.news()
