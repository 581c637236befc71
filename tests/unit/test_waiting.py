# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for a secondary, and status that is shown again and again; what is seen is made up."""

import contextlib
import io
import re
import threading
from collections.abc import Iterator, Sequence

import pytest

from dmsoft.errors import DivergedError, NotFoundError
from dmsoft.mirror import observe, waiting
from dmsoft.mirror.views import EraView, MirrorView, PrimaryView, SecondaryView, StatusView, ViaView
from dmsoft.mirror.waiting import WaitTimeoutError, wait_until
from dmsoft.report import watch
from dmsoft.resync.copy import CancelledError
from dmsoft.units import MIB


def seen(state: str, **fields: object) -> StatusView:
    view = SecondaryView("one", "0" * 32, "/dev/x", state, ViaView("direct"), "periodic", **fields)  # type: ignore[arg-type]
    mirror = MirrorView(
        "m", "0" * 32, True, "periodic", "/dev/mapper/m", MIB, EraView(1), PrimaryView("/dev/p", "ok"), (view,), ()
    )
    return StatusView((mirror,))


class Events:
    """In place of device-mapper's: none ever comes, and no time passes."""

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: object) -> None: ...
    def arm(self) -> None: ...
    def wait(self, _: float) -> bool:
        return True


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The states to be seen one after the other, the last of them from then on."""
    states: list[str] = []
    monkeypatch.setattr(waiting, "EventPoll", Events)
    monkeypatch.setattr(
        observe, "status", lambda _: seen(states.pop(0) if len(states) > 1 else states[0])
    )  # fmt: skip
    yield states


@pytest.mark.parametrize(
    ("until", "states"),
    [
        ("current", ["stale", "syncing", "current"]),
        ("current", ["stale", "attached"]),
        ("attached", ["current", "attached"]),
        ("away", ["missing", "current", "away"]),
    ],
)
def test_it_ends_with_the_state_that_was_wanted(looks: list[str], until: str, states: Sequence[str]) -> None:
    looks += states
    done = wait_until("m", "one", until, 60, threading.Event())
    assert (done.name, done.label, done.state) == ("m", "one", states[-1])
    assert looks == [states[-1]]


def test_it_gives_up(looks: list[str]) -> None:
    looks.append("stale")
    with pytest.raises(WaitTimeoutError, match="is stale and not current"):
        wait_until("m", "one", "current", 0, threading.Event())
    with pytest.raises(NotFoundError):
        wait_until("m", "nobody", "current", 0, threading.Event())
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledError):
        wait_until("m", "one", "current", None, cancelled)
    looks[:] = ["stale", "diverged"]
    with pytest.raises(DivergedError):
        wait_until("m", "one", "away", None, threading.Event())


def test_piped_it_prints_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    views = [seen("stale"), seen("syncing"), seen("current")]
    for as_json in (False, True):
        look, more = iter(views), iter([True, True, False])
        last = watch.watch(lambda it=look: next(it), lambda it=more: next(it), as_json=as_json)  # type: ignore[misc]
        assert last is views[-1]
        out = capsys.readouterr().out
        found = [word for line in out.splitlines() for word in ("stale", "syncing", "current") if word in line.split()]
        found = found or re.findall(r'"state":"(\w+)","via"', out)
        assert found == ["stale", "syncing", "current"]
        assert "\x1b" not in out


def test_a_terminal_is_sent_colours_and_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        text = watch.drawn(seen("away", away_since="2026-01-01T00:00:00Z", stale_blocks=3, stale_bytes=3 * MIB,
                                catch_up_seconds=90.0, expect_seconds=7 * 86400.0))  # fmt: skip
    assert out.getvalue() == "" and "\x1b[" in text
    assert "away since 2026-01-01 00:00:00 UTC; misses 3 blocks (3 MiB); catching up takes" in " ".join(text.split())
    assert "expected every 7 d" in " ".join(text.split())
