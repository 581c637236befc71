# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal on files: cut at any write, with any part of the disk's cache lost, the data are the old or the new point
in time, and the header says which."""

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmsoft.era.blocks import BlockSet
from dmsoft.member import header
from dmsoft.member import record as records
from dmsoft.member.payload import Secondary, Sync
from dmsoft.resync import buffers, recovery, segments
from dmsoft.resync import journal as journal_module
from dmsoft.resync.buffers import Keeper, aligned_buffer
from dmsoft.resync.copy import BATCH_PIECES, REQUEST_BYTES, Copier, Side, write_all
from dmsoft.resync.extents import requests, runs
from dmsoft.resync.journal import Journal, needed
from dmsoft.resync.segments import DESCRIPTOR_BYTES, Descriptor, JournalDamagedError, build, parse
from dmsoft.units import KIB, MIB
from tests.journal_model import (
    BLOCK,
    DATA,
    JOURNAL,
    KEY,
    NEW_ERA,
    NEW_TOKEN,
    OLD,
    OLD_ERA,
    TRACKER,
    Pass,
    RecordedDisk,
    after,
    blank,
    data_of,
    differing,
    job_on,
    passes,
    pieces,
    reopened,
    resync,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def old() -> bytes:
    return random.Random(1).randbytes(DATA)


@pytest.fixture(scope="module")
def start(old: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The image of a secondary that holds ``old``."""
    return blank(old, folder=tmp_path_factory.mktemp("blank"))


class Bench:
    """Opens images as disks, and closes them again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._open = folder, list[RecordedDisk]()

    def disk(self, image: bytes) -> RecordedDisk:
        made = RecordedDisk(self._folder / f"disk{len(self._open)}", image)
        self._open.append(made)
        return made

    def close(self) -> None:
        for disk in self._open:
            disk.close()
            disk.path.unlink()
        self._open = []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def sync_of(found: header.Header) -> Sync:
    assert isinstance(found.payload, Secondary)
    return found.payload.sync


def whole(disk: RecordedDisk, old: bytes, new: bytes) -> Sync:
    """Assert that the disk is one of the two points in time, and that its header says which; returns what it says."""
    sync = sync_of(reopened(disk))
    expected, era = (new, NEW_ERA) if sync.era == NEW_ERA else (old, OLD_ERA)
    assert sync.consistent and sync.doubt is None and sync.era == era
    assert sync.consistent_as_of == ("2026-02-02T00:00:00Z" if era == NEW_ERA else OLD.consistent_as_of)
    assert differing(data_of(disk.image()), expected) == []
    return sync


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_a_power_cut_at_every_write_of_a_resync(bench: Bench, start: bytes, old: bytes, seed: int, count: int) -> None:
    chance = random.Random(seed)
    work = passes(chance, count, 5)
    new = after(old, work)
    disk = bench.disk(start)
    with disk.recorded():
        resync(job_on(disk), work)
    assert whole(disk, old, new).era == NEW_ERA
    eras = []
    for point in range(len(disk.log) + 1):
        cut = bench.disk(disk.cut(point, chance))
        with cut.recorded():
            eras.append(whole(cut, old, new).era)
        # Cut once more in the middle of what the next open did.
        again = bench.disk(cut.cut(chance.randrange(len(cut.log) + 1), chance))
        assert whole(again, old, new).era == eras[-1]
        bench.close()
    assert eras[0] == OLD_ERA
    ended = bench.disk(disk.cut(len(disk.log), chance, flushed=True))
    assert whole(ended, old, new).era == NEW_ERA


def test_the_order_of_writes_and_flushes(bench: Bench, start: bytes, old: bytes) -> None:
    disk = bench.disk(start)
    with disk.recorded():
        resync(job_on(disk), [{3: bytes(BLOCK), 9: bytes(BLOCK)}])
    data, record = 1 * MIB + JOURNAL, 1 * MIB
    places = ["header" if at < record else "record" if at == record else "journal" if at < data else "data"
              for at, _ in disk.log]  # fmt: skip
    assert places == ["header"] * 2 + ["record"] + ["journal"] * 2 + ["record"] + ["data"] * 2 + ["header"]
    # A flush stands between any two of the steps.
    assert {1, 2, 3, 5, 6, 8, 9} <= set(disk.flushes)


def test_a_direct_copy_says_first_that_the_disk_is_a_mix(bench: Bench, start: bytes) -> None:
    """And whatever journal there was is retired before."""
    disk = bench.disk(start)
    work = passes(random.Random(5), 1)
    with disk.recorded():
        job = job_on(disk)
        job.open_journal(10 * JOURNAL, direct=False)
        assert job.journal is None
        job.target.put(pieces(work[0]))
    first = next(n for n, (at, _) in enumerate(disk.log) if at >= MIB + JOURNAL)
    for point in range(first, len(disk.log) + 1):
        cut = bench.disk(disk.cut(point, random.Random(point), flushed=point > first))
        assert not sync_of(reopened(cut)).consistent


def committed(bench: Bench, image: bytes, work: list[Pass]) -> RecordedDisk:
    """A disk whose journal was committed and not applied."""
    disk = bench.disk(image)
    with disk.recorded():
        resync(job_on(disk), work)
    point = next(n for n, (at, _) in enumerate(disk.log) if at >= MIB + JOURNAL)
    chance = random.Random(0)
    chance.choice = lambda _: 0.0  # type: ignore[method-assign]
    return bench.disk(disk.cut(point, chance, flushed=True))


def test_a_commit_needs_every_segment(bench: Bench, start: bytes, old: bytes) -> None:
    """One changed bit anywhere in what was committed is noticed before it is written, and doubted ever after."""
    work = passes(random.Random(11), 2)
    disk = committed(bench, start, work)
    found = header.read(disk, key=KEY).header
    assert found is not None
    record = records.read(disk, found, KEY)
    assert record is not None and record.committed
    image = disk.image()
    chance = random.Random(12)
    for _ in range(40):
        at = MIB + 4096 + chance.randrange(record.length)
        changed = bytearray(image)
        changed[at] ^= 1 << chance.randrange(8)
        spoiled = bench.disk(bytes(changed))
        sync = sync_of(reopened(spoiled))
        assert not sync.consistent and sync.doubt is not None and sync.era == OLD_ERA
        # And the damaged journal never counts again, not even by way of the other copy of the header.
        spoiled = bench.disk(spoiled.image()[:32] + b"\xff" + spoiled.image()[33:])
        assert sync_of(reopened(spoiled)).doubt is not None
        bench.close()


def test_what_is_kept_is_a_copy_and_no_more_than_allowed() -> None:
    keeper, view = Keeper(32 * MIB), aligned_buffer(MIB)
    kept: list[memoryview] = []
    for number in range(33):
        view[:4] = number.to_bytes(4)
        copies = keeper.keep([view[:512], view[512:]])
        assert (copies is None) == (number == 32)
        kept += copies or []
    assert [int.from_bytes(each[:4]) for each in kept[::2]] == list(range(32))
    assert {np.frombuffer(each, np.uint8).ctypes.data % 512 for each in kept} == {0}


@pytest.mark.parametrize("fault", ["full", "no memory", "no answer"])
def test_without_memory_a_journal_is_read_back(
    bench: Bench, start: bytes, old: bytes, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lack of memory is no fault of the disk's."""

    def fail(*_: object, **__: object) -> float:
        raise OSError(12, "out of memory")

    if fault == "full":
        monkeypatch.setattr(buffers, "_available_share", lambda: 0.4)
    else:
        monkeypatch.setattr(buffers, "aligned_buffer" if fault == "no memory" else "_available_share", fail)
    work = passes(random.Random(15), 2)
    disk = bench.disk(start)
    resync(job_on(disk), work)
    assert whole(disk, old, after(old, work)).era == NEW_ERA


@pytest.mark.parametrize("other", ["key", "member", "header", "era"])
def test_a_journal_counts_only_for_the_disk_and_header_it_was_written_for(
    bench: Bench, start: bytes, old: bytes, other: str
) -> None:
    disk = committed(bench, start, passes(random.Random(13), 1))
    found = header.read(disk, key=KEY).header
    assert found is not None and recovery.found(disk, found, KEY) is not None
    if other == "key":
        assert recovery.found(disk, found, b"x" * 32) is None
        assert recovery.found(disk, header.Header(found.sequence, found.payload, False), KEY) is None
        return
    if other == "header":
        header.write_granted(disk, found.payload, KEY)  # whatever else happened to the disk since
        found = header.read(disk, key=KEY).header
        assert found is not None
    if other == "member":
        found = header.Header(found.sequence, found.payload.replace(member_uuid="e" * 32), True)
    if other == "era":
        found = header.Header(found.sequence, found.payload.replace(sync=OLD.replace(era=OLD_ERA + 1)), True)
    assert recovery.found(disk, found, KEY) is None


def test_a_forged_record_moves_nothing(bench: Bench, start: bytes, old: bytes) -> None:
    """The disk is hostile: it presents a commit that was never made, with every checksum right but for the key."""
    disk = bench.disk(start)
    found = header.read(disk, key=KEY).header
    assert found is not None
    journal = Journal(disk, found.payload.regions["journal"], found.payload.regions["data"], b"guess" * 7)
    journal.put(pieces({1: bytes(BLOCK)}))
    journal.save(found, OLD.replace(era=1000), committed=True)
    assert sync_of(reopened(disk)) == OLD
    assert data_of(disk.image()) == old


@settings(max_examples=200)
@given(st.binary(max_size=4096))
def test_no_block_of_bytes_is_a_record_by_chance(block: bytes) -> None:
    assert records.judge(block, KEY) is None
    assert records.judge(block.ljust(4096, b"\0"), KEY) is None


def test_an_old_journal_is_never_revived(bench: Bench, start: bytes, old: bytes) -> None:
    """Two runs; then either copy of the header is lost. What counts is the newest run, never a mix with the first."""
    disk = bench.disk(start)
    chance = random.Random(17)
    first, second = passes(chance, 1), passes(chance, 2)
    resync(job_on(disk), first)
    middle = after(old, first)
    image = disk.image()
    for copy in (0, 512 * KIB):
        torn = bench.disk(image[: copy + 40] + b"\xff" + image[copy + 41 :])
        sync = sync_of(reopened(torn))
        assert sync.consistent and data_of(torn.image()) == middle
    disk = bench.disk(image)
    with disk.recorded():
        job = job_on(disk)
        job.token = "9" * 32
        job.held = (NEW_ERA, None)
        resync(job, second)
    for point in range(len(disk.log) + 1):
        cut = disk.cut(point, chance)
        for copy in (None, 0, 512 * KIB):
            spoiled = cut if copy is None else cut[: copy + 40] + b"\xff" + cut[copy + 41 :]
            found = bench.disk(spoiled)
            scan = header.read(found, key=KEY)
            if scan.header is None:
                continue  # the other copy was torn by the cut: two faults at once leave no header
            sync = sync_of(reopened(found))
            data = data_of(found.image())
            assert sync.consistent and data in (middle, after(middle, second))
            bench.close()


def test_a_later_pass_wins(bench: Bench, start: bytes, old: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever thread is faster: the segments of an epoch wait for the one before."""
    work = [{block: bytes([number + 1]) * BLOCK for block in range(4)} for number in range(4)]
    disk = committed(bench, start, work)

    def slow(side: Side, view: memoryview, offset: int) -> None:
        time.sleep(0.05 * (len(work) - view[0]))  # the earlier, the slower
        write_all(side, view, offset)

    monkeypatch.setattr(journal_module, "write_all", slow)
    assert whole(disk, old, after(old, work)).era == NEW_ERA


def test_who_is_interrupted_leaves_no_thread_that_writes(
    bench: Bench, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = committed(bench, start, passes(random.Random(3), 2))

    def slow(side: Side, view: memoryview, offset: int) -> None:
        time.sleep(0.1)
        write_all(side, view, offset)

    join, interrupts = threading.Thread.join, iter([KeyboardInterrupt])

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        for interrupt in interrupts:
            raise interrupt
        join(thread, timeout)

    monkeypatch.setattr(journal_module, "write_all", slow)
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reopened(disk)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("apply-")]


def test_a_forged_segment_is_not_written(bench: Bench, start: bytes, old: bytes) -> None:
    """Every CRC is right, and the chain that was signed is not that of these descriptors."""
    disk = committed(bench, start, [{3: b"x" * BLOCK, 4: b"y" * BLOCK}])
    found = header.read(disk, key=KEY).header
    assert found is not None
    record = records.read(disk, found, KEY)
    assert record is not None and record.segments == 2
    block = aligned_buffer(DESCRIPTOR_BYTES)
    at = MIB + 4096 + DESCRIPTOR_BYTES + BLOCK
    forged = Descriptor(1, 1, segments.data_hash([memoryview(b"z" * BLOCK)]), ((9 * BLOCK, BLOCK),))
    build(forged, bytes.fromhex(record.id), block)
    image = disk.image()
    spoiled = bench.disk(image[:at] + bytes(block) + b"z" * BLOCK + image[at + DESCRIPTOR_BYTES + BLOCK :])
    assert sync_of(reopened(spoiled)).doubt is not None
    assert data_of(spoiled.image()) == old


def test_a_run_goes_on_with_the_journal_of_one_that_was_cut_off(bench: Bench, start: bytes, old: bytes) -> None:
    disk = bench.disk(start)
    first, second = passes(random.Random(21), 2)
    job = job_on(disk)
    held = pieces(first)
    job.open_journal(DATA // 2, direct=False)
    job.target.put(held)
    job.checkpoint(NEW_ERA, 20, TRACKER)
    job.checkpoint(NEW_ERA, 10, TRACKER)  # less than is known already
    found = header.read(disk, key=KEY).header
    assert found is not None and sync_of(found) == OLD
    record = recovery.found(disk, found, KEY)
    assert record is not None and not record.committed
    partial = record.sync.partial
    assert partial is not None and (record.sync.era, partial.until, partial.below) == (OLD_ERA, NEW_ERA, 20)
    assert data_of(disk.image()) == old and sync_of(reopened(disk)) == OLD

    regions = found.payload.regions
    again = job_on(disk, journal=Journal.of(record, disk, regions["journal"], regions["data"], KEY))
    resync(again, [second])
    assert whole(disk, old, after(old, [first, second])).era == NEW_ERA


def test_a_run_does_not_go_on_with_a_forged_segment(bench: Bench, start: bytes, old: bytes) -> None:
    disk = bench.disk(start)
    job = job_on(disk)
    job.open_journal(DATA // 2, direct=False)
    job.target.put(pieces({3: b"x" * BLOCK}))
    job.checkpoint(NEW_ERA, 20, TRACKER)
    found = header.read(disk, key=KEY).header
    assert found is not None
    record = recovery.found(disk, found, KEY)
    assert record is not None and record.segments == 1
    block = aligned_buffer(DESCRIPTOR_BYTES)
    forged = Descriptor(0, record.epoch, segments.data_hash([memoryview(b"x" * BLOCK)]), ((9 * BLOCK, BLOCK),))
    build(forged, bytes.fromhex(record.id), block)
    disk.pwrite(bytes(block), MIB + 4096)
    regions = found.payload.regions
    again = job_on(disk, journal=Journal.of(record, disk, regions["journal"], regions["data"], KEY))
    with pytest.raises(JournalDamagedError, match="not those that were committed"):
        resync(again, [{4: b"y" * BLOCK}])
    assert data_of(disk.image()) == old
    assert sync_of(reopened(disk)).doubt is not None


def test_a_full_journal_gives_way_to_a_direct_copy_that_keeps_what_was_staged(
    bench: Bench, start: bytes, old: bytes
) -> None:
    disk = bench.disk(start)
    first, second = passes(random.Random(23), 2)
    job = job_on(disk)
    assert job.open_journal(DATA // 2, direct=False) is False
    job.target.put(pieces(first))
    assert job.open_journal(JOURNAL, direct=False) is True
    assert isinstance(job.target, Side)
    job.target.put(pieces(second))
    assert not sync_of(reopened(disk)).consistent
    job.promise(NEW_ERA, TRACKER, as_of="2026-02-02T00:00:00Z")
    assert whole(disk, old, after(old, [first, second])).token == NEW_TOKEN


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"regions": "journal"}, "no journal"),
        ({"sync": OLD.replace(consistent=False)}, "no whole copy"),
    ],
)
def test_when_there_is_no_journal(
    bench: Bench, old: bytes, tmp_path: Path, change: dict[str, object], why: str
) -> None:
    sync = change.get("sync", OLD)
    assert isinstance(sync, Sync)
    disk = bench.disk(blank(old, sync, 0 if "regions" in change else JOURNAL, tmp_path))
    job = job_on(disk)
    assert why in (job.why_direct(0) or "")
    job.open_journal(4096, direct=False)
    assert job.journal is None and job.spoiled
    resync(job, passes(random.Random(1), 1))
    assert sync_of(reopened(disk)).consistent


def test_asked_for_directly(bench: Bench, start: bytes) -> None:
    job = job_on(bench.disk(start))
    assert job.why_direct(4096) is None
    job.open_journal(4096, direct=True)
    assert job.journal is None and job.spoiled
    assert f"room for {(JOURNAL - 4096) // KIB} KiB" in (job_on(bench.disk(start)).why_direct(JOURNAL) or "")


def test_a_failed_write_to_the_journal_is_never_committed(bench: Bench, start: bytes, old: bytes) -> None:
    disk = bench.disk(start)
    job = job_on(disk)
    job.open_journal(DATA // 2, direct=False)
    journal = job.journal
    assert journal is not None
    good, disk.fd = disk.fd, 1_000_000
    with pytest.raises(OSError, match="Bad file"):
        journal.put(pieces({1: bytes(BLOCK)}))
    disk.fd = good
    with pytest.raises(OSError, match="a write to the journal failed"):
        job.promise(NEW_ERA, TRACKER, as_of="2026-02-02T00:00:00Z")
    assert sync_of(reopened(disk)) == OLD and data_of(disk.image()) == old


shapes = st.lists(
    st.tuples(st.integers(0, 1 << 30), st.integers(1, 64)).map(lambda p: (p[0] * 512, p[1] * 512)),
    min_size=1, max_size=30,
)  # fmt: skip


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.integers(0, 2**32 - 1), shapes)
def test_a_descriptor_reads_as_it_was_written(number: int, epoch: int, crc: int, shape: list[tuple[int, int]]) -> None:
    block = aligned_buffer(DESCRIPTOR_BYTES)
    made = Descriptor(number, epoch, crc, tuple(shape))
    build(made, b"i" * 16, block)
    length = max(offset + size for offset, size in shape)
    if made.data_bytes > REQUEST_BYTES:
        with pytest.raises(JournalDamagedError):
            parse(block, b"i" * 16, number, length)
        return
    assert parse(block, b"i" * 16, number, length) == made
    for wrong in ((b"j" * 16, number, length), (b"i" * 16, number + 1, length), (b"i" * 16, number, length - 512)):
        with pytest.raises(JournalDamagedError):
            parse(block, *wrong)
    block[100] ^= 1
    with pytest.raises(JournalDamagedError):
        parse(block, b"i" * 16, number, length)


def test_a_descriptor_has_room_for_a_batch() -> None:
    block = aligned_buffer(DESCRIPTOR_BYTES)
    made = Descriptor(1, 1, 1, tuple((n * 4096, 4096) for n in range(BATCH_PIECES)))
    build(made, b"i" * 16, block)
    assert parse(block, b"i" * 16, 1, BATCH_PIECES * 4096) == made


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from([4 * KIB, 64 * KIB, 2 * MIB]), st.integers(1, 3))
def test_what_is_copied_takes_no_more_room_than_was_said(
    tmp_path: Path, seed: int, block_bytes: int, targets: int
) -> None:
    chance = random.Random(seed)
    blocks = max(4, 4 * MIB // block_bytes)
    owed = [
        BlockSet.from_extents(blocks, [(b, 1) for b in chance.sample(range(blocks), chance.randrange(blocks))])
        for _ in range(targets)
    ]
    rows = runs(owed)

    class Counted:
        used = 0

        def put(self, given: list[tuple[int, memoryview]]) -> None:
            assert len(given) <= BATCH_PIECES
            size = DESCRIPTOR_BYTES + sum(len(view) for _, view in given)
            assert size <= DESCRIPTOR_BYTES + REQUEST_BYTES
            self.used += size

    sinks = [Counted() for _ in range(targets)]
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(blocks * block_bytes)
    fd = os.open(source, os.O_RDONLY | os.O_DIRECT)
    try:
        copier = Copier(Side(fd, 0), sinks, batch_pieces=BATCH_PIECES)
        copier.run(
            requests(rows, block_bytes=block_bytes, data_bytes=blocks * block_bytes, request_bytes=REQUEST_BYTES)
        )
    finally:
        os.close(fd)
    assert copier.tally.written == [each.count() * block_bytes for each in owed]
    for bit, sink in enumerate(sinks):
        assert sink.used <= needed(rows, bit, block_bytes=block_bytes)
    assert needed(np.empty((0, 3), np.int64), 0, block_bytes=block_bytes) == 0
