# SPDX-License-Identifier: GPL-2.0-or-later
"""The pace of a copy: what it promises whatever it is told, and where it settles beside a load on a modelled disk."""

import functools
import heapq
import math
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsoft.errors import UsageError
from dmsoft.resync import ioprio, throttle
from dmsoft.resync.copy import CancelledError, Side, aligned_buffer
from dmsoft.resync.pace import LEAST_RATE, NOTHING, SHARE_SECONDS, Adaptive, Bucket, Limit, Seen, shut
from dmsoft.resync.throttle import Counters, Throttle
from dmsoft.units import KIB, MIB

LOOK = 0.1


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("max", Limit("max")), ("adaptive", Limit("adaptive")), (" Adaptive ", Limit()), ("50%", Limit("share", 0.5)),
        ("100 %", Limit("share", 1.0)), ("1%", Limit("share", 0.01)), ("50M", Limit("rate", 50 * MIB)),
        ("50M/s", Limit("rate", 50 * MIB)), ("4K", Limit("rate", 4096)),
    ],
)  # fmt: skip
def test_limits_as_they_are_written(text: str, limit: Limit) -> None:
    assert Limit.parse(text) == limit
    assert Limit.parse(str(limit).replace(" MiB", "M").replace(" KiB", "K")) == limit


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-5M", "fast", "50 %%", "1K", "%", "50M/m"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rate"):
        Limit.parse(text)


@given(st.lists(st.tuples(st.integers(1, MIB), st.floats(0, 2)), max_size=60), st.integers(4 * KIB, 1 << 30))
def test_a_bucket_never_lets_more_through_and_saves_nothing_up(steps: list[tuple[int, float]], rate: int) -> None:
    bucket, now, free = Bucket(), 0.0, 0.0
    for size, pause in steps:
        now += pause
        wait = bucket.wait(size, rate, now)
        assert wait >= 0 and now + wait == pytest.approx(max(now, free))
        now += wait
        free = now + size / rate


@given(st.floats(0.01, 1), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_share_is_open_for_its_part_of_the_time(share: float, since: float, later: float) -> None:
    wait = shut(share, since, since + later)
    assert 0 <= wait <= SHARE_SECONDS * (1 - share) + 1e-3
    if wait > 1e-6:
        assert shut(share, since, since + later + wait + 1e-6) == 0


def test_a_share_adds_up() -> None:
    ticks = [shut(0.3, 7.0, 7.0 + tick / 1000) == 0 for tick in range(10_000)]
    assert sum(ticks) == pytest.approx(3000, abs=10)


SEEN = st.builds(
    Seen, seconds=st.floats(0.01, 30), requests=st.integers(0, 10_000), waited=st.floats(0, 1e5),
    in_flight=st.integers(0, 500), copied=st.integers(0, 1 << 34),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.tuples(SEEN, st.floats(0, 1e9)), max_size=80))
def test_whatever_it_sees_it_keeps_above_the_floor_and_listens_but_for_moments(
    looks: list[tuple[Seen, float]],
) -> None:
    state, heard = Adaptive(), 0
    for seen, floor in looks:
        before, state = state, state.after(seen, floor)
        assert state.rate is None or state.rate == 0 or state.rate >= max(floor, LEAST_RATE)
        # It listens for a few looks and then goes on, however odd what it hears is.
        heard = heard + 1 if state.rate == 0 else 0
        assert heard <= 3.0 / 0.01 + 3
        if before.rate is None:
            assert state.rate in (None, 0)


def play(state: Adaptive, seconds: float, disk: "Disk", floor: float = 0.0) -> Adaptive:
    for _ in range(int(seconds / LOOK)):
        state = state.after(disk.look(state.rate), floor)
        disk.history.append(state.rate)
    return state


class Disk:
    """Others' requests take longer the more of the disk's speed the copy uses, as in any queue; with noise."""

    def __init__(self, speed: float, each: float, a_second: float, seed: int) -> None:
        self.speed, self.each, self.a_second = speed, each, a_second
        self._chance, self.history, self._due = random.Random(seed), list[float | None](), 0.0

    def look(self, rate: float | None) -> Seen:
        used = min(0.95, (self.speed if rate is None else rate) / self.speed)
        self._due += self.a_second * LOOK
        count, self._due = int(self._due), self._due % 1
        waits = [self._chance.expovariate(1 / (self.each * self.slower(used))) for _ in range(count)]
        return Seen(LOOK, count, sum(waits), int(count > 0), int(used * self.speed * LOOK))

    @staticmethod
    def slower(used: float) -> float:
        return 1 / (1 - used)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([20 * MIB, 200 * MIB, 2000 * MIB]), st.sampled_from([0.0002, 0.002, 0.02]),
    st.sampled_from([100.0, 1000.0]), st.integers(0, 1 << 32),
)  # fmt: skip
def test_beside_a_load_it_settles_where_that_load_hardly_feels_it(
    speed: float, each: float, a_second: float, seed: int
) -> None:
    disk = Disk(speed, each, a_second, seed)
    state = play(Adaptive(), 1, disk)
    assert state.rate is not None, "a load was there from the first look on"
    play(state, 60, disk)
    settled = [rate for rate in disk.history[-400:] if rate]
    mean = sum(settled) / len(settled)
    # The kernel says little of a few short requests, and what may be chance is let pass.
    chance = 1.5 * math.sqrt(max(1.0, 0.004 / each) / a_second)
    assert disk.slower(mean / speed) < 1.5 + chance or mean <= 1.3 * LEAST_RATE
    assert mean >= 0.02 * speed or mean >= LEAST_RATE, "no use of what the load leaves"
    held = sum(rate == 0 for rate in disk.history[-400:]) / 400
    assert held <= 0.1


class Queue(Disk):
    """A disk with a knee: nobody waits as long as it keeps up, and everybody for all that gathers when it does not."""

    _left = 0.0

    def look(self, rate: float | None) -> Seen:
        moved = self.speed * LOOK
        offered = (2 * self.speed if rate is None else rate) * LOOK
        self._left = max(0.0, self._left + offered - moved)
        self.waits.append(self._left / self.speed)
        self._due += self.a_second * LOOK
        count, self._due = int(self._due), self._due % 1
        own = sum(self._chance.expovariate(1 / self.each) for _ in range(count))
        if rate == 0:
            self._left = 0.0
        return Seen(LOOK, count, own + count * self.waits[-1], int(count > 0), int(min(offered, moved)))

    def __init__(self, speed: float, each: float, a_second: float, seed: int) -> None:
        super().__init__(speed, each, a_second, seed)
        self.waits = list[float]()


@pytest.mark.parametrize("speed", [20 * MIB, 500 * MIB])
@pytest.mark.parametrize("each", [0.001, 0.01])
def test_beside_a_disk_with_a_knee_hardly_anybody_ever_waits(speed: float, each: float) -> None:
    used = 0.0
    for seed in range(10):
        disk = Queue(speed, each, 200.0, seed)
        play(Adaptive(), 90, disk)
        settled = disk.history[300:]
        used += sum(rate or 0 for rate in settled) / len(settled) / speed / 10
        late = [wait for wait in disk.waits[300:] if wait > 0.5 * each]
        assert len(late) <= 0.05 * len(settled)
    assert used > 0.5


class Serial:
    """A disk that serves one request at a time, ``each`` seconds long; four users whose requests come at random, and a
    copy that reads pieces of 128 KiB, four megabytes ahead while it is not held back, in the same queue."""

    users, piece = 4, 128 * KIB

    def __init__(self, each: float, a_second: float, seed: int, *, copy: bool) -> None:
        self.each, self.rate = each, a_second / self.users
        self.chance, self.copying = random.Random(seed), copy
        self.state, self.bucket = Adaptive(), Bucket()
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.queue: list[int] = []  # whose turn it is; -1: the copy's
        self.asked, self.planned = [0.0] * self.users, [0.0] * self.users
        self.reading, self.copied, self.serving = 0, 0, False
        self.waits: list[tuple[float, float]] = []
        self.looked, self.told = 0.0, 0

    def at(self, when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (when, len(self.waits) + len(self.events) + self.chance.getrandbits(30), what))

    def run(self, seconds: float, warm: float) -> float:
        """The 99th percentile of what the users waited after the first ``warm`` seconds."""
        for user in range(self.users):
            self.next(user, 0.0)
        self.at(LOOK, self.look)
        self.read(0.0)
        now = 0.0
        while now < seconds:
            now, _, what = heapq.heappop(self.events)
            what(now)
        late = sorted(wait for when, wait in self.waits if when >= warm)
        return late[len(late) * 99 // 100]

    def next(self, user: int, now: float) -> None:
        """Each has one request at a time; whoever is late catches up."""
        self.planned[user] += self.chance.expovariate(self.rate)
        self.at(max(now, self.planned[user]), functools.partial(self.ask, user))

    def ask(self, user: int, now: float) -> None:
        if user >= 0:
            self.asked[user] = now
        self.queue.append(user)
        self.serve(now)

    def serve(self, now: float) -> None:
        if self.queue and not self.serving:
            self.serving = True
            self.at(now + self.each, self.served)

    def served(self, now: float) -> None:
        user, self.serving = self.queue.pop(0), False
        if user >= 0:
            self.waits.append((now, now - self.asked[user]))
            self.next(user, now)
        else:
            self.reading, self.copied = self.reading - 1, self.copied + self.piece
            self.read(now)
        self.serve(now)

    def read(self, now: float) -> None:
        if not self.copying or (self.reading and self.state.rate is not None):
            return
        ahead = 32 if self.state.rate is None else 0 if self.state.rate == 0 else 1
        if ahead == 1 and self.bucket.free_at > now:
            self.at(min(self.bucket.free_at, now + LOOK), self.read)
        elif ahead:
            self.bucket.wait(self.piece, self.state.rate or 1e12, now)
            for _ in range(ahead - self.reading):
                self.reading += 1
                self.ask(-1, now)

    def look(self, now: float) -> None:
        waits = [wait for _, wait in self.waits[self.told :]]
        asking = sum(user >= 0 for user in self.queue)
        seen = Seen(now - self.looked, len(waits), round(sum(waits), 3), asking, self.copied)
        self.looked, self.told, self.copied = now, len(self.waits), 0
        held, self.state = self.state.rate, self.state.after(seen)
        if held in (None, 0) and self.state.rate != held:
            self.read(now)
        self.at(now + LOOK, self.look)


@pytest.mark.parametrize(("each", "a_second"), [(0.0002, 1000), (0.001, 200), (0.004, 50), (0.008, 30)])
def test_those_who_wait_longest_hardly_wait_longer(each: float, a_second: float) -> None:
    ratios = []
    for seed in range(5):
        alone, beside = (Serial(each, a_second, seed, copy=copy).run(30, 5) for copy in (False, True))
        ratios.append(beside / alone)
    assert sum(ratios) / len(ratios) < 1.5, ratios


@given(st.integers(0, 1 << 32), st.sampled_from([0.5, 0.9]))
@settings(max_examples=10, deadline=None)
def test_it_never_goes_below_what_converges(seed: int, share: float) -> None:
    disk = Disk(100 * MIB, 0.001, 500, seed)
    play(Adaptive(), 60, disk, floor=share * 100 * MIB)
    assert all(rate is None or rate == 0 or rate >= share * 100 * MIB for rate in disk.history)
    assert sum(rate == 0 for rate in disk.history) / len(disk.history) < 0.1


def test_a_primary_that_nobody_uses_costs_nothing_and_one_left_alone_soon_neither() -> None:
    idle = Seen(LOOK, 0, 0.0, 0, 50 * MIB)
    state = Adaptive()
    for _ in range(100):
        state = state.after(idle)
        assert state.rate is None
    for number in range(100):  # a few requests a second are no use worth it
        state = state.after(Seen(LOOK, number % 5 == 0, 0.01, 0, 50 * MIB))
        assert state.rate is None
    for _ in range(4):
        state = state.after(Seen(LOOK, 5, 0.01, 1, 50 * MIB))
    assert state.rate == 0
    for _ in range(11):
        state = state.after(idle)
    assert state == Adaptive()


def test_requests_that_do_not_end_are_no_sign_of_ease() -> None:
    state = play(Adaptive(), 4, Disk(100 * MIB, 0.001, 500, 1))
    before = state.rate
    assert before
    for _ in range(30):
        state = state.after(Seen(LOOK, 0, 0.0, 8, MIB))
    assert state.rate == LEAST_RATE < before
    assert NOTHING.latency == 0.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Waits(threading.Event):
    """An event whose waits pass on the clock alone."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.now += timeout or 0.0
        return self.is_set()


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * (4 * KIB))
    fd = os.open(path, os.O_RDONLY)
    yield Side(fd, 0)
    os.close(fd)


def made(limit: Limit, clock: Clock, load: object = None) -> Throttle:
    return Throttle(limit, load or (lambda: Counters(0, 0.0, 0)), Waits(clock), clock=clock)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [Limit("rate", 4 * MIB), Limit("share", 0.25), Limit("max"), Limit()])
def test_what_is_read_is_what_is_there_and_no_faster_than_allowed(side: Side, limit: Limit) -> None:
    clock = Clock()
    throttle, view = made(limit, clock), aligned_buffer(MIB)
    start = clock.now
    for _ in range(20):
        throttle.read(side, view, 0)
        clock.now += 0.01
    assert bytes(view[:512]) == bytes(range(256)) * 2
    took = clock.now - start
    assert took == pytest.approx({"rate": 5.0, "share": 0.2, "max": 0.2, "adaptive": 0.2}[limit.kind], abs=0.1)
    assert throttle.held_back == (limit.kind == "rate")
    if limit.kind != "max":  # the rate of the reads themselves is known, whatever they waited
        assert throttle.copied == 20 * MIB and throttle.reading == 0


def test_what_came_before_the_copy_does_not_hold_it_back(side: Side) -> None:
    clock, view, done = Clock(), aligned_buffer(MIB), [0]
    throttle = made(Limit(), clock, lambda: Counters(done[0], done[0] * 0.001, 0))
    for _ in range(3):
        done[0] += 56  # as many requests as udev makes after a barrier
        clock.now += 0.7
        throttle.begin()
        for _ in range(10):
            throttle.read(side, view, 0)
            clock.now += 0.05
    assert not throttle.held_back


def test_a_load_holds_it_back_and_its_end_lets_go(side: Side) -> None:
    clock, view = Clock(), aligned_buffer(MIB)
    load = [500.0]

    def counters() -> Counters:
        done = int((clock.now - 100) * load[0])
        return Counters(done, done * 0.001, 0)

    throttle = made(Limit(), clock, counters)
    for _ in range(40):
        throttle.read(side, view, 0)
        clock.now += 0.02
    assert throttle.held_back and throttle.rate is not None
    load[0] = 0
    for _ in range(400):
        throttle.read(side, view, 0)
        clock.now += 0.02
    assert throttle.rate is None


def test_who_waits_can_be_cancelled(side: Side) -> None:
    cancelled = threading.Event()
    throttle = Throttle(Limit("rate", 4 * KIB), lambda: Counters(0, 0.0, 0), cancelled)
    threading.Timer(0.2, cancelled.set).start()
    start = time.monotonic()
    with pytest.raises(CancelledError):
        throttle.read(side, aligned_buffer(MIB), 0)
    assert time.monotonic() - start < 20


def test_a_device_that_is_gone_is_used_by_nobody(side: Side) -> None:
    def gone() -> Counters:
        raise FileNotFoundError

    clock = Clock()
    slow = made(Limit(), clock, gone)
    clock.now += 1
    slow.read(side, aligned_buffer(4096), 0)
    assert slow.rate is None


def test_counters_are_read_from_the_kernel() -> None:
    number = next(Path("/sys/class/block").glob("*/dev")).read_text().strip()
    assert throttle.Counters.of(number).requests >= 0


def _priority(thread: int) -> str:
    return subprocess.run(["ionice", "-p", str(thread)], capture_output=True, text=True, check=True).stdout.strip()


def test_a_thread_lowers_its_own_priority_and_no_others() -> None:
    found, end = list[str](), threading.Event()

    def idle() -> None:
        end.wait(60)

    def look() -> None:
        ioprio.lower()
        found.append(_priority(threading.get_native_id()))

    other, lowered = threading.Thread(target=idle), threading.Thread(target=look)
    other.start()
    assert other.native_id is not None
    before = _priority(other.native_id)
    lowered.start()
    lowered.join()
    assert found == ["best-effort: prio 7"] and _priority(other.native_id) == before
    end.set()
    other.join()
