# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's parts that need no device: workers, hooks, the manager's socket, what `status` is told."""

import fcntl
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest

from dmsoft.errors import BusyError
from dmsoft.mirror import bulletin, loss, promise
from dmsoft.mirror.bulletin import Bulletin, Held, Said
from dmsoft.monitor import hooks, sources
from dmsoft.monitor.daemon import Daemon
from dmsoft.monitor.events import EVENTS, Event
from dmsoft.monitor.facts import Failure, Pulse
from dmsoft.monitor.notify import Notifier
from dmsoft.monitor.worker import Worker, spawn
from tests import mirror_model

ROOT = Path(__file__).resolve().parents[2]


def end(worker: Worker, seconds: float = 20) -> Pulse | Failure:
    deadline = time.monotonic() + seconds
    while not worker.ended():
        worker.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    worker.read()
    found = worker.result(Pulse)
    worker.reap()
    return found


def test_a_worker_answers() -> None:
    assert end(spawn(lambda _: Pulse("failed", ("one",)), 0.0)) == Pulse("failed", ("one",))
    long = Pulse("ok", tuple(str(n) for n in range(60_000)))  # more than a pipe holds
    assert end(spawn(lambda _: long, 0.0)) == long


def test_what_a_worker_raises_comes_back() -> None:
    def busy(_: threading.Event) -> Pulse:
        raise BusyError("It is busy.")

    def broken(_: threading.Event) -> Pulse:
        raise KeyError("x")

    def dies(_: threading.Event) -> Pulse:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    assert end(spawn(busy, 0.0)) == Failure("busy", "It is busy.", 10)
    found = end(spawn(broken, 0.0))
    assert isinstance(found, Failure) and "KeyError" in found.message
    found = end(spawn(dies, 0.0))
    assert isinstance(found, Failure) and found.message == "The process at work ended without an answer (signal 9)."


def test_a_worker_ends_in_good_order_when_told_to() -> None:
    def waits(cancelled: threading.Event) -> Pulse:
        return Pulse("ok" if cancelled.wait(20) else "failed")

    for pause in (0.0, 0.0, 0.0, 0.01, 0.3):  # also before it has come to anything
        worker = spawn(waits, 0.0)
        time.sleep(pause)
        worker.signal(signal.SIGTERM)
        assert end(worker) == Pulse("ok")


def test_a_worker_has_nothing_of_the_daemons(tmp_path: Path) -> None:
    """No lock of it lives on in a worker, and a Ctrl-C on its terminal is not meant for one."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)

    def look(_: threading.Event) -> Pulse:
        targets = tuple(os.readlink(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd") if entry != "3")
        return Pulse("ok" if os.getsid(0) == os.getpid() else "failed", targets)

    found = end(spawn(look, 0.0))
    os.close(lock)
    assert isinstance(found, Pulse) and found.tracking == "ok"
    assert not [each for each in found.failing if str(tmp_path) in each]


def test_workers_end_when_the_daemon_dies(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def waits(cancelled: threading.Event) -> Pulse:
        told.write_text("begun")
        told.write_text("ended well" if cancelled.wait(20) else "never told")
        return Pulse("ok")

    daemon = os.fork()
    if daemon == 0:
        spawn(waits, 0.0)
        while not told.exists():
            time.sleep(0.01)
        os._exit(0)
    os.waitpid(daemon, 0)
    deadline = time.monotonic() + 20
    while told.read_text() != "ended well":
        assert time.monotonic() < deadline, told.read_text()
        time.sleep(0.01)


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"dmsoft-test-{os.getpid()}"
        manager.bind(f"\0{name}" if abstract else str(tmp_path / "socket"))
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else str(tmp_path / "socket"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        notifier = Notifier.from_environment()
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
        assert notifier.watchdog == 30
        notifier.ready()
        notifier.alive()
        for _ in range(2):
            notifier.status("all well")
        notifier.stopping()
        said = [manager.recv(100) for _ in range(4)]
        assert said == [b"READY=1", b"WATCHDOG=1", b"STATUS=all well", b"STOPPING=1"]


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (None, "", "/nonexistent/socket", "vsock:2:3"):
        Notifier(address).ready()
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    notifier = Notifier.from_environment()
    assert notifier.watchdog is None
    notifier.alive()


def script(folder: Path, name: str, text: str, mode: int = 0o755) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def test_hooks_are_told_of_each_event_in_order(tmp_path: Path) -> None:
    folder, told = tmp_path / "hooks.d", tmp_path / "told"
    folder.mkdir()
    for name in ("20-second", "10-first"):
        script(folder, name, f'echo "{name} $DMSOFT_EVENT $DMSOFT_MIRROR $DMSOFT_LABEL $DMSOFT_CODE $(cat)" >>{told}')
    for name in (".hidden", "copy~", "old.dpkg-old"):
        script(folder, name, f"echo {name} >>{told}")
    script(folder, "not-executable", f"echo no >>{told}", 0o644)
    queue = hooks.Queue()
    queue.add([Event("disk-came", "m", "one").stamped(), Event("alert-raised", "m", code="x")], folder)
    assert hooks.tell(queue.take(), folder).problems == ()
    lines = [line.split(" ") for line in told.read_text().splitlines()]
    assert [(line[0], line[1]) for line in lines] == [
        ("10-first", "disk-came"), ("20-second", "disk-came"), ("10-first", "alert-raised"),
        ("20-second", "alert-raised"),
    ]  # fmt: skip
    assert lines[0][2:5] == ["m", "one", ""] and lines[2][2:5] == ["m", "", "x"]
    assert json.loads(lines[0][5]).items() >= {"event": "disk-came", "mirror": "m", "label": "one"}.items()
    assert not queue.take()


def test_hooks_that_fail_hang_or_are_not_ours(tmp_path: Path) -> None:
    script(tmp_path, "10-fails", "echo I fail >&2; exit 3")
    script(tmp_path, "20-hangs", "sleep 60")
    script(tmp_path, "30-garbage", "").write_bytes(b"\x7fELF garbage")
    script(tmp_path, "40-writable", f"touch {tmp_path}/never", 0o777)
    last = script(tmp_path, "50-last", f"touch {tmp_path}/last")
    problems = hooks.tell([Event("disk-came")], tmp_path, seconds=0.5).problems
    words = ("others than root may write", "I fail", "did not end", "cannot be run")
    assert len(problems) == 4 and all(word in said for word, said in zip(words, problems, strict=True)), problems
    assert (tmp_path / "last").exists() and not (tmp_path / "never").exists() and last.exists()


def test_a_hook_that_others_could_replace_is_not_run(tmp_path: Path) -> None:
    """Also by way of its folder, or of a folder on the way to what a link leads to."""
    folder, theirs, ours = tmp_path / "hooks.d", tmp_path / "theirs", tmp_path / "ours"
    for each in (folder, theirs, ours):
        each.mkdir()
    script(theirs, "tool", f"touch {tmp_path}/never")
    script(ours, "tool", f"touch {tmp_path}/done")
    theirs.chmod(0o777)
    (folder / "10-link").symlink_to(theirs / "tool")
    (folder / "20-link").symlink_to(ours / "tool")
    (folder / "30-nowhere").symlink_to("30-nowhere")
    (problem,) = hooks.tell([Event("disk-came")], folder).problems
    assert problem == f"{folder}/10-link is not run: others than root may write {theirs}."
    assert (tmp_path / "done").exists() and not (tmp_path / "never").exists()
    theirs.chmod(0o1777)  # as /tmp is: what is root's stays root's there
    assert hooks.tell([Event("disk-came")], folder).problems == ()
    (tmp_path / "done").unlink()
    folder.chmod(0o775)
    (problem,) = hooks.tell([Event("disk-came")], folder).problems
    assert problem == f"No hook in {folder} is run: others than root may write {folder}."
    assert not (tmp_path / "done").exists()


def test_without_hooks_nothing_is_kept(tmp_path: Path) -> None:
    queue = hooks.Queue()
    queue.add([Event("disk-came")], tmp_path / "none")
    assert not queue.waiting
    script(tmp_path, "one", "")
    queue.add([Event("disk-came")] * 10_000, tmp_path)
    assert len(queue.waiting) < 1000


def test_every_event_is_known() -> None:
    found = set()
    for path in (ROOT / "dmsoft/monitor").glob("*.py"):
        found |= set(re.findall(r"(?:Event|_event)\(\s*\x22([a-z-]+)\x22", path.read_text()))
    assert found == EVENTS.keys()
    internals = (ROOT / "man/dmsoft-internals.7.scd").read_text()
    assert all(f"*{event}*" in internals for event in EVENTS)
    assert {field.encode_name for field in msgspec.structs.fields(Event)} <= set(
        re.findall(r"[a-z](?:[a-z_]*[a-z])?", internals)
    )


def test_the_bulletin_says_whether_its_daemon_lives(tmp_path: Path) -> None:
    path, lock = tmp_path / "monitor.json", tmp_path / "monitor.lock"
    assert bulletin.read(path, lock) is None
    said = Bulletin(1, {"a": Said({"one": Held("t", 5.0)}, (("code", "It is so."),))})
    path.write_bytes(msgspec.json.encode(said))
    word = bulletin.read(path, lock)
    assert word is not None and word.bulletin == said and not word.alive
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        word = bulletin.read(path, lock)
        assert word is not None and word.alive and word.of("a").alerts and not word.of("b").alerts
    path.write_bytes(b"{")
    assert bulletin.read(path, lock) is None


def test_how_far_a_promise_is_missed() -> None:
    record = mirror_model.record("one").replace(expect_seconds=7 * 86400.0)
    assert promise.missed(record, None) is promise.missed(record, 300.0) is None
    assert promise.missed(record, 301.0) == "one lags 5 min, and 5 min was promised."
    assert promise.missed(record.replace(mode="write-behind"), 1e9) is None
    assert promise.missed(record.replace(interval_seconds=0.0), 1e9) is None
    gone = "2026-01-01T00:00:00Z"
    start = promise.moment(gone)
    assert promise.overdue(record, gone, start + 7 * 86400) is None
    assert promise.overdue(record, None, start + 1e9) is None
    assert promise.overdue(record.replace(expect_seconds=None), gone, start + 1e9) is None
    said = promise.overdue(record, gone, start + 8 * 86400)
    assert said == "one is away for 8 d, and is expected every 7 d."


def test_what_the_daemon_held_counts_only_with_its_token() -> None:
    as_of, moment = "2026-01-01T00:00:00Z", promise.moment("2026-01-01T00:00:00Z")
    assert promise.clean_until(None, "t", None) is None
    assert promise.clean_until(as_of, "t", None) == moment
    assert promise.clean_until(as_of, "t", Held("t", moment + 9)) == moment + 9
    assert promise.clean_until(as_of, "t", Held("t", moment - 9)) == moment
    assert promise.clean_until(as_of, "t", Held("u", moment + 9)) == moment
    assert promise.clean_until(None, None, Held("u", moment + 9)) is None


@pytest.mark.parametrize(
    ("action", "said", "wanted"),
    [
        ("add", {}, sources.Plug("came", "8:0", None)),
        ("add", {"DMSOFT_MIRROR_UUID": "u"}, sources.Plug("came", "8:0", "u")),
        ("remove", {}, sources.Plug("went", "8:0", None)),
        ("change", {}, None),
        ("change", {"DMSOFT_MEMBER": "1"}, sources.Plug("changed", "8:0", None)),
        ("add", {"DM_UUID": "DMSOFT-x-top"}, None),
        ("bind", {}, None),
        ("add", {"MINOR": ""}, None),
    ],
)
def test_which_events_of_disks_are_ours(action: str, said: dict[str, str], wanted: sources.Plug | None) -> None:
    everything = {"MAJOR": "8", "MINOR": "0", **said}
    assert sources._plug(action, {name: value for name, value in everything.items() if value}) == wanted


def test_what_a_record_forgot_is_kept_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a shutdown others may take down the devices that know it before `stop` is run."""
    kept: list[str] = []
    monkeypatch.setattr(loss, "remember_all", lambda: kept.append("all"))
    monkeypatch.setattr(bulletin, "withdraw", lambda: kept.append("withdrawn"))
    monkeypatch.setattr(os, "write", lambda _fd, data: len(data))
    Daemon(Notifier(""))._stop()
    assert kept == ["all", "withdrawn"]
