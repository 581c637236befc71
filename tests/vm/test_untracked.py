# SPDX-License-Identifier: GPL-2.0-or-later
"""Tracking that fails: the header says so first, the primary goes on, and a compare brings everything back."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmsoft.dm.targets import Linear, single
from dmsoft.era.reader import EraReader
from dmsoft.errors import DmsoftError
from dmsoft.member import header, regions
from dmsoft.mirror import barrier, canary, locate, plan, sync, untracked
from dmsoft.mirror.progress import Silent
from dmsoft.mirror.running import Running, device, guard_of
from dmsoft.mirror.sync import Request
from dmsoft.mirror.wayout import TrackingLostError
from dmsoft.resync.copy import CancelledError
from dmsoft.units import KIB, MIB, Sectors
from tests.vm.rig import (
    NAME,
    Rig,
    Writer,
    crash,
    dmsoft,
    ok,
    ours,
    read,
    refused,
    sh,
    suspended,
    table,
    unchanged,
    wait_until,
)

pytest_plugins = ("tests.vm.rig",)

SIZE = 32 * MIB
BLOCKS = 23
IO_ERRORS = "dm-flakey|I/O error|era|space map|Buffer"


def cut_metadata(rig: Rig, *options: str, **more: str) -> str:
    """A small synced mirror whose era metadata lie on a device that can be broken; returns that device."""
    metadata = rig.cut("c0", 16 * MIB)
    rig.create("--metadata", metadata, *options, primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE), **more)
    rig.resync()
    return metadata


def is_untracked(rig: Rig) -> str:
    """The top is plain and runs, and everybody is told; returns the reason."""
    assert table(NAME).startswith("linear ") and not suspended()
    status = rig.status(code=9)
    assert [alert["code"] for alert in status["alerts"]].count("tracking-off") == 1
    assert {each["state"] for each in status["secondaries"]} == {"unknown"}
    assert status["era"]["current"] is None
    copies = header.read(rig.primary).copies
    assert all(copy.status == "ok" and copy.payload.tracker.doubt for copy in copies), "both copies have it"
    assert rig.stale("one") == set(range(BLOCKS))
    return str(rig.primary_header().tracker.doubt)


def is_tracked(rig: Rig, kind: str, *, attached: bool = False, busy: bool = False) -> None:
    """A resync brings everything back, and from then on copies are incremental again."""
    done = rig.resync(*(("--rate", "max") if busy else ()))
    assert (done["kind"], done["converged"]) == (kind, True)
    assert table(NAME).startswith("era ") and rig.primary_header().tracker.doubt is None
    assert rig.states() == {"one": "attached" if attached else "stale" if busy else "current"}
    if not busy:
        rig.write(20)
        done = rig.resync()
        assert (done["kind"], done["bytes_copied"]) == ("incremental", MIB)


def broken(rig: Rig, metadata: str) -> None:
    """Break the metadata device, and have dm-era notice, at a block that nobody else writes."""
    rig.behave(metadata, "c0", "error_writes")
    with pytest.raises(OSError, match="Input/output error"):
        rig.write(21)


@contextlib.contextmanager
def stubborn(rig: Rig) -> Iterator[Writer]:
    """A process that writes to the first half of the mirror, goes on after errors and notes them."""
    writer = Writer(rig.top, rig.chance.randrange(1 << 32), span=16 * MIB)
    try:
        yield writer
    finally:
        writer.stop()


@pytest.mark.kernel_log(allow=IO_ERRORS)
def test_failing_metadata(rig: Rig) -> None:
    """Under a writer: errors until tracking is given up, none afterwards, and none when it comes back."""
    metadata = cut_metadata(rig)
    with stubborn(rig) as writer:
        broken(rig, metadata)
        failed = rig.status(code=9)
        codes = [alert["code"] for alert in failed["alerts"]]
        assert "tracking-failed" in codes and "tracking-off" not in codes
        assert f"dmsoft start {NAME}" in failed["alerts"][0]["summary"]
        done = ok("start", NAME, "--json").json
    assert done["already"] and "era metadata failed" in done["doubt"] and "era metadata failed" in done["untracked"]
    assert writer.count
    is_untracked(rig)

    with rig.writing(span=16 * MIB):  # raises at its end if a write failed
        rig.write(3, 22)
        # The metadata device still fails: all that can be done is to copy.
        blind = dmsoft("resync", NAME, "--json")
        assert blind.code == 0 and not blind.json["converged"] and blind.json["kind"] == "compare", blind
        is_untracked(rig)
        assert ok("start", NAME, "--json").json["untracked"]
        rig.behave(metadata, "c0")
        is_tracked(rig, "compare", busy=True)
    assert rig.resync()["kind"] == "incremental"
    rig.equal()
    with unchanged(rig.secondaries["one"]):
        assert ok("start", NAME, "--json").json["doubt"] is None
    assert rig.states() == {"one": "current"}


class Breaking(Silent):
    """Watches a resync, and does something at the beginning of one of its phases."""

    def __init__(self, name: str, what: Callable[[], None]) -> None:
        self._name, self._what, self.done = name, what, False

    def phase(self, name: str, bytes_total: int, bytes_later: int = 0) -> None:
        if name == self._name:
            self._what()
            self.done = True


@pytest.mark.slow
@pytest.mark.kernel_log(allow=IO_ERRORS)
@pytest.mark.parametrize(("phase", "max_stall"), [("pass 1", 0.0), pytest.param("final", 1.0, marks=pytest.mark.long)])
def test_metadata_that_fails_in_the_middle_of_a_resync(rig: Rig, phase: str, max_stall: float) -> None:
    """Whoever finds it out takes the way out: from then on no write fails. A run that is cut off then leaves the disk
    known as ours: nobody has to ask for the next one."""
    metadata = cut_metadata(rig)
    rig.write(*range(20))
    breaking = Breaking(phase, lambda: rig.behave(metadata, "c0", "error_writes"))
    with stubborn(rig), pytest.raises(DmsoftError, match="era"):
        sync.resync(Request(NAME, max_stall=max_stall), breaking, threading.Event())
    assert breaking.done
    assert "era metadata failed" in is_untracked(rig)
    with rig.writing(span=16 * MIB):  # raises at its end if a write failed
        rig.write(3, 22)
    before, cancelled = rig.secondary_header("one").sync.token, threading.Event()
    with pytest.raises(CancelledError):
        sync.resync(Request(NAME, unattended=True), Breaking("pass 1", cancelled.set), cancelled)
    assert rig.secondary_header("one").sync.token != before
    rig.behave(metadata, "c0")
    done, _ = sync.resync(Request(NAME, unattended=True), Silent(), threading.Event())
    assert (done.kind, done.converged) == ("compare", True)
    rig.write(3)
    is_tracked(rig, "incremental")
    rig.equal()


@pytest.mark.long
@pytest.mark.kernel_log(allow=IO_ERRORS)
def test_a_start_with_failing_metadata_is_one_without_tracking(rig: Rig) -> None:
    metadata = cut_metadata(rig)
    rig.write(4)
    ok("stop", NAME)
    rig.behave(metadata, "c0", "error_writes")
    started = ok("start", NAME, "--json").json
    assert started["untracked"] and not started["already"]
    is_untracked(rig)
    rig.write(5)
    ok("stop", NAME)
    assert rig.status(code=9)["alerts"][0]["code"] == "tracking-off"
    assert ok("start", NAME, "--json").json["untracked"]
    rig.write(6)
    assert rig.differing("one") == {4, 5, 6}
    ok("stop", NAME)
    rig.behave(metadata, "c0")
    again = ok("start", NAME, "--json").json
    assert again["untracked"] is None and again["doubt"]
    is_tracked(rig, "compare")
    rig.equal()


@pytest.mark.slow
@pytest.mark.kernel_log(allow=IO_ERRORS)
def test_an_unplugged_metadata_device(rig: Rig, unplug: Callable[[str], None], replug: Callable[[str], None]) -> None:
    rig.create("--metadata", str(rig.disks["c0"]), primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    unplug("c0")
    with pytest.raises(OSError, match="Input/output error"):
        rig.write(3)
    assert "tracking-failed" in [alert["code"] for alert in rig.status(code=9)["alerts"]]
    assert "not here" in ok("start", NAME, "--json").json["untracked"]
    rig.write(3)
    is_untracked(rig)
    # The record is out of reach, and not needed to compare and copy.
    blind = rig.resync()
    assert (blind["kind"], blind["bytes_copied"]) == ("compare", MIB) and not rig.differing("one")
    rig.write(3)
    replug("c0")
    is_tracked(rig, "compare")
    rig.equal()


def test_a_metadata_device_that_is_used_for_something_else(rig: Rig) -> None:
    """Nothing is written to it, though all that is ours is still there; given back, it is used again."""
    metadata = cut_metadata(rig)
    ok("stop", NAME)
    holder = os.open(metadata, os.O_RDONLY | os.O_EXCL)  # as a program may that looks at new disks: nothing is given up
    assert "in use" in refused(4, "start", NAME) and not ours()
    os.close(holder)
    ok("start", NAME)
    assert rig.resync()["kind"] == "none"
    ok("stop", NAME)
    sh("mkswap", metadata)
    with unchanged(metadata):
        assert "swap" in ok("start", NAME, "--json").json["untracked"]
        rig.write(3)
        assert "swap" in is_untracked(rig)
        ok("start", NAME)  # it may be had by now
        assert "swap" in is_untracked(rig)
    sh("wipefs", "--all", metadata)
    is_tracked(rig, "compare")
    rig.equal()


@pytest.mark.long
@pytest.mark.kernel_log(allow=IO_ERRORS)
def test_failing_metadata_in_write_behind_mode(rig: Rig) -> None:
    metadata = cut_metadata(rig, "--mode", "write-behind")
    assert rig.states() == {"one": "attached"}
    with stubborn(rig):
        broken(rig, metadata)
        assert ok("start", NAME, "--json").json["untracked"]
    assert table(f"{NAME}-lower").startswith("raid ")
    is_untracked(rig)
    with rig.writing(span=16 * MIB):
        rig.write(3)
        rig.behave(metadata, "c0")
        assert ok("start", NAME, "--json").json["untracked"] is None
        assert rig.states(code=9) == {"one": "unknown"}
        is_tracked(rig, "compare", attached=True, busy=True)
    ok("stop", NAME)
    rig.equal()


# Enough to start with 23 MiB in blocks of 4 KiB, and too little for the second era.
TINY = 21 * 4 * KIB


def tiny_metadata(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror with less room for its metadata than dmsoft would ever give it."""
    monkeypatch.setattr(regions, "metadata_bytes", lambda _: TINY)
    metadata = rig.cut("c0", MIB + TINY)
    rig.create(
        "--metadata", metadata, "--block-size", "4K", primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE)
    )  # fmt: skip


def fill(rig: Rig) -> None:
    """Write and roll until the metadata are full: then a write fails, or a checkpoint."""
    top = device(Running.of(locate.assemble(NAME)).names.top)
    for turn in range(12):
        try:
            rig.write(turn * 13 % 4000, block_bytes=4 * KIB)
        except OSError:
            return
        with contextlib.suppress(DmsoftError):
            top.message("checkpoint")
    raise AssertionError("the metadata never became full")


@pytest.mark.slow
@pytest.mark.kernel_log(allow=IO_ERRORS)
def test_full_metadata(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_metadata(rig, monkeypatch)
    fill(rig)
    assert rig.status(code=9)["alerts"]
    done = ok("start", NAME, "--json").json
    assert "era metadata" in done["doubt"] and done["untracked"] is None
    # Fresh metadata on the same device: it tracks again, and what was written meanwhile is compared.
    assert table(NAME).startswith("era ")
    rig.write(1, 2, 3, block_bytes=4 * KIB)


@pytest.mark.kernel_log(allow=IO_ERRORS)
def test_a_barrier_whose_era_cannot_begin(rig: Rig) -> None:
    """The kernel would leave the mirror suspended for good."""
    metadata = cut_metadata(rig)
    running = Running.of(locate.assemble(NAME))
    with guard_of(running, coupled=False) as guard:
        with pytest.raises(TrackingLostError), barrier.barrier(running.names, guard, freeze=False):
            # With the top suspended nothing is written to it; its metadata fail at the resume.
            rig.behave(metadata, "c0", "error_writes")
        assert not guard.tripped()
    is_untracked(rig)
    rig.write(3)
    rig.behave(metadata, "c0")
    is_tracked(rig, "compare")
    rig.equal()


@pytest.mark.long
@pytest.mark.kernel_log(allow=IO_ERRORS)
def test_an_era_that_was_not_put_away(rig: Rig) -> None:
    """The suspend says that all went well. So nobody but who looks knows, and the mirror is compared."""
    metadata = cut_metadata(rig)
    rig.write(3)
    running = Running.of(locate.assemble(NAME))
    with guard_of(running, coupled=False) as guard, running.era_reader() as reader:
        # Some kernels cannot begin the next era then, and some can.
        with (
            pytest.raises((barrier.EraLostError, TrackingLostError)),
            untracked.given_up_on_failure(running, guard),
        ):
            rig.behave(metadata, "c0", "error_writes")
            with barrier.barrier(running.names, guard, freeze=False) as here:
                rig.behave(metadata, "c0")
                with pytest.raises(barrier.EraLostError):
                    here.next_era(reader)
                here.next_era(reader)
        assert not guard.tripped()
    is_untracked(rig)
    is_tracked(rig, "compare")
    rig.equal()


@pytest.mark.kernel_log(allow=IO_ERRORS)
def test_a_primary_that_goes_while_the_mirror_stands_still(rig: Rig) -> None:
    """No era can begin, and no header can say that none does. What uses the mirror has an error then, and does not wait
    for ever; nothing is written untracked. When the primary takes writes again, so does the mirror."""
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    running = Running.of(locate.assemble(NAME))
    with guard_of(running, coupled=False) as guard:
        with pytest.raises(DmsoftError), barrier.barrier(running.names, guard, freeze=False):
            rig.behave(rig.primary, "p0", "error_writes")
        wait_until("the guard acts", guard.tripped, 60)
    assert not suspended() and table(NAME).endswith("error")
    with pytest.raises(OSError, match="Input/output error"):
        rig.write(3)
    rig.behave(rig.primary, "p0")
    ok("start", NAME)
    rig.write(3)
    is_tracked(rig, "compare")
    rig.equal()


_PROGRAM = """
import sys, time
from dmsoft.mirror import barrier, locate
from dmsoft.mirror.running import Running, device, guard_of

running = Running.of(locate.assemble(sys.argv[1]))
with guard_of(running, coupled=True) as guard:
    with barrier.barrier(running.names, guard, freeze=False, deadline=600):
        print("here", flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.kernel_log(allow=IO_ERRORS)
def test_the_guard_takes_the_way_out_when_its_owner_is_dead(rig: Rig) -> None:
    metadata = cut_metadata(rig)
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM, NAME], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    rig.behave(metadata, "c0", "error_writes")
    process.kill()
    process.wait()
    wait_until("nothing is suspended", lambda: not suspended())
    is_untracked(rig)
    rig.write(3)


@pytest.mark.slow
@pytest.mark.kernel_log(allow=IO_ERRORS)
def test_the_header_comes_before_the_top(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies between the two has lost the tracking, never a mark."""
    cut_metadata(rig)
    rig.write(7)

    def dies(*_: object) -> None:
        assert all(copy.payload.tracker.doubt for copy in header.read(rig.primary).copies)
        raise KeyboardInterrupt

    running = Running.of(locate.assemble(NAME))
    with monkeypatch.context() as patched, guard_of(running, coupled=False) as guard:
        patched.setattr(untracked, "_swap", dies)
        with pytest.raises(KeyboardInterrupt):
            untracked.give_up(running, guard, "a test")
    assert table(NAME).startswith("era ")
    assert rig.states(code=9) == {"one": "unknown"} and rig.stale("one") == set(range(BLOCKS))
    crash()
    assert "a test" in ok("start", NAME, "--json").json["doubt"]
    is_tracked(rig, "compare")
    rig.equal()


def test_the_canary_leaves_no_trace(rig: Rig) -> None:
    """No device, no byte of the user's, no mark: what is current stays so, and the next resync has nothing to do."""
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.write(*range(BLOCKS - 1))
    rig.resync()
    ok("stop", NAME)
    data = rig.primary_header().regions["data"]
    before = read(rig.primary, data.offset, data.length)
    ok("start", NAME)
    assert read(rig.primary, data.offset, data.length) == before
    assert set(ours()) - {"m-shield"} == {
        "m",
        "m-lower",
        "m-metadata",
        "m-metadata-watch",
        "m-metadata-disk",
        "m-one",
    }  # 5.10 has discards to shield it from
    assert rig.states() == {"one": "current"} and rig.resync()["kind"] == "none"


def _linear_canary(*arguments: object) -> list[plan.Wanted]:
    """A canary whose era is none: what is written to it is recorded nowhere."""
    metadata, data, era = plan_canary(*arguments)  # type: ignore[arg-type]
    return [metadata, data, plan.Wanted(era.node, single(era.table[0].length, Linear(data.node.path, Sectors(0))))]


plan_canary = plan.canary


class Copied(EraReader):
    """A reader that looks at a copy of the metadata, as they were a while ago."""

    def __init__(self, path: str, *, offset_bytes: int, length_bytes: int) -> None:
        copy = Path("/run/copied-metadata")
        if not copy.exists():
            copy.write_bytes(read(path, offset_bytes, length_bytes))
        super().__init__(copy)


def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lists nothing."""
    empty = type("Deaf", (EraReader,), {})

    def written_since(self: EraReader, era: int, *, snapshot: bool = False) -> object:
        found = EraReader.written_since(self, era, snapshot=snapshot)
        found.blocks.bits[:] = bytes(len(found.blocks.bits))
        return found

    empty.written_since = written_since  # type: ignore[attr-defined]
    monkeypatch.setattr(canary, "EraReader", empty)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [pytest.param("linear", marks=pytest.mark.long), pytest.param("copy", marks=pytest.mark.long), "deaf"]
)
def test_a_stack_that_fails_the_canary(rig: Rig, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    rig.write(4)
    ok("stop", NAME)
    with monkeypatch.context() as patched, contextlib.ExitStack() as after:
        after.callback(Path("/run/copied-metadata").unlink, missing_ok=True)
        match fault:
            case "linear":
                patched.setattr(plan, "canary", _linear_canary)
            case "copy":
                patched.setattr(canary, "EraReader", Copied)
            case "deaf":
                deaf(patched)
        said = ok("start", NAME, "--json").json["untracked"]
        assert "tracking cannot be trusted" in said
        assert "was not recorded" in said or fault == "linear"
        assert "tracking cannot be trusted" in is_untracked(rig)
        rig.write(5)
        # Demoted: every resync compares everything.
        done = rig.resync()
        assert (done["kind"], done["converged"], done["bytes_copied"]) == ("compare", False, 2 * MIB)
        rig.equal()
        is_untracked(rig)
        done = rig.resync()
        assert (done["kind"], done["bytes_copied"]) == ("compare", 0)
        ok("stop", NAME)
        assert "cannot be trusted" in ok("start", NAME, "--json").json["untracked"]
    # A later canary that passes begins a new life.
    is_tracked(rig, "compare")
    rig.equal()


@pytest.mark.long
def test_metadata_that_the_reader_does_not_find(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary is well and the mirror's own record is read elsewhere: the era tells."""
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    ok("stop", NAME)
    place = rig.primary_header().regions["metadata"]
    copy = Path("/run/copied-metadata")
    copy.write_bytes(read(rig.primary, place.offset, place.length))

    @contextlib.contextmanager
    def elsewhere(self: Running) -> Iterator[EraReader]:
        with EraReader(copy) as reader:
            yield reader

    with monkeypatch.context() as patched:
        patched.setattr(Running, "era_reader", elsewhere)
        assert "as they are read" in ok("start", NAME, "--json").json["untracked"]
    copy.unlink()
    is_untracked(rig)
    is_tracked(rig, "compare")
    rig.equal()


@pytest.mark.long
def test_a_top_that_fails_its_check_while_somebody_has_it_open(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be taken down then; the verdict stands all the same, and the next start acts on it."""
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    ok("stop", NAME)
    with contextlib.ExitStack() as held:

        def fails(_: object) -> str:
            held.callback(os.close, os.open(rig.top, os.O_RDONLY))
            return "it is read elsewhere"

        with monkeypatch.context() as patched:
            patched.setattr(canary, "reads_the_top", fails)
            assert dmsoft("start", NAME).code == 10
        copies = header.read(rig.primary).copies
        assert all(copy.payload is not None and copy.payload.tracker.doubt for copy in copies)
        assert "read elsewhere" in ok("start", NAME, "--json").json["doubt"]
    is_tracked(rig, "compare")
    rig.equal()


@pytest.mark.long
def test_a_first_copy_without_tracking_is_not_made_twice(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(plan, "canary", _linear_canary)
        rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
        rig.write(4)
        assert rig.resync()["kind"] == "full"
        rig.equal()
        assert (rig.resync()["kind"], rig.states(code=9)) == ("compare", {"one": "unknown"})
        # It is no create that was cut short: nothing may be made in its place.
        words = ("create", NAME, "--primary", rig.primary, "--secondary", f"one={rig.secondaries['one']}", "--yes")
        assert dmsoft(*words).code == 4
    is_tracked(rig, "compare")
    rig.equal()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["m-canary", *(pytest.param(f"m-canary-{part}", marks=pytest.mark.long) for part in ("data", "metadata"))]
)
def test_a_start_that_died_in_its_canary(rig: Rig, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it left is taken down by the next one, suspended or not."""
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    ok("stop", NAME)

    def dies(era: object, *_: object) -> None:
        sh("dmsetup", "suspend", name)
        os._exit(9)

    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(canary, "check", dies)
        dmsoft("start", NAME)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert "m-canary" in ours() and suspended() in ([], [name])  # its guard may have been there first
    assert ok("start", NAME, "--json").json["doubt"] is None
    record = ["m-metadata", "m-metadata-disk", "m-metadata-watch"]
    assert ours() == ["m", "m-lower", *record, "m-one"] and rig.states() == {"one": "current"}
