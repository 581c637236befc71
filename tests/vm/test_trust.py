# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that appear: ours come back by themselves, and a hostile one neither receives data nor feeds any."""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmsoft.member import header, keys
from dmsoft.member.identity import identify
from dmsoft.member.payload import AnyPayload, Region
from dmsoft.mirror import sync
from dmsoft.mirror.progress import Silent
from dmsoft.mirror.sync import Request
from dmsoft.resync.copy import CancelledError
from dmsoft.units import MIB
from tests.harness.guestkit import settle
from tests.mutations import mutated
from tests.vm.rig import NAME, Rig, dmsoft, ok, ours, read, sh, table, unchanged, wait_until, write

pytest_plugins = ("tests.vm.rig",)

SIZE = 24 * MIB
HEADER = header.HEADER_BYTES


def make(rig: Rig, *options: str) -> None:
    """A small mirror, synced once. Device-mapper devices have no serial but their name, so that any disk can be given
    the names of any other."""
    rig.create(*options, primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.write(1, 2)
    rig.resync()


def unplugged(rig: Rig) -> None:
    """The secondary leaves, with notice."""
    ok("eject", NAME, "one")
    sh("dmsetup", "remove", "--retry", "cut-s0-0")


def fake(rig: Rig, serial: str = "s1", size: int = SIZE) -> str:
    """Another disk that says that it is the one that left: all of its names, and maybe its size."""
    table = f"0 {size // 512} linear {rig.disks[serial]} 0\n"
    sh("dmsetup", "create", "cut-s0-0", data=table.encode())
    settle()
    return "/dev/mapper/cut-s0-0"


def verdict(code: int, path: str | Path) -> dict[str, Any]:
    """``attach --json``: exit status and what it says."""
    ran = dmsoft("attach", path, "--json")
    assert ran.code == code, ran
    assert bool(ran.err) == bool(code)
    return ran.json


@contextlib.contextmanager
def untouched(rig: Rig, *paths: str | Path) -> Iterator[None]:
    """Neither these disks nor the primary's header and data change, and nothing new stands on them. The kernel may well
    write to its record of what was written."""
    header, region = (0, HEADER), rig.primary_header().regions["data"]

    def seen() -> list[object]:
        return [ours(), *(read(rig.primary, at, size) for at, size in (header, (region.offset, region.length)))]

    before = seen()
    with unchanged(*paths):
        yield
    assert seen() == before


def refused(rig: Rig, path: str | Path, word: str, code: int = 4) -> None:
    """The disk is refused as that, and nothing changes on any disk."""
    with untouched(rig, path):
        assert verdict(code, path)["verdict"] == word


def caught_up(rig: Rig, path: str | Path, blocks: int) -> None:
    done = verdict(0, path)
    assert (done["verdict"], done["action"], done["label"]) == ("caught-up", "catch-up", "one")
    assert done["resync"]["bytes_copied"] == blocks * MIB
    rig.equal("one")


def copy(source: str | Path, target: str | Path, length: int) -> None:
    for at in range(0, length, 4 * MIB):
        write(target, at, read(source, at, min(4 * MIB, length - at)))
    settle()


def sign(path: str, payload: AnyPayload, key: bytes | None) -> None:
    header.wipe(fd := os.open(path, os.O_RDWR | os.O_DIRECT))
    header.write_first(fd, payload, key)
    os.close(fd)
    settle()


def test_disks_come_back_by_themselves(rig: Rig) -> None:
    rig.create(primary=rig.cut("p0", SIZE), one=rig.disks["s0"])
    rig.resync()
    path = rig.disks["s0"]
    ok("eject", NAME, "one")
    assert verdict(0, path)["verdict"] == "ejected"
    rig.disks.unplug("s0")
    rig.write(3, 4, 5)
    rig.disks.replug("s0")
    assert dmsoft("attach", path, "--dry-run", "--json").json["action"] == "catch-up"
    assert rig.states() == {"one": "stale"}
    caught_up(rig, path, 3)
    assert rig.states() == {"one": "current"} and rig.secondary("one")["away_since"] is None
    caught_up(rig, path, 0)

    # While the mirror does not run nothing happens, least of all to a mirror that a person has stopped.
    ok("stop", NAME)
    assert verdict(0, path)["verdict"] == "waiting"
    assert verdict(0, rig.primary)["verdict"] == "stopped"
    assert ours() == []


@pytest.mark.slow
def test_a_coupled_disk_comes_back(rig: Rig) -> None:
    """With its cache, whichever is there first."""
    rig.create("--mode", "write-behind", "--via", f"writecache:{rig.disks['c0']}", primary=rig.cut("p0", SIZE),
               one=rig.disks["s0"])  # fmt: skip
    rig.resync()
    assert verdict(0, rig.disks["s0"])["verdict"] == verdict(0, rig.disks["c0"])["verdict"] == "already"
    for first, second in (("s0", "c0"), ("c0", "s0")):
        rig.disks.unplug("s0")
        rig.disks.unplug("c0")
        rig.write(3, 4)
        rig.disks.replug(first)
        dmsoft("attach", rig.disks[first])
        rig.disks.replug(second)
        assert verdict(0, rig.disks[second])["verdict"] == "caught-up"
        assert rig.states() == {"one": "attached"} and "raid1" in table("m-lower")
    ok("stop", NAME)
    rig.equal()


@pytest.mark.slow
def test_the_primary_comes_back(rig: Rig) -> None:
    """Under a mirror that nobody uses, and under one that was stopped."""
    rig.create(one=rig.disks["s0"])
    rig.resync()
    rig.write(3)
    rig.disks.unplug("p0")
    assert verdict(0, rig.disks["s0"])["verdict"] == "waiting"
    rig.disks.replug("p0")
    assert verdict(0, rig.disks["p0"])["action"] == "restart"
    assert verdict(0, rig.disks["p0"])["verdict"] == "already"
    assert rig.stale("one") == {3}
    ok("stop", NAME)
    rig.disks.unplug("p0")
    rig.disks.replug("p0")
    assert verdict(0, rig.disks["p0"])["verdict"] == "started"
    caught_up(rig, rig.disks["s0"], 1)


@pytest.mark.slow
def test_forged_headers(rig: Rig) -> None:
    """Not signed with our key: as any member, with absurd regions, and beside the real ones, whose work they do not
    keep anybody from."""
    make(rig)
    path = rig.cut("s1", SIZE)
    primary, secondary = rig.primary_header(), rig.secondary_header("one")
    here = identify(path)
    absurd = {**secondary.regions, "data": Region(8 * MIB, 1 << 62)}
    for payload, word in (
        (secondary.replace(identity=here), "not-authentic"),
        (secondary.replace(identity=here, member_uuid="f" * 32), "not-authentic"),
        (primary.replace(identity=here), "not-authentic"),
        (primary.replace(identity=here, member_uuid="f" * 32, generation=("f" * 32,)), "not-authentic"),
        (secondary.replace(identity=here, regions=absurd), "metadata-bad"),
        (secondary.replace(identity=here, mirror_uuid="f" * 32), "foreign-mirror"),
    ):
        sign(path, payload, rig.chance.choice([None, b"x" * 32]))
        refused(rig, path, word, 7 if word == "metadata-bad" else 4)
    rig.write(5)
    assert rig.resync()["bytes_copied"] == MIB  # the mirror has its work done all the same
    sign(path, primary.replace(identity=here, generation=("f" * 32,)), None)
    ok("stop", NAME)
    refused(rig, path, "not-authentic")
    with unchanged(path):
        ok("start", NAME)
        assert rig.states() == {"one": "current"}
    rig.equal("one")


@pytest.mark.slow
def test_a_copied_header_on_another_disk(rig: Rig) -> None:
    make(rig)
    path = rig.cut("s1", SIZE)
    copy(rig.secondaries["one"], path, SIZE)
    refused(rig, path, "wrong-device")
    unplugged(rig)
    rig.write(3)
    refused(rig, path, "wrong-device")
    caught_up(rig, rig.cut("s0", SIZE), 1)


@pytest.mark.long
def test_a_header_alone_with_the_names_of_the_disk(rig: Rig) -> None:
    """Size, names and a signed header can be had by whoever had the disk in hand; the data are not what it says."""
    make(rig)
    saved = read(rig.secondaries["one"], 0, HEADER)
    unplugged(rig)
    after = read(rig.disks["s0"], 0, HEADER)
    rig.write(3)
    path = fake(rig)
    write(path, 0, after)
    with unchanged(path):
        assert verdict(4, path)["verdict"] == "changed-elsewhere"
        assert "m-one" not in ours()
        assert rig.secondary("one", code=9)["state"] == "unknown"
        # Not at the second try either; the primary remembers.
        assert verdict(4, path)["verdict"] == "changed-elsewhere"
    write(path, 0, saved)
    refused(rig, path, "changed-elsewhere")
    sh("dmsetup", "remove", "--retry", "cut-s0-0")
    # The real one has to be asked for, too, and is compared.
    path = rig.cut("s0", SIZE)
    refused(rig, path, "changed-elsewhere")
    done = rig.resync("one")
    assert (done["kind"], done["bytes_copied"]) == ("compare", MIB)
    rig.equal()
    rig.write(4)
    caught_up(rig, path, 1)


class Cancelling(Silent):
    """Watches a resync, and cancels it when its first pass begins."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled

    def phase(self, name: str, bytes_total: int, bytes_later: int = 0) -> None:
        if name == "pass 1":
            self._cancelled.set()


@pytest.mark.slow
def test_a_disk_that_changed_since_a_copy_was_cut_off(rig: Rig) -> None:
    """Its header has the token of that copy, which goes on by itself; not onto what somebody wrote there since."""
    make(rig)
    rig.write(*range(10))
    path, cancelled = rig.secondaries["one"], threading.Event()
    with pytest.raises(CancelledError):
        sync.resync(Request(NAME, max_stall=0, direct=True), Cancelling(cancelled), cancelled)
    ok("stop", NAME)
    region = rig.secondary_header("one").regions["data"]
    write(path, region.offset, rig.random(region.length))
    ok("start", NAME)
    assert rig.states(code=9) == {"one": "unknown"}
    refused(rig, path, "changed-elsewhere")
    assert rig.resync()["kind"] == "compare"  # a person may
    rig.equal()


@pytest.mark.slow
def test_an_old_clone(rig: Rig) -> None:
    """Of the disk, with its names and size: what it is comes from a resync before the last."""
    make(rig)
    path = fake_path = rig.secondaries["one"]
    image = read(path, 0, SIZE)
    rig.write(3)
    rig.resync()
    unplugged(rig)
    rig.write(4)
    fake_path = fake(rig)
    write(fake_path, 0, image)
    refused(rig, fake_path, "old-copy")
    sh("dmsetup", "remove", "--retry", "cut-s0-0")
    caught_up(rig, rig.cut("s0", SIZE), 1)

    # Put back on the disk itself it is the same, until a person says otherwise.
    write(path, 0, image)
    refused(rig, path, "old-copy")
    assert rig.resync("one")["kind"] == "compare"
    rig.write(5)
    caught_up(rig, path, 1)


@pytest.mark.long
def test_an_old_primary(rig: Rig) -> None:
    """The primary put back from an image: nothing newer is overwritten before a person says so."""
    make(rig)
    image = read(rig.primary, 0, SIZE)
    rig.write(3)
    rig.resync()
    ok("stop", NAME)
    write(rig.primary, 0, image)
    ok("start", NAME)
    refused(rig, rig.secondaries["one"], "old-copy")
    assert rig.differing("one") == {3}
    assert rig.resync()["kind"] == "compare"


@pytest.mark.slow
def test_two_disks_with_one_uuid_at_once(rig: Rig, tmp_path: Path) -> None:
    """Neither has a name of its own, and they have one size: nobody can say which is meant."""
    loops = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"")
        os.truncate(tmp_path / name, SIZE)
        loops.append(sh("losetup", "--find", "--show", tmp_path / name).strip())
    settle()
    rig.create(primary=rig.cut("p0", SIZE), one=loops[0])
    rig.resync()
    ok("eject", NAME, "one")
    copy(loops[0], loops[1], SIZE)
    rig.write(3)
    for path in loops:
        with untouched(rig, *loops):
            assert verdict(4, path)["verdict"] == "duplicate-member"
    sh("losetup", "--detach", loops[1])
    sh("losetup", "--detach", loops[0])
    wait_until("the loop is gone", lambda: not Path(f"/sys/class/block/{Path(loops[1]).name}/loop").exists())
    path = sh("losetup", "--find", "--show", tmp_path / "a").strip()
    settle()
    rig.secondaries["one"] = path
    caught_up(rig, path, 1)


@pytest.mark.slow
def test_a_member_of_another_host_and_one_that_was_removed(rig: Rig) -> None:
    make(rig)
    unplugged(rig)
    path = rig.cut("s0", SIZE)
    key = keys.DIRECTORY / f"{rig.primary_header().mirror_uuid}.key"
    key.rename(key.with_suffix(".away"))
    refused(rig, path, "foreign-mirror")
    refused(rig, rig.primary, "foreign-mirror")
    key.with_suffix(".away").rename(key)
    sh("dmsetup", "remove", "--retry", "cut-s0-0")
    ok("remove", NAME, "one", "--yes")
    refused(rig, rig.cut("s0", SIZE), "not-registered")


@pytest.mark.long
def test_a_disk_that_something_else_holds(rig: Rig) -> None:
    make(rig)
    ok("stop", NAME)
    assert rig.states() == {"one": "current"}
    sh("dmsetup", "create", "foreign", data=f"0 8 linear {rig.secondaries['one']} {4 * MIB // 512}\n".encode())
    try:
        one = rig.secondary("one", code=9)
        assert one["state"] == "failed" and "held by" in one["reason"] and "(foreign)" in one["reason"]
    finally:
        sh("dmsetup", "remove", "--retry", "foreign")
    assert rig.states() == {"one": "current"}


@pytest.mark.slow
def test_another_size_another_history_and_another_thing(rig: Rig) -> None:
    make(rig)
    unplugged(rig)
    larger = fake(rig, "s0", SIZE + MIB)
    refused(rig, larger, "wrong-device")
    sh("dmsetup", "remove", "--retry", "cut-s0-0")
    path = rig.cut("s0", SIZE)
    mine = rig.secondary_header("one")
    key = keys.load(mine.mirror_uuid)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    header.write_withdrawn(fd, mine.replace(generation=(*mine.generation, "e" * 32)), key)
    os.close(fd)
    refused(rig, path, "diverged", 8)
    sh("mkfs.ext4", "-q", "-F", path)
    refused(rig, path, "no-header", 5)
    refused(rig, rig.top, "no-header", 5)


@pytest.mark.parametrize("count", [15, pytest.param(2000, marks=pytest.mark.long)])
def test_mutated_headers(rig: Rig, seed: int, count: int) -> None:
    """Every one is refused, soon, and with no more memory than the one before."""
    make(rig)
    unplugged(rig)
    chance = random.Random(seed)
    good = read(rig.disks["s0"], 0, HEADER)
    path = fake(rig)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a header that is never done with ends the test
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    verdicts: dict[str, int] = {}
    try:
        for _ in range(count):
            write(path, 0, mutated(good, chance))
            signal.alarm(120)
            ran = dmsoft("attach", path, "--json", "--wait", "0s")
            signal.alarm(0)
            assert ran.code in (4, 5, 7), ran
            verdicts[ran.json["verdict"]] = verdicts.get(ran.json["verdict"], 0) + 1
    finally:
        os.close(fd)
    print(verdicts)
    assert "m-one" not in ours()
    assert not any(read(path, HEADER, SIZE - HEADER))
    sh("dmsetup", "remove", "--retry", "cut-s0-0")
    rig.write(3)
    caught_up(rig, rig.cut("s0", SIZE), 1)
