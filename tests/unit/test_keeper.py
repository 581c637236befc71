# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon decides to do, and when: from facts and a clock that stands where the test puts it."""

import random

import pytest

from dmsoft.mirror.views import Alert
from dmsoft.monitor import keeper as keepers
from dmsoft.monitor.care import PROOF_SECONDS
from dmsoft.monitor.events import EVENTS
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
)
from dmsoft.monitor.keeper import Keeper

INTERVAL = 300.0


def secondary(label: str = "one", state: str = "current", **fields: object) -> SecondaryFacts:
    made: dict[str, object] = {"mode": "periodic", "interval": INTERVAL, "here": "8:0 1", "token": "t", "copied": True}
    return SecondaryFacts(label=label, state=state, **(made | fields))  # type: ignore[arg-type]


def facts(*secondaries: SecondaryFacts, tracked: bool = True, alerts: tuple[Alert, ...] = ()) -> Facts:
    return Facts(True, tracked, secondaries, alerts)


class World:
    """A keeper, the clock, and workers that do as the test says."""

    def __init__(self, *secondaries: SecondaryFacts, writes: int = 0) -> None:
        self.keeper = Keeper("m")
        self.now = 1000.0
        self.writes = writes
        self.seen = facts(*secondaries)
        self.pulse = Pulse("ok")
        self.started: list[Action] = []
        self.settle()

    def events(self, name: str) -> list[str | None]:
        """Labels, or codes of alerts, of the events of that name so far."""
        return [e.label or e.code for e in self.keeper.events if e.event == name]

    def turn(self) -> list[Action]:
        self.keeper.sampled(self.writes, self.now)
        found = self.keeper.actions(self.now)
        self.started += found
        return found

    def settle(self) -> None:
        """Let looks come to their end, until there is nothing to look at."""
        for _ in range(20):
            looks = [action for action in self.turn() if action.looks_only]
            if not looks and self.keeper.looker is None:
                return
            for action in looks:
                self.finish(self.seen if action.kind == "look" else self.pulse)
        raise AssertionError("it looks without end")

    def finish(self, result: Result | Failure, kind: Kind | None = None) -> None:
        action = self.keeper.looker if kind is None else self.keeper.actor
        assert action is not None and kind in (None, action.kind)
        self.keeper.finished(action, result, self.now)

    def until(self, seconds: float, *, looks: bool = True) -> Action | None:
        """Go on for so long or until the actor has something to do; returns that."""
        end = self.now + seconds
        while True:
            self.settle() if looks else self.turn()
            if self.keeper.actor is not None:
                return self.keeper.actor
            wake = self.keeper.wake(self.now)
            assert wake > self.now, "it would spin"
            if wake > end:
                self.now = end
                return None
            self.now = wake

    def catch_up(self, *labels: str, seconds: float = 2.0, state: str = "current", **more: object) -> None:
        """The catch-up at work ends well, and the next look finds it so."""
        self.now += seconds
        parts = tuple(Part(label, "incremental", 10) for label in labels)
        self.seen = facts(*(secondary(label, state, lag=seconds) for label in labels))
        self.finish(CaughtUp(parts, seconds, 5.0, **more), "catch-up")  # type: ignore[arg-type]


def test_what_is_not_written_is_left_alone() -> None:
    world = World(secondary())
    assert world.until(86400) is None
    assert {action.kind for action in world.started} == {"pulse", "look"} and len(world.started) <= 4
    said = world.keeper.said(5e9, world.now)
    assert said.held["one"].until == pytest.approx(5e9, abs=keepers.TICK_SECONDS + 0.1)


def test_a_write_is_copied_before_the_interval_is_over() -> None:
    world = World(secondary())
    world.until(50_000)
    world.writes += 1
    began = world.now
    action = world.until(INTERVAL)
    assert action == Action("catch-up", ("one",))
    assert INTERVAL / 2 <= world.now - began < INTERVAL
    # Held up to the last moment at which the count was as before.
    assert world.keeper.said(5e9, world.now).held["one"].until == pytest.approx(5e9 - (world.now - began), abs=10.1)


def test_a_slow_catch_up_begins_earlier_the_next_time() -> None:
    world = World(secondary())
    world.writes += 1
    assert world.until(INTERVAL)
    world.catch_up("one", seconds=100.0)
    world.settle()
    world.writes += 1
    began = world.now
    assert world.until(INTERVAL)
    assert world.now - began < INTERVAL - 100


def test_after_a_restart_an_old_lag_is_dealt_with_at_once() -> None:
    world = World(secondary(state="stale", lag=4000.0))
    assert world.keeper.actor == Action("catch-up", ("one",))


def test_a_disk_that_was_never_copied_waits_for_its_interval() -> None:
    world = World(secondary(state="stale", copied=False, token=None))
    began = world.now
    assert world.until(INTERVAL) == Action("catch-up", ("one",))
    assert world.now - began >= INTERVAL / 2


@pytest.mark.parametrize("state", ["stale", "current", "unknown"])
def test_a_disk_that_comes_back_is_caught_up_at_once(state: str) -> None:
    world = World(secondary(state="missing", here=None))
    world.seen = facts(secondary(state=state, here="8:0 2", lag=10.0))
    world.keeper.plugged(world.now)
    action = world.until(2)
    assert (action is None) == (state == "current")
    assert world.events("disk-came") == ["one"]


def test_where_nothing_is_promised_only_a_return_counts() -> None:
    world = World(secondary(state="stale", lag=1e5, interval=0.0))
    world.writes += 1
    assert world.until(10 * INTERVAL) is None
    world.seen = facts(secondary(state="stale", lag=1e5, interval=0.0, here="8:0 2"))
    world.keeper.plugged(world.now)
    assert world.until(2) == Action("catch-up", ("one",))


def test_a_disk_that_is_not_ready_is_looked_at_again() -> None:
    world = World(secondary(state="missing", here=None))
    world.seen = facts(secondary(state="failed", here=None))
    world.keeper.plugged(world.now)
    world.until(2)
    world.seen = facts(secondary(state="stale", here="8:0 2"))
    assert world.until(10) == Action("catch-up", ("one",))
    world = World(secondary(state="missing", here=None))
    world.seen = facts(secondary(state="failed", here=None))
    world.keeper.plugged(world.now)
    world.until(3600)
    assert 3 < [action.kind for action in world.started].count("look") < 12


def test_a_disk_that_answers_again_without_a_word_is_found() -> None:
    """A link that was down: no uevent tells that it is back."""
    world = World(secondary(state="stale", lag=INTERVAL))
    world.seen = facts(secondary(state="failed", here=None, lag=INTERVAL))
    world.finish(CaughtUp((Part("one", "full", error="It is not here."),), 1.0, 0.0), "catch-up")
    assert world.until(86400) is None
    looks = [action.kind for action in world.started].count("look")
    assert 86400 / keepers.LONGEST_BACKOFF - 2 < looks < 86400 / keepers.LONGEST_BACKOFF + 20
    world.seen = facts(secondary(state="stale", lag=INTERVAL, here="8:0 1"))
    assert world.until(keepers.LONGEST_BACKOFF) == Action("catch-up", ("one",))


def test_a_primary_that_did_not_answer_for_a_moment() -> None:
    world = World(secondary())
    world.writes += 1
    unread = Facts(True, False, (secondary(state="unknown", here=None, interval=0.0, copied=False),), assembled=False)
    world.seen = unread
    world.keeper.plugged(world.now)
    assert world.until(10 * INTERVAL) is None, "nothing can be copied from it"
    assert not world.events("disk-went")
    looks = sum(action.kind == "look" for action in world.started)
    world.until(86400)
    assert sum(action.kind == "look" for action in world.started) - looks == pytest.approx(
        86400 / keepers.LONGEST_BACKOFF, abs=2
    )
    world.seen = facts(secondary(state="stale", lag=INTERVAL))
    assert world.until(keepers.LONGEST_BACKOFF) == Action("catch-up", ("one",))


@pytest.mark.parametrize("state", ["diverged", "failed", "missing", "away"])
def test_what_cannot_be_caught_up_is_left_to_people(state: str) -> None:
    world = World(secondary(state=state, lag=1e6, here="8:0 1" if state in ("diverged", "failed") else None))
    world.writes += 1
    assert world.until(10 * INTERVAL) is None


def test_what_several_lack_is_read_once() -> None:
    world = World(
        secondary("one", "stale", lag=INTERVAL), secondary("two", "stale", lag=INTERVAL * 0.92),
        secondary("far", "stale", lag=1.0),
    )  # fmt: skip
    assert world.keeper.actor == Action("catch-up", ("one", "two"))


def test_errors_are_told_and_tried_again_less_and_less_often() -> None:
    world = World(secondary(state="stale", lag=INTERVAL))
    gaps = []
    for _ in range(9):
        world.finish(CaughtUp((Part("one", "incremental", error="It broke."),), 1.0, 0.0), "catch-up")
        began = world.now
        assert world.until(2 * keepers.LONGEST_BACKOFF) is not None
        gaps.append(world.now - began)
    assert gaps == sorted(gaps) and gaps[0] == keepers.FIRST_BACKOFF and gaps[-1] == keepers.LONGEST_BACKOFF
    assert world.events("alert-raised") == ["catch-up-failed"]
    world.catch_up("one")
    world.settle()
    assert world.events("alert-cleared") == ["catch-up-failed"]


def test_a_mirror_that_is_busy_is_no_alert() -> None:
    world = World(secondary(state="stale", lag=INTERVAL))
    world.finish(Failure("busy", "It is busy.", 10), "catch-up")
    world.settle()
    assert not world.events("alert-raised") and not world.events("catch-up-failed")
    assert world.until(keepers.LONGEST_BUSY) == Action("catch-up", ("one",))


def test_a_failing_leg_does_not_wait_for_a_copy() -> None:
    world = World(secondary("one", "attached", mode="write-behind"), secondary("two", "stale", lag=INTERVAL))
    assert world.keeper.actor == Action("catch-up", ("two",))
    world.pulse = Pulse("ok", ("one",))
    world.keeper.lower_changed(world.now)
    world.settle()
    assert world.keeper.cancels(world.now) and not world.keeper.cancels(world.now)
    world.finish(Failure("cancelled", "It was cancelled."), "catch-up")
    assert world.turn()[-1] == Action("shed")
    world.pulse = Pulse("ok")
    world.finish(Shed(("one",)), "shed")
    assert world.events("leg-detached") == ["one"]


def test_a_primary_that_md_leaves_out_is_noted_before_all_else() -> None:
    world = World(secondary("one", "attached", mode="write-behind"), secondary("two", "stale", lag=INTERVAL))
    assert world.keeper.actor == Action("catch-up", ("two",))
    world.pulse = Pulse("ok", ("other",), left_out=True)
    looks = [action.kind for action in world.started].count("look")
    world.keeper.lower_changed(world.now)
    world.settle()
    assert [action.kind for action in world.started].count("look") == looks + 1  # which has the alert
    assert world.keeper.cancels(world.now)
    world.finish(Failure("cancelled", "It was cancelled."), "catch-up")
    assert world.until(1) == Action("mark")
    world.finish(Failure("busy", "Another command.", 10), "mark")
    assert world.until(2) == Action("mark") and not world.events("alert-raised")
    world.finish(Failure("device", "It cannot be written.", 6), "mark")
    assert world.events("alert-raised") == ["rescue-failed"]
    world.pulse = Pulse("ok", ("other",), left_out=True)
    world.keeper.lower_changed(world.now)
    assert world.until(keepers.FIRST_BACKOFF) == Action("mark")
    world.finish(Marked(("one",)), "mark")
    assert world.events("secondary-alone") == ["one"] and world.events("alert-cleared") == ["rescue-failed"]
    # Once is enough, and no leg is let go of: nothing else has what is newest.
    world.seen = facts(secondary("one", "unknown", here=None), secondary("two", "unknown", here=None))
    for _ in range(5):
        world.writes += 1
        world.keeper.lower_changed(world.now)
        assert world.until(60) is None
    # Another raid1 of the same mirror, and its record failed as well.
    world.pulse = Pulse("ok")
    world.keeper.lower_changed(world.now)
    world.settle()
    world.pulse = Pulse("failed", left_out=True)
    world.keeper.lower_changed(world.now)
    assert world.until(1) == Action("mark")


def test_with_every_disk_gone_there_is_nothing_to_note_again() -> None:
    world = World(secondary("one", "attached", mode="write-behind"))
    world.pulse = Pulse("ok", left_out=True)
    world.keeper.lower_changed(world.now)
    assert world.until(1) == Action("mark")
    looks = [action.kind for action in world.started].count("look")
    for _ in range(10):  # another command is at work: no disk is read for that
        world.finish(Failure("busy", "Another command.", 10), "mark")
        assert world.until(2) == Action("mark")
    assert [action.kind for action in world.started].count("look") == looks
    world.finish(Marked(None), "mark")  # the raid1 was suspended by somebody: it could not be asked
    world.keeper.lower_changed(world.now)
    assert world.until(60) == Action("mark")
    world.finish(Marked(()), "mark")
    for _ in range(5):
        world.keeper.lower_changed(world.now)
        assert world.until(60) is None


def test_no_leg_is_let_go_of_once_the_primary_is_left_out() -> None:
    """As it would be refused time and again."""
    world = World(secondary("one", "attached", mode="write-behind"))
    world.pulse = Pulse("ok", ("one",))
    world.keeper.lower_changed(world.now)
    assert world.until(1) == Action("shed")
    world.pulse = Pulse("ok", ("one",), left_out=True)
    world.finish(Failure("primary-dropped", "The primary was dropped.", 9), "shed")
    world.keeper.lower_changed(world.now)
    assert world.until(keepers.FIRST_BACKOFF) == Action("mark")
    world.finish(Marked(("one",)), "mark")
    assert world.until(10 * keepers.FIRST_BACKOFF) is None


def test_a_leg_that_cannot_be_let_go_of_is_an_alert() -> None:
    world = World(secondary("one", "attached", mode="write-behind"))
    world.pulse = Pulse("ok", ("one",))
    world.keeper.lower_changed(world.now)
    assert world.until(1) == Action("shed")
    world.finish(Failure("busy", "Another command.", 10), "shed")
    assert world.until(2) == Action("shed") and not world.events("alert-raised")
    world.finish(Failure("backlog", "It hangs.", 10), "shed")
    assert world.events("alert-raised") == ["rescue-failed"]
    assert world.until(keepers.FIRST_BACKOFF) == Action("shed")
    world.pulse = Pulse("ok")
    world.finish(Shed(("one",)), "shed")
    assert world.events("alert-cleared") == ["rescue-failed"]


def test_an_uncoupled_secondary_is_coupled_again_at_once() -> None:
    world = World(secondary("one", "attached", mode="write-behind"))
    world.seen = facts(secondary("one", "stale", mode="write-behind"))
    world.keeper.plugged(world.now)
    assert world.until(1) == Action("catch-up", ("one",))


def test_what_is_written_behind_is_proved_now_and_then() -> None:
    attached = secondary("one", "attached", mode="write-behind", lag=None)
    world = World(attached)
    began = world.now
    assert world.until(2 * PROOF_SECONDS) == Action("catch-up", ("one",))
    assert world.now - began >= PROOF_SECONDS
    world.finish(CaughtUp((Part("one", "compare"),), 30.0, 1.0), "catch-up")
    assert world.until(86400) is None  # nothing was written since
    world.writes += 1
    assert world.until(2 * PROOF_SECONDS) == Action("catch-up", ("one",))


@pytest.mark.parametrize("tracking", ["failed", "filling", "suspended"])
def test_tracking_in_trouble_is_mended_but_not_all_the_time(tracking: str) -> None:
    world = World(secondary())
    world.pulse = Pulse(tracking)  # type: ignore[arg-type]
    world.writes += 1
    assert world.until(keepers.TICK_SECONDS) == Action("mend")
    world.finish(Mended(), "mend")
    began = world.now
    world.writes += 1
    assert world.until(2 * keepers.MEND_SECONDS) == Action("mend")
    assert world.now - began >= keepers.MEND_SECONDS


def test_a_record_that_cannot_be_read_is_mended() -> None:
    world = World(secondary(state="stale", lag=INTERVAL))
    world.finish(Failure("era-metadata-bad", "Era metadata block 36: it is all zero.", 7), "catch-up")
    assert world.turn()[-1] == Action("mend")


def test_after_the_mending_every_block_is_compared_at_once() -> None:
    world = World(secondary())
    world.pulse = Pulse("failed")
    world.writes += 1
    assert world.until(20) == Action("mend")
    world.pulse = Pulse("ok")
    world.seen = facts(secondary(state="unknown"), alerts=(Alert("secondary-unknown", "one: lost."),))
    world.finish(Mended("the era metadata failed"), "mend")
    assert world.until(1) == Action("catch-up", ("one",))
    assert world.events("tracking-mended") == [None] and world.events("alert-raised") == ["secondary-unknown"]


def test_without_tracking_not_every_interval_compares_everything() -> None:
    world = World(secondary(state="current"))
    world.seen = facts(secondary(state="unknown"), tracked=False)
    world.keeper.plugged(world.now)
    assert world.until(1) == Action("catch-up", ("one",))
    world.finish(CaughtUp((Part("one", "compare"),), 30.0, 1.0, converged=False), "catch-up")
    began = world.now
    assert world.until(2 * keepers.UNTRACKED_SECONDS) is not None
    assert world.now - began >= keepers.UNTRACKED_SECONDS


def test_once_a_catch_up_has_begun_tracking_anew_all_is_as_before() -> None:
    world = World(secondary(state="current"))
    world.seen = facts(secondary(state="unknown"), tracked=False)
    world.keeper.plugged(world.now)
    assert world.until(1) == Action("catch-up", ("one",))
    world.catch_up("one")
    world.settle()
    world.writes += 1
    assert world.until(INTERVAL) == Action("catch-up", ("one",))


def test_a_worker_without_an_end_is_told_of_and_not_repeated() -> None:
    world = World(secondary())
    world.keeper.plugged(world.now)
    world.now += 1
    while not [action for action in world.turn() if action.kind == "look"]:
        world.finish(world.pulse)
    started = len(world.started)
    world.until(10 * keepers.LOOK_SECONDS, looks=False)
    assert len(world.started) == started
    assert world.events("alert-raised") == ["not-answering"]
    world.finish(world.seen)
    assert world.events("alert-cleared") == ["not-answering"]


def test_a_catch_up_that_stands_still_is_told_of_and_one_that_takes_long_is_not() -> None:
    world = World(secondary())
    world.writes += 1
    assert world.until(INTERVAL) == Action("catch-up", ("one",))
    for shown in range(20):
        world.keeper.moved(shown, world.now)
        world.now += keepers.STILL_SECONDS / 2
        world.settle()
    assert "not-answering" not in world.events("alert-raised")
    world.now += keepers.STILL_SECONDS / 2 + 1
    world.settle()
    assert world.events("alert-raised").count("not-answering") == 1
    world.keeper.moved(99, world.now)
    world.settle()
    assert world.events("alert-cleared").count("not-answering") == 1
    world.now += keepers.STILL_SECONDS + 1
    world.settle()
    world.catch_up("one")
    assert world.events("alert-raised").count("not-answering") == 2
    assert world.events("alert-cleared").count("not-answering") == 2


def test_alerts_are_told_once_whatever_their_figures() -> None:
    world = World(secondary(state="stale", lag=1.0))
    for lag in (400, 500, 600):
        alert = Alert("lag-missed", f"one lags {lag} s, and 300 s was promised.")
        world.seen = facts(secondary(state="stale", lag=float(lag)), alerts=(alert,))
        world.keeper.plugged(world.now)
        world.now += 1
        world.settle()
    assert world.events("alert-raised") == ["lag-missed"]
    assert [alert.summary for alert in world.keeper.alerts] == ["one lags 600 s, and 300 s was promised."]


def test_a_missed_promise_is_looked_at_when_it_is_missed() -> None:
    world = World(secondary(state="stale", lag=INTERVAL))
    assert world.keeper.actor is not None  # and takes longer than it may
    world.started.clear()
    world.keeper.cares["one"].clean_at = world.now - INTERVAL + 30
    world.until(0)
    for _ in range(6):
        world.now += 10
        world.settle()
    assert [action.kind for action in world.started].count("look") == 1


def test_it_never_spins_and_never_does_two_things_at_once(seed: int) -> None:
    """Whatever happens in whatever order."""
    chance = random.Random(seed)
    labels = ("one", "two", "three")

    def some() -> Facts:
        return facts(
            *(
                secondary(
                    label, chance.choice(["current", "stale", "unknown", "missing", "attached", "failed", "syncing"]),
                    mode=chance.choice(["periodic", "write-behind"]), here=chance.choice([None, "8:0 1", "8:0 2"]),
                    lag=chance.choice([None, 0.0, 1e3]), copied=chance.random() < 0.8,
                )
                for label in labels if chance.random() < 0.9
            ),
            tracked=chance.random() < 0.9, alerts=(Alert("x", "one y"),) * chance.randrange(2),
        )  # fmt: skip

    def answer(action: Action) -> Result | Failure:
        if chance.random() < 0.2:
            return chance.choice([Failure("busy", "b", 10), Failure("cancelled", "c"), Failure("device", "d", 6)])
        parts = tuple(Part(label, "full", error=chance.choice([None, "e"])) for label in action.labels)
        return {
            "look": some(),
            "pulse": Pulse(
                chance.choice(["ok", "failed", "filling"]), chance.choice([(), ("one",)]), chance.random() < 0.3
            ),
            "mark": Marked(("one",)),
            "shed": Shed(("one",)),
            "mend": Mended(chance.choice([None, "d"])),
            "catch-up": CaughtUp(parts, 1.0, 1.0, chance.random() < 0.9),
        }[action.kind]  # type: ignore[return-value]

    keeper, now, writes, idle, running = Keeper("m"), 0.0, 0, 0, dict[str, Action]()
    for _ in range(3000):
        writes += chance.random() < 0.3
        keeper.sampled(writes if chance.random() < 0.99 else None, now)
        keeper.cancels(now)
        for action in keeper.actions(now):
            slot = "looker" if action.looks_only else "actor"
            assert slot not in running
            running[slot] = action
        for slot in [slot for slot in running if chance.random() < 0.5]:
            done = running.pop(slot)
            keeper.finished(done, answer(done), now)
        if chance.random() < 0.05:
            keeper.plugged(now)
        if chance.random() < 0.05:
            keeper.lower_changed(now)
        keeper.said(1e9, now)
        wake = keeper.wake(now)
        idle = 0 if wake > now else idle + 1
        assert wake >= now and (idle < 50 or running), "it spins"
        now = max(now, wake if chance.random() < 0.7 else now + chance.random())
    assert {event.event for event in keeper.events} <= EVENTS.keys()
