# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run tells `status` of itself, and that nobody believes it any longer when its process is dead."""

import threading
from pathlib import Path

import msgspec
import pytest

from dmsoft.mirror import lock, progress
from dmsoft.mirror.at_work import at_work
from dmsoft.mirror.lock import locked
from dmsoft.mirror.progress import Planned, Progress, Queue, Silent, published
from dmsoft.units import MIB

UUID = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (lock, progress):
        monkeypatch.setattr(module, "RUN_DIR", tmp_path)
    monkeypatch.setattr(progress, "_PUBLISH_SECONDS", 0.0)
    return tmp_path


def begin() -> Progress:
    made = Progress(UUID, Silent())
    made.planned([Planned("one", "full", "", 10 * MIB)], 10 * MIB)
    made.phase("pass 1", 10 * MIB, queue=lambda: Queue(7, 3, 1))
    made.advance(3 * MIB)
    return made


def test_a_run_is_seen_with_its_requests() -> None:
    with locked(UUID, "operation", verb="resync"), begin():
        view = at_work(UUID)
        assert view is not None and (view.verb, view.labels, view.phase) == ("resync", ("one",), "pass 1")
        assert (view.requests_pending, view.requests_done, view.requests_failed) == (7, 3, 1)
        assert (view.bytes_done, view.bytes_total, view.bytes_queued) == (3 * MIB, 10 * MIB, 7 * MIB)
        assert view.share == 0.3 and view.copies and view.bytes_per_second and view.seconds_left is not None
    assert at_work(UUID) is None and published(UUID) is None


def test_what_the_dead_left_is_not_shown(run_dir: Path) -> None:
    with locked(UUID, "operation", verb="resync"):
        begin()  # and never ended
        assert published(UUID) is not None
    assert published(UUID) is None, "nobody holds the lock"
    (path,) = run_dir.glob("*.progress")
    with locked(UUID, "operation", verb="stop"):
        assert published(UUID) is None, "it was there before the holder"
        view = at_work(UUID)
        assert view is not None and (view.verb, view.phase, view.share, view.copies) == ("stop", None, None, False)
        said = msgspec.json.decode(path.read_bytes(), type=progress.Published)
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(said, started=said.started + 60)))
        assert published(UUID) is not None
        path.write_bytes(
            msgspec.json.encode(msgspec.structs.replace(said, started=said.started + 60, pid=said.pid + 1))
        )
        assert published(UUID) is None, "another process"
        path.write_bytes(b"{")
        assert published(UUID) is None


def test_counts_of_many_threads_are_all_there() -> None:
    with begin() as made:
        threads = [threading.Thread(target=lambda: [made.advance(1) for _ in range(2000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with locked(UUID, "operation"):
            made.phase("pass 2", 0)
        assert made._meter.done == 0
