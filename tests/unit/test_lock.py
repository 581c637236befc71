# SPDX-License-Identifier: GPL-2.0-or-later
"""The locks of a mirror: one holder, named to whoever waits, and gone with its process however that ends."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from dmsoft.errors import BusyError, DeviceError
from dmsoft.mirror import lock
from dmsoft.mirror.lock import Holder, locked

UUID = "0123456789abcdef" * 2
_HOLD = """
import sys
from pathlib import Path
from dmsoft.mirror import lock
lock.RUN_DIR = Path(sys.argv[1])
with lock.locked(sys.argv[2], sys.argv[3], verb="resync"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "RUN_DIR", tmp_path / "dmsoft")
    return tmp_path / "dmsoft"


@contextmanager
def holder(folder: Path, kind: str = "operation", uuid: str = UUID) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock until its standard input ends."""
    argv = [sys.executable, "-c", _HOLD, str(folder), uuid, kind]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_holder_is_named(run_dir: Path) -> None:
    with holder(run_dir) as process:
        with (
            pytest.raises(
                BusyError, match=rf"m is busy with `dmsoft resync` \(process {process.pid}, since 2"
            ) as caught,
            locked(UUID, "operation", name="m"),
        ):
            pytest.fail("two holders")
        assert caught.value.exit_code == 10 and caught.value.hint


def test_a_holder_that_is_killed_lets_go(run_dir: Path) -> None:
    with holder(run_dir) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with locked(UUID, "operation"):
            pass


def test_a_waiter_gets_it_when_the_holder_ends(run_dir: Path) -> None:
    with holder(run_dir) as process:
        threading.Timer(0.3, process.kill).start()
        start = time.monotonic()
        with locked(UUID, "operation", timeout=30):
            assert 0.2 < time.monotonic() - start < 29


def test_a_waiter_gives_up_in_time(run_dir: Path) -> None:
    with holder(run_dir):
        start = time.monotonic()
        with pytest.raises(BusyError), locked(UUID, "operation", timeout=0.3):
            pass
        assert time.monotonic() - start >= 0.3


def test_kinds_and_mirrors_do_not_meet(run_dir: Path) -> None:
    with holder(run_dir), locked(UUID, "kernel"), locked(UUID[::-1], "operation"):
        with pytest.raises(BusyError), locked(UUID, "kernel"):
            pass
        with pytest.raises(BusyError), locked(UUID, "operation"):
            pass


def test_released_after_an_error_and_taken_again(run_dir: Path) -> None:
    with pytest.raises(RuntimeError), locked(UUID, "operation"):
        raise RuntimeError
    for _ in range(3):
        with locked(UUID, "operation"):
            pass


def test_the_files_are_private_and_name_their_holder(run_dir: Path) -> None:
    with locked(UUID, "operation"):
        (path,) = run_dir.iterdir()
        assert path.name == f"{UUID}.operation.lock"
        assert msgspec.json.decode(path.read_bytes(), type=Holder).pid == os.getpid()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_shorter_words_leave_nothing_of_longer_ones(run_dir: Path) -> None:
    run_dir.mkdir()
    (run_dir / f"{UUID}.operation.lock").write_bytes(b"x" * 500)
    with locked(UUID, "operation"):
        assert lock.holder(UUID) is not None


def test_who_looks_sees_the_holder_while_it_holds(run_dir: Path) -> None:
    assert lock.holder(UUID) is None and not run_dir.exists()
    with holder(run_dir) as process:
        held = lock.holder(UUID)
        assert held is not None and (held.pid, held.verb) == (process.pid, "resync")
        assert 0 <= time.time() - held.since < 60
        assert lock.holder(UUID, "kernel") is None
        process.kill()
        process.wait()
        assert lock.holder(UUID) is None, "the words of the dead"


def test_words_of_the_dead_are_not_those_of_the_next_holder(run_dir: Path) -> None:
    """One that holds the lock and has not written yet."""
    with holder(run_dir) as process:
        process.kill()
    fd = lock.opened(UUID, "operation")
    with lock.tried(fd) as held:
        assert held and lock.holder(UUID) is None
        with pytest.raises(BusyError, match="busy with another dmsoft command"), locked(UUID, "operation", name="m"):
            pass
    os.close(fd)


def test_who_looks_is_in_nobodys_way(run_dir: Path) -> None:
    with locked(UUID, "operation"):
        pass
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            lock.holder(UUID)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(300):
            with locked(UUID, "operation"):
                pass
    finally:
        stop.set()
        thread.join()


def test_a_link_in_place_of_the_file_is_not_followed(run_dir: Path, tmp_path: Path) -> None:
    run_dir.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run_dir / f"{UUID}.operation.lock").symlink_to(victim)
    with pytest.raises(DeviceError, match="symbolic links"), locked(UUID, "operation"):
        pass
    assert victim.read_text() == "precious"


def test_a_child_does_not_inherit_it(run_dir: Path) -> None:
    with locked(UUID, "operation"):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with locked(UUID, "operation"):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_full_run_is_told_apart(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for its number the holder holds; without a file there is no lock, and it is said."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with locked(UUID, "operation"), pytest.raises(BusyError), locked(UUID, "operation"):
            pass
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(DeviceError, match="cannot be made: No space left") as raised, locked(UUID, "operation"):
        pass
    assert raised.value.hint


def words(pid: int) -> bytes:
    """What a holder that yields writes."""
    return msgspec.json.encode(lock.Holder(pid, "resync", time.time(), yields=True))


def test_a_holder_that_yields_is_asked_once(run_dir: Path, tmp_path: Path) -> None:
    """It lets go in good order, and whoever asked has the lock then."""
    program = _HOLD.replace("with lock.locked", "lock.yield_on_sigterm()\nwith lock.locked")
    program = program.replace("sys.stdin.read()", "told.wait()").replace(
        "import sys", "import signal, sys, threading\ntold = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: told.set())"
    )  # fmt: skip
    argv = [sys.executable, "-c", program, str(run_dir), UUID, "operation"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with locked(UUID, "operation"):
            assert process.wait(10) == 0


def test_a_kernel_lock_is_never_asked_for(run_dir: Path) -> None:
    """It is held for moments, and `status` takes it."""
    with holder(run_dir, "kernel") as process:
        (run_dir / f"{UUID}.kernel.lock").write_bytes(words(process.pid))
        with pytest.raises(BusyError), locked(UUID, "kernel"):
            pytest.fail("two holders")
        assert process.poll() is None
    lock.yield_on_sigterm()
    try:
        for kind, yields in (("kernel", False), ("operation", True)):
            with locked(UUID, kind):  # type: ignore[arg-type]
                said = lock.holder(UUID, kind)  # type: ignore[arg-type]
                assert said is not None and said.yields is yields
    finally:
        lock._yielding = False


def test_whoever_has_the_number_of_a_dead_holder_is_left_alone(run_dir: Path) -> None:
    """The file still names it, while somebody else has the lock and has not written yet."""
    with subprocess.Popen(["sleep", "60"]) as other, holder(run_dir):
        (run_dir / f"{UUID}.operation.lock").write_bytes(words(other.pid))
        with pytest.raises(BusyError), locked(UUID, "operation"):
            pytest.fail("two holders")
        assert other.poll() is None
        other.kill()


def test_a_folder_that_is_not_roots_alone(run_dir: Path) -> None:
    """A lock in it could be taken away, or another be put in its place."""
    run_dir.mkdir()
    run_dir.chmod(0o777)
    with pytest.raises(DeviceError, match="no folder that only root may write"), locked(UUID, "kernel"):
        pass
    run_dir.chmod(0o755)
    elsewhere = run_dir.rename(run_dir.with_name("elsewhere"))
    run_dir.symlink_to(elsewhere)
    with pytest.raises(DeviceError, match="no folder that only root may write"), locked(UUID, "kernel"):
        pass
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "words", [b'{"pid":1,"verb":"x","since":1e300}', b'{"pid":-1,"verb":"x","since":1}', b"\xff\xfe", b"[" * 4000]
)
def test_words_that_nobody_wrote(words: bytes, run_dir: Path) -> None:
    with locked(UUID, "operation"):
        (run_dir / f"{UUID}.operation.lock").write_bytes(words)
        assert lock.holder(UUID) is None
        with pytest.raises(BusyError, match="another dmsoft command"), locked(UUID, "operation"):
            pass
