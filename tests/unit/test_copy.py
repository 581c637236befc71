# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying on real files with O_DIRECT: every byte, and what a failing disk does to the others."""

import contextlib
import errno
import itertools
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from dmsoft.resync import copy
from dmsoft.resync.buffers import aligned_buffer
from dmsoft.resync.copy import (
    BATCH_PIECES,
    CancelledError,
    Copier,
    Piece,
    Side,
    Tally,
    read_all,
    write_all,
)
from dmsoft.resync.extents import Request, batches
from dmsoft.resync.staging import Staging
from dmsoft.units import KIB, MIB

SIZE = 8 * MIB
OFFSETS = (MIB, 2 * MIB, 64 * KIB)


class Disks:
    """Files that stand for disks; each data region begins somewhere else."""

    def __init__(self, folder: Path, chance: random.Random, stack: contextlib.ExitStack) -> None:
        self.folder, self.chance, self.stack = folder, chance, stack
        self.data = chance.randbytes(SIZE)

    def make(self, name: str, content: bytes, offset: int, flags: int = os.O_RDWR | os.O_DIRECT) -> Side:
        path = self.folder / name
        path.write_bytes(b"\xaa" * offset + content + b"\xbb" * MIB)
        return Side(self.open(path, flags), offset)

    def open(self, path: Path | str, flags: int) -> int:
        fd = os.open(path, flags)
        self.stack.callback(os.close, fd)
        return fd

    def source(self) -> Side:
        return self.make("source", self.data, OFFSETS[0])

    def target(self, index: int = 0, content: bytes = bytes(SIZE)) -> Side:
        return self.make(f"target{index}", content, OFFSETS[(index + 1) % 3])

    def content(self, index: int = 0) -> bytes:
        """The data region of a target, after a look at what lies around it."""
        raw, offset = (self.folder / f"target{index}").read_bytes(), OFFSETS[(index + 1) % 3]
        assert raw[:offset] == b"\xaa" * offset and raw[offset + SIZE :] == b"\xbb" * MIB
        return raw[offset : offset + SIZE]


@pytest.fixture
def disks(tmp_path: Path, seed: int) -> Iterator[Disks]:
    with contextlib.ExitStack() as stack:
        yield Disks(tmp_path, random.Random(seed), stack)


def whole(targets: int = 1, length: int = MIB) -> list[Request]:
    return [Request(at, min(length, SIZE - at), targets) for at in range(0, SIZE, length)]


def merged(data: bytes, old: bytes, requests: list[Request], target: int) -> bytes:
    expected = bytearray(old)
    for request in requests:
        if request.targets >> target & 1:
            expected[request.offset : request.offset + request.length] = data[request.offset :][: request.length]
    return bytes(expected)


def test_a_whole_copy_is_equal(disks: Disks) -> None:
    done: list[int] = []
    copier = Copier(disks.source(), [disks.target()], on_progress=done.append)
    copier.run(whole())
    assert disks.content() == disks.data
    assert copier.tally == Tally([SIZE], read=SIZE, requests=len(whole()))
    assert sum(done) == SIZE


def test_each_target_gets_its_own_requests_and_nothing_else(disks: Disks) -> None:
    old = [disks.chance.randbytes(SIZE) for _ in range(3)]
    targets = [disks.target(index, content) for index, content in enumerate(old)]
    requests = [
        Request(at * 64 * KIB, 64 * KIB if at % 3 else 4 * KIB, disks.chance.randrange(1, 8)) for at in range(128)
    ]
    copier = Copier(disks.source(), targets)
    copier.run(requests)
    for index in range(3):
        assert disks.content(index) == merged(disks.data, old[index], requests, index)
    assert copier.tally.read == sum(r.length for r in requests)
    assert copier.tally.written == [sum(r.length for r in requests if r.targets >> i & 1) for i in range(3)]


def broken(disks: Disks, how: str) -> Side:
    """A target that refuses every write."""
    if how == "full":
        return Side(disks.open("/dev/full", os.O_WRONLY), 0)
    if how == "read-only":
        return disks.make("readonly", bytes(SIZE), 0, os.O_RDONLY | os.O_DIRECT)
    fd = os.open("/dev/null", os.O_WRONLY)
    os.close(fd)
    return Side(fd + 1000, 0)


@pytest.mark.parametrize(("how", "number"), [("full", errno.ENOSPC), ("read-only", errno.EBADF), ("gone", errno.EBADF)])
def test_a_target_that_fails_is_dropped_and_the_other_is_whole(disks: Disks, how: str, number: int) -> None:
    copier = Copier(disks.source(), [broken(disks, how), disks.target()])
    copier.run(whole(0b11))
    assert disks.content() == disks.data
    assert list(copier.tally.failed) == [0] and copier.tally.failed[0].errno == number
    assert copier.tally.failures and copier.tally.requests == len(whole())
    assert copier.tally.written == [0, SIZE] and copier.tally.read == SIZE


def test_when_every_target_has_failed_the_rest_is_not_read(disks: Disks) -> None:
    copier = Copier(disks.source(), [broken(disks, "full"), broken(disks, "read-only")])
    copier.run(whole(0b11, 16 * KIB))
    assert set(copier.tally.failed) == {0, 1}
    assert copier.tally.read < SIZE / 2 and copier.tally.written == [0, 0]


def test_a_source_that_ends_early_is_noted_and_the_rest_is_copied(disks: Disks) -> None:
    source = disks.source()
    requests = [*whole(), Request(SIZE + 2 * MIB, MIB, 1)]
    copier = Copier(source, [disks.target()])
    copier.run(requests)
    assert disks.content() == disks.data
    assert copier.tally.failures == 1 and copier.tally.requests == len(requests)
    assert copier.tally.unread == [requests[-1]] and copier.tally.read == SIZE and not copier.tally.failed


def test_a_source_that_cannot_be_read_writes_nothing(disks: Disks) -> None:
    source = disks.make("source", disks.data, 0, os.O_WRONLY)
    old = disks.chance.randbytes(SIZE)
    copier = Copier(source, [disks.target(content=old)])
    copier.run(whole())
    assert disks.content() == old
    assert sorted(r.offset for r in copier.tally.unread) == [r.offset for r in whole()]
    assert copier.tally.read == 0 and copier.tally.written == [0]


def test_small_requests_are_gathered(disks: Disks) -> None:
    """And each target gets the pieces that are meant for it, no more at a time than it has room for."""
    requests = [Request(at * 8 * KIB, 4 * KIB, disks.chance.randrange(1, 4)) for at in range(SIZE // (8 * KIB))]
    old = [disks.chance.randbytes(SIZE) for _ in range(2)]

    class Counted:
        def __init__(self, side: Side) -> None:
            self.side, self.counts = side, list[int]()

        def put(self, pieces: Sequence[Piece]) -> None:
            self.counts.append(len(pieces))
            self.side.put(pieces)

    targets = [Counted(disks.target(index, content)) for index, content in enumerate(old)]
    Copier(disks.source(), targets, batch_pieces=BATCH_PIECES).run(requests)
    for index, target in enumerate(targets):
        assert disks.content(index) == merged(disks.data, old[index], requests, index)
        assert max(target.counts) <= BATCH_PIECES and len(target.counts) <= len(requests) // BATCH_PIECES + 2


@pytest.mark.parametrize("batch_pieces", [1, BATCH_PIECES])
def test_what_cannot_be_read_comes_from_elsewhere_block_by_block(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, batch_pieces: int
) -> None:
    block, bad, saved = 64 * KIB, {3, 4, 70}, {4}
    source = disks.source()

    def read(side: Side, view: memoryview, offset: int) -> None:
        if side is source and any(n in bad for n in range(offset // block, (offset + len(view) - 1) // block + 1)):
            raise OSError(errno.EIO, "bad sector")
        read_all(side, view, offset)

    def rescue(offset: int, view: memoryview) -> bool:
        view[:] = disks.data[offset : offset + len(view)]
        return offset // block in saved

    monkeypatch.setattr(copy, "read_all", read)
    copier = Copier(source, [disks.target()], piece_bytes=block, batch_pieces=batch_pieces, rescue=rescue)
    copier.run(whole(length=256 * KIB))
    assert sorted(r.offset // block for r in copier.tally.unread) == sorted(bad - saved)
    assert copier.tally.rescued == block and copier.tally.read == SIZE - 2 * block
    expected = bytearray(disks.data)
    for lost in bad - saved:
        expected[lost * block : (lost + 1) * block] = bytes(block)
    assert disks.content() == bytes(expected)


def test_below_a_checkpoint_everything_is_copied(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "CHECKPOINT_SECONDS", 0.005)
    seen: list[int] = []

    def check(offset: int) -> None:
        seen.append(offset)
        assert disks.content()[:offset] == disks.data[:offset]

    copier = Copier(disks.source(), [disks.target()], on_checkpoint=check, on_progress=lambda _: time.sleep(0.003))
    copier.run(whole(length=64 * KIB))
    assert seen == sorted(seen) and len(seen) >= 3 and 0 < seen[-1] <= SIZE == copier.floor()


def test_what_a_thread_left_as_it_ended_is_not_below_a_checkpoint(disks: Disks) -> None:
    """The next thread may have the number that the system gave to the first."""
    copier = Copier(disks.source(), [disks.target()])
    copier._pending = batches(whole(), batch_bytes=MIB, most=1, rise=0)
    left, _, next_one = copier._next(0), copier._next(1), copier._next(1)
    assert left is not None and next_one is not None
    assert copier.floor() == left[0].offset < next_one[0].offset


def test_compare_writes_only_what_differs(disks: Disks) -> None:
    old = bytearray(disks.data)
    for at in (0, 3 * MIB + 17, SIZE - 1):
        old[at] ^= 0x40
    copier = Copier(disks.source(), [disks.target(content=bytes(old))], compare=1)
    copier.run(whole(length=256 * KIB))
    assert disks.content() == disks.data
    assert copier.tally.compared == SIZE
    assert copier.tally.differing == 3 * 256 * KIB == copier.tally.written[0]


def test_compare_of_equal_disks_writes_nothing(disks: Disks) -> None:
    target = disks.make("target0", disks.data, OFFSETS[1], os.O_RDONLY | os.O_DIRECT)
    copier = Copier(disks.source(), [target], compare=1)
    copier.run(whole())
    assert copier.tally.compared == SIZE and copier.tally.written == [0] and not copier.tally.failed


def test_compare_is_a_matter_of_each_target(disks: Disks) -> None:
    copier = Copier(disks.source(), [disks.target(0, disks.data), disks.target(1, disks.data)], compare=0b10)
    copier.run(whole(0b11))
    assert copier.tally.written == [SIZE, 0] and copier.tally.compared == SIZE


def test_a_target_that_cannot_be_read_fails_a_compare(disks: Disks) -> None:
    copier = Copier(disks.source(), [disks.make("blind", bytes(SIZE), 0, os.O_WRONLY)], compare=1)
    copier.run(whole())
    assert list(copier.tally.failed) == [0] and copier.tally.written == [0]


def test_cancel_stops_between_requests_and_leaves_whole_ones(disks: Disks) -> None:
    cancelled = threading.Event()
    seen: list[int] = []

    def on_progress(count: int) -> None:
        seen.append(count)
        if len(seen) >= 10:
            cancelled.set()

    copier = Copier(disks.source(), [disks.target()], cancelled=cancelled, on_progress=on_progress)
    with pytest.raises(CancelledError):
        copier.run(whole(length=16 * KIB))
    assert 10 <= len(seen) < SIZE // (16 * KIB)
    copied = disks.content()
    pieces = [copied[at : at + 16 * KIB] for at in range(0, SIZE, 16 * KIB)]
    written = [at for at, piece in enumerate(pieces) if any(piece)]
    assert len(written) * 16 * KIB == copier.tally.written[0]
    assert all(pieces[at] == disks.data[at * 16 * KIB : (at + 1) * 16 * KIB] for at in written)
    # A rerun of the same requests goes on and ends whole.
    Copier(disks.source(), [Side(copier.targets[0].fd, OFFSETS[1])]).run(whole())
    assert disks.content() == disks.data


def test_cancelled_before_the_first_request_copies_nothing(disks: Disks) -> None:
    cancelled = threading.Event()
    cancelled.set()
    copier = Copier(disks.source(), [disks.target()], cancelled=cancelled)
    with pytest.raises(CancelledError):
        copier.run(whole())
    assert not any(disks.content())


def test_a_bug_in_a_thread_reaches_the_caller(disks: Disks) -> None:
    def on_progress(_: int) -> None:
        raise RuntimeError("a bug")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="a bug"):
        Copier(disks.source(), [disks.target()], on_progress=on_progress).run(whole())
    assert threading.active_count() == before


def test_several_threads_are_at_work(disks: Disks) -> None:
    names: set[str] = set()

    def on_progress(_: int) -> None:
        names.add(threading.current_thread().name)
        time.sleep(0.01)

    Copier(disks.source(), [disks.target()], on_progress=on_progress).run(whole(length=64 * KIB))
    assert len(names) > 1 and disks.content() == disks.data


def test_staging_holds_what_was_there_when_it_was_filled(disks: Disks) -> None:
    source, stage, tally = disks.source(), Staging(SIZE), Tally.of(2)
    requests = [Request(0, 64 * KIB, 0b01), Request(MIB, MIB, 0b11), Request(SIZE - 4 * KIB, 4 * KIB, 0b10)]
    stage.fill(source, requests)
    write_all(source, memoryview(aligned_buffer(SIZE)), 0)  # the writers go on after the barrier
    stage.drain([disks.target(0), disks.target(1)], tally)
    for index in range(2):
        assert disks.content(index) == merged(disks.data, bytes(SIZE), requests, index)
    assert tally.written == [64 * KIB + MIB, MIB + 4 * KIB] and tally.read == 64 * KIB + MIB + 4 * KIB


def test_staging_takes_exactly_its_capacity(disks: Disks) -> None:
    source, stage = disks.source(), Staging(128 * KIB)
    stage.fill(source, [Request(0, 64 * KIB, 1), Request(MIB, 64 * KIB, 1)])
    with pytest.raises(MemoryError):
        stage.fill(source, [Request(0, 64 * KIB, 1), Request(MIB, 64 * KIB, 1), Request(2 * MIB, 4 * KIB, 1)])


def test_staging_that_did_not_fit_is_never_written(disks: Disks) -> None:
    source, stage, tally = disks.source(), Staging(64 * KIB), Tally.of(1)
    with pytest.raises(MemoryError):
        stage.fill(source, [Request(0, 64 * KIB, 1), Request(MIB, 4 * KIB, 1)])
    stage.drain([disks.target()], tally)
    assert not any(disks.content()) and tally.written == [0]


def test_staging_filled_again_forgets_the_first(disks: Disks) -> None:
    source, stage, tally = disks.source(), Staging(MIB), Tally.of(1)
    stage.fill(source, [Request(0, MIB, 1)])
    stage.fill(source, [Request(2 * MIB, 4 * KIB, 1)])
    stage.drain([disks.target()], tally)
    assert disks.content() == merged(disks.data, bytes(SIZE), [Request(2 * MIB, 4 * KIB, 1)], 0)


def test_staging_goes_to_those_named(disks: Disks) -> None:
    """First inside the barrier to the coupled ones, then after it to the others."""
    stage, inside, after = Staging(SIZE), Tally.of(2), Tally.of(2)
    stage.fill(disks.source(), whole(0b11))
    targets = [disks.target(0), disks.target(1)]
    stage.drain(targets, inside, {1})
    assert disks.content(1) == disks.data and not any(disks.content(0))
    stage.drain(targets, after, {0})
    assert disks.content(0) == disks.data
    assert (inside.written, after.written) == ([0, SIZE], [SIZE, 0])


def test_staging_of_nothing(disks: Disks) -> None:
    stage, tally = Staging(0), Tally.of(1)
    stage.fill(disks.source(), [])
    stage.drain([disks.target()], tally)
    assert tally == Tally.of(1)


def test_staging_goes_on_without_a_target_that_fails(disks: Disks) -> None:
    stage, tally = Staging(SIZE), Tally.of(2)
    stage.fill(disks.source(), whole(0b11))
    stage.drain([broken(disks, "full"), disks.target()], tally)
    assert disks.content() == disks.data
    assert tally.failed[0].errno == errno.ENOSPC and tally.written == [0, SIZE]


def test_staging_of_a_source_that_cannot_be_read_raises(disks: Disks) -> None:
    source = disks.make("source", disks.data, 0, os.O_WRONLY)
    with pytest.raises(OSError, match="Bad file"):
        Staging(SIZE).fill(source, whole())


def test_reading_past_the_end_is_an_error_never_a_short_buffer(disks: Disks) -> None:
    view = aligned_buffer(MIB)
    with pytest.raises(OSError, match="end of the device") as caught:
        read_all(disks.source(), view, SIZE + MIB - 512 * KIB)
    assert caught.value.errno == errno.EIO


def test_buffers_are_aligned_for_direct_io() -> None:

    for size in (4096, MIB, MIB + 4096):
        assert np.frombuffer(aligned_buffer(size), np.uint8).ctypes.data % 4096 == 0


def test_large_buffers_are_aligned_to_huge_pages_and_not_inherited() -> None:
    """What a fork shares would be copied under a read that is on its way."""
    view = aligned_buffer(4 * MIB, huge=True, present=True)
    address = np.frombuffer(view, np.uint8).ctypes.data
    assert len(view) == 4 * MIB and address % (2 * MIB) == 0
    maps = Path("/proc/self/smaps").read_text().split("VmFlags:")
    flags = next(
        after.split("\n", 1)[0]
        for before, after in itertools.pairwise(maps)
        if any(_holds(line, address) for line in before.splitlines())
    )
    assert " dc" in flags
    del view


def _holds(line: str, address: int) -> bool:
    span = line.split(" ", 1)[0].split("-")
    return len(span) == 2 and all(map(str.isalnum, span)) and int(span[0], 16) <= address < int(span[1], 16)


def test_a_target_that_takes_long_gets_more_at_once(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, now, most = threading.Lock(), [0], [0]

    class Watched:
        def __init__(self, side: Side) -> None:
            self.side = side

        def put(self, given: Sequence[Piece]) -> None:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.02)
            self.side.put(given)
            with lock:
                now[0] -= 1

    for slow, threads in ((0, range(1, 5)), (1 << 60, range(25, 49))):
        monkeypatch.setattr(copy, "_SLOW_BYTES", slow)
        most[0] = 0
        target = disks.target()
        Copier(disks.source(), [Watched(target)]).run(whole(length=32 * KIB))
        assert disks.content() == disks.data and most[0] in threads


def test_a_machine_that_is_short_of_threads_copies_with_those_it_has(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, left = threading.Thread.start, [2]

    def scarce(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    Copier(disks.source(), [disks.target()]).run(whole())
    assert disks.content() == disks.data
    left[0] = 0
    with pytest.raises(RuntimeError, match="new thread"):
        Copier(disks.source(), [disks.target()]).run(whole())
