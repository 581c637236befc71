# SPDX-License-Identifier: GPL-2.0-or-later
"""The crash lab: disks that lose their caches, what a cut may leave of them, and how that is judged."""

import random
import socket
import struct
from pathlib import Path

import pytest

from tests.crash.judge import History
from tests.crash.medium import PAGE, SECTOR, SURVIVALS, Event, Platter, Replay, Tape
from tests.crash.recording import Places
from tests.crash.writer import stamp
from tests.harness import nbd

SIZE = 8 * PAGE


def taped() -> tuple[Tape, dict[str, bytes]]:
    """Two disks: a flushed page, a flush of the other disk alone, then two writes that nothing flushed."""
    tape: Tape = []
    before = {name: bytes(SIZE) for name in ("one", "two")}
    one, two = (Platter(name, bytearray(before[name]), tape) for name in before)
    one.write(0, b"a" * PAGE)
    two.write(0, b"A" * PAGE)
    one.flush()
    tape.append(Event(mark="here"))
    one.write(0, b"b" * PAGE)
    one.write(PAGE, b"c" * 2 * PAGE)
    two.flush()
    return tape, before


def test_a_flush_keeps_what_its_own_disk_was_written_before() -> None:
    tape, before = taped()
    replay = Replay.of(tape, before)
    expected = [(b"\0", b"\0"), (b"\0", b"\0"), (b"\0", b"\0"), (b"a", b"\0"), (b"a", b"\0"), (b"a", b"\0"),
                (b"a", b"\0"), (b"a", b"A")]  # fmt: skip
    for cut, (one, two) in enumerate(expected):
        replay.to(cut)
        images = replay.after_cut("lost", random.Random(0))
        assert images["one"] == one * PAGE + bytes(SIZE - PAGE), cut
        assert images["two"] == two * PAGE + bytes(SIZE - PAGE), cut
    assert replay.after_cut("kept", random.Random(0))["one"] == b"b" * PAGE + b"c" * 2 * PAGE + bytes(SIZE - 3 * PAGE)


@pytest.mark.parametrize("survival", SURVIVALS)
def test_a_cache_writes_back_what_it_likes_and_nothing_else(survival: str, seed: int) -> None:
    tape, before = taped()
    replay, chance = Replay.of(tape, before), random.Random(seed)
    replay.to(len(tape))
    found = {bytes(replay.after_cut(survival, chance)["one"]) for _ in range(60)}
    for image in found:
        for at in range(0, SIZE, SECTOR):
            page = at // PAGE
            allowed = [b"a", b"b"] if page == 0 else [b"\0", b"c"] if page < 3 else [b"\0"]
            assert image[at : at + SECTOR] in [each * SECTOR for each in allowed], (survival, at)
    assert (len(found) == 1) is (survival in ("lost", "kept"))
    if survival == "newest":
        assert b"a" * PAGE + b"c" * 2 * PAGE + bytes(SIZE - 3 * PAGE) in found  # the older write is lost alone


def test_disks_over_nbd(tmp_path: Path) -> None:
    """As QEMU speaks it: an option that is not known, then the disk, a write, a flush, what was written, goodbye."""
    tape: Tape = []
    disk = Platter("one", bytearray(SIZE), tape)
    with nbd.Server(tmp_path / "s", {"one": disk}) as server, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server.path))
        assert sock.recv(18, socket.MSG_WAITALL)[:16] == b"NBDMAGICIHAVEOPT"
        sock.sendall(struct.pack(">I", 3))
        sock.sendall(struct.pack(">8sII", b"IHAVEOPT", 8, 0))
        assert struct.unpack(">QIII", sock.recv(20, socket.MSG_WAITALL))[1:] == (8, 0x80000001, 0)
        name = struct.pack(">I3sH", 3, b"one", 0)
        sock.sendall(struct.pack(">8sII", b"IHAVEOPT", 7, len(name)) + name)
        assert struct.unpack(">QIIIHQH", sock.recv(32, socket.MSG_WAITALL))[5] == SIZE
        assert struct.unpack(">QIII", sock.recv(20, socket.MSG_WAITALL))[1:] == (7, 1, 0)
        for kind, offset, data in ((1, PAGE, b"x" * PAGE), (3, 0, b"")):
            sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 7, offset, len(data)) + data)
            assert struct.unpack(">IIQ", sock.recv(16, socket.MSG_WAITALL)) == (0x67446698, 0, 7)
        sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 8, PAGE, PAGE))
        assert sock.recv(16 + PAGE, socket.MSG_WAITALL)[16:] == b"x" * PAGE
        sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 9, 0, 0))
        assert sock.recv(1) == b""
    assert tape == [Event("one", PAGE, b"x" * PAGE), Event("one")]


def history() -> tuple[History, bytes]:
    """Three pages over noise: page 1, page 2, page 1 again; and the noise."""
    noise = random.Random(1).randbytes(4 * PAGE)
    tape: Tape = []
    disk = Platter("p", bytearray(5 * PAGE), tape)
    for number, page in enumerate((1, 2, 1), 1):
        disk.write((1 + page) * PAGE, stamp(number, page))
    return History.of(tape, bytes(PAGE) + noise, PAGE, 4 * PAGE), noise


def test_a_point_in_time_of_the_writer() -> None:
    known, noise = history()
    then = noise[:PAGE] + stamp(1, 1) + stamp(2, 2) + noise[3 * PAGE :]
    assert (known.image(0), known.image(2)) == (noise, then)
    assert (known.last(noise), known.last(then)) == (0, 2)
    mixed = noise[:PAGE] + stamp(3, 1) + noise[2 * PAGE :]  # the third write without the second
    assert known.image(known.last(mixed)) != mixed
    torn = noise[:PAGE] + stamp(3, 1)[:SECTOR] + stamp(1, 1)[SECTOR:] + stamp(2, 2) + noise[3 * PAGE :]
    assert known.image(known.last(torn)) != torn


def test_what_an_fsync_promised_is_missed() -> None:
    known, noise = history()
    now = noise[:PAGE] + stamp(3, 1) + stamp(2, 2) + noise[3 * PAGE :]
    assert known.lacks(now, 3) == []
    older = noise[:PAGE] + stamp(1, 1) + stamp(2, 2) + noise[3 * PAGE :]
    assert (known.lacks(older, 2), known.lacks(older, 3)) == ([], [1])
    assert known.lacks(noise, 3) == [1, 2]
    torn = now[:PAGE] + stamp(3, 1)[:SECTOR] + stamp(1, 1)[SECTOR:] + now[2 * PAGE :]
    assert (known.lacks(torn, 2), known.lacks(torn, 3)) == ([], [1])
    assert known.lacks(noise[: PAGE + SECTOR] + now[PAGE + SECTOR :], 2) == [1]


def test_places_to_cut_at(seed: int) -> None:
    tape = [Event("p", 0, b"x")] * 3 + [Event(mark="phase create")] + [Event("p")] * 2 + [Event(mark="synced 7")]
    places = Places.of([*tape, Event(mark="phase running"), Event("p", 0, b"y")])
    assert places.phases == [""] * 3 + ["create"] * 4 + ["running"] * 3
    assert places.marks == [3, 7]
    drawn = places.draw(200, random.Random(seed))
    assert drawn == sorted(drawn) and set(drawn) == set(range(10))


def test_what_is_under_way_at_a_place() -> None:
    marks = [
        "phase resync", "stage pass 1", "step before copy", "step before copy", "step after copy", "step after copy",
        "stage final", "before suspend m", "before resume m", "after resume m", "step before data-flush", "killed x",
        "phase running",
    ]  # fmt: skip
    places = Places.of([Event(mark=mark) for mark in marks])
    assert places.inner == [
        "", "pass", "copy", "copy", "copy", "pass", "final", "barrier", "barrier", "final", "data-flush", "", "", "",
    ]  # fmt: skip
