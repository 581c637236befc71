# SPDX-License-Identifier: GPL-2.0-or-later
"""Bad input: one sentence, a hint, the right exit status, and not one changed byte on any device."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmsoft.cli import consent
from dmsoft.member import header, prefix
from dmsoft.units import KIB, MIB
from tests.harness.guestkit import settle
from tests.vm.rig import NAME, Rig, dmsoft, fingerprint, ok, ours, read, refused, sectors_written, sh, unchanged, write
from tests.vm.test_gate import SIGNATURES

pytest_plugins = ("tests.vm.rig",)

SIZE = 24 * MIB
Loops = Callable[..., str]


@pytest.fixture
def loops(tmp_path: Path, rig: Rig) -> Iterator[Loops]:
    """Makes loop devices of ``size`` random-free bytes; `nothing_written` compares all of them."""
    made: list[str] = []

    def make(size: int = SIZE) -> str:
        file = tmp_path / f"disk{len(made)}"
        with file.open("wb") as new:
            new.truncate(size)
        made.append(sh("losetup", "--find", "--show", file).strip())
        settle()
        return made[-1]

    yield make
    for path in made:
        settle()
        subprocess.run(["losetup", "--detach", path], check=False)


@contextlib.contextmanager
def nothing_written(*paths: str | Path) -> Iterator[None]:
    """No byte of these devices changes, no sector of any disk is written, and no device of a mirror appears."""
    before = ours()
    with unchanged(*paths):
        disks = {path: sectors_written(path) for path in Path("/dev").glob("vd?")}
        yield
        assert {path: sectors_written(path) for path in disks} == disks
    assert ours() == before


def create(primary: str | Path, *secondaries: str | Path, options: tuple[str | Path, ...] = ()) -> tuple[str, ...]:
    words = [word for path in secondaries for word in ("--secondary", path)]
    return tuple(map(str, ("create", NAME, "--primary", primary, *words, "--yes", *options)))


def test_one_device_in_two_places(loops: Loops, tmp_path: Path) -> None:
    one, two, three = loops(), loops(), loops()
    link, node = tmp_path / "link", tmp_path / "node"
    link.symlink_to(one)
    os.mknod(node, 0o600 | 0o60000, os.stat(one).st_rdev)
    behind = ("--mode", "write-behind", "--via")
    with nothing_written(one, two, three):
        for words in (
            create(one, one),
            create(one, link),
            create(node, two, one),
            create(one, two, two),
            create(one, two, options=("--metadata", two)),
            create(one, two, options=("--metadata", link)),
            create(one, two, options=(*behind, f"writecache:{one}")),
            create(one, two, options=(*behind, f"writecache:{two}")),
            create(one, two, options=(*behind, f"writecache:{three}", "--metadata", three)),
        ):
            for force in ((), ("--force",)):
                assert "are the same device" in refused(4, *words, *force)


def test_what_stands_on_a_mirror_is_no_part_of_it(rig: Rig) -> None:
    rig.create(one=rig.disks["s0"])
    sh("dmsetup", "create", "above", data=f"0 {16 * MIB // 512} linear {rig.top} 0\n".encode())
    above, behind = "/dev/mapper/above", ("--mode", "write-behind", "--via")
    with nothing_written(rig.primary, rig.disks["s1"]):
        for words in ((f"two={above}",), (f"two={rig.disks['s1']}", *behind, f"writecache:{above}")):
            assert "one is built on the other" in refused(4, "add", NAME, *words, "--yes", "--force")


def test_the_yes_is_for_the_disks_that_were_shown(
    rig: Rig, unplug: Callable[[str], None], replug: Callable[[str], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever is plugged in, or has a name lead to it, before somebody answers: it is not written."""
    link, other = tmp_path / "link", str(rig.disks["s1"])
    link.symlink_to(rig.disks["s0"])
    shown = os.path.realpath(rig.disks["s0"])

    def moved() -> None:
        link.unlink()
        link.symlink_to(other)

    def plugged() -> None:
        for serial in ("s0", "s1"):
            unplug(serial)
        replug("s1")  # which gets the first name that is free

    before = fingerprint(other)
    for path, meanwhile, status in ((str(link), moved, 4), (shown, plugged, 5)):

        def asked(question: str, *, yes: bool, path: str = path, then: Callable[[], None] = meanwhile) -> None:
            assert path in question and "96 MiB" in question and "s0" in question and not yes
            then()

        monkeypatch.setattr(consent, "confirm", asked)
        refused(status, "create", NAME, "--primary", rig.primary, "--secondary", path)
        assert fingerprint(other) == before and not ours()


def test_sizes_that_do_not_fit(loops: Loops) -> None:
    primary, smaller, tiny = loops(), loops(SIZE - MIB), loops(2 * MIB)
    behind = ("--mode", "write-behind", "--via")
    with nothing_written(primary, smaller, tiny):
        assert "24 MiB" in refused(4, *create(primary, smaller))
        refused(4, *create(primary, smaller, options=("--force",)))
        refused(4, *create(tiny, primary))
        refused(4, *create(smaller, primary, options=("--metadata", tiny)))
        refused(4, *create(smaller, primary, options=(*behind, f"writecache:{tiny}")))
        refused(4, *create(smaller, primary, options=("--journal-size", "64M")))


@contextlib.contextmanager
def mounted(path: str, tmp_path: Path) -> Iterator[None]:
    sh("mkfs.ext4", "-q", path)
    where = tmp_path / "mount"
    where.mkdir()
    sh("mount", "-o", "ro", path, where)
    yield
    sh("umount", where)


@contextlib.contextmanager
def swapped(path: str, _: Path) -> Iterator[None]:
    sh("mkswap", path)
    sh("swapon", path)
    yield
    sh("swapoff", path)


@contextlib.contextmanager
def held_by_dm(path: str, _: Path) -> Iterator[None]:
    sh("dmsetup", "create", "foreign", data=f"0 {SIZE // 512} linear {path} 0".encode())
    yield
    settle()
    sh("dmsetup", "remove", "--retry", "foreign")


@contextlib.contextmanager
def held_by_lvm(path: str, _: Path) -> Iterator[None]:
    sh("vgcreate", "-q", "badvg", path)
    sh("lvcreate", "-q", "-an", "-Zn", "-L", "8M", "-n", "data", "badvg")
    sh("vgchange", "-ay", "badvg")
    yield
    settle()
    sh("vgchange", "-an", "badvg")
    sh("vgremove", "-ff", "-y", "badvg")


@contextlib.contextmanager
def held_by_md(path: str, _: Path) -> Iterator[None]:
    sh("mdadm", "--create", "/dev/md/bad", "--run", "--level=1", "--raid-devices=2", path, "missing")
    yield
    settle()
    sh("mdadm", "--stop", "/dev/md/bad")


@contextlib.contextmanager
def read_only(path: str, _: Path) -> Iterator[None]:
    sh("blockdev", "--setro", path)
    try:
        yield
    finally:
        # It would outlive the loop device's detach.
        sh("blockdev", "--setrw", path)


@contextlib.contextmanager
def claimed(path: str, _: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY | os.O_EXCL)
    yield
    os.close(fd)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (mounted, "mounted"),
        (swapped, "swap"),
        (held_by_dm, "foreign"),
        (held_by_lvm, "badvg"),
        (held_by_md, "held by md"),
        (read_only, "read-only"),
        (claimed, "in use"),
    ],
)
def test_devices_in_use(
    loops: Loops, tmp_path: Path, use: Callable[[str, Path], contextlib.AbstractContextManager[None]], said: str
) -> None:
    """Whatever it was named for, and whether forced or not."""
    path, other, third = loops(), loops(), loops()
    with use(path, tmp_path), nothing_written(path, other, third):
        assert said in refused(4, *create(path, other, options=("--force",)))
        assert said in refused(4, *create(other, path))
        cache = ("--mode", "write-behind", "--via", f"writecache:{path}", "--force")
        assert said in refused(4, *create(other, third, options=cache))


def test_foreign_signatures(loops: Loops) -> None:
    path, other = loops(), loops()
    for what, make in SIGNATURES.items():
        make(path)
        settle()
        with nothing_written(path, other):
            assert what in refused(4, *create(other, path)), what
        sh("wipefs", "--all", "--force", path)
    SIGNATURES["ext4"](path)
    ok(*create(other, path, options=("--force",)))
    assert dmsoft("status", "--json").json["mirrors"][0]["secondaries"][0]["state"] == "stale"
    assert sh("wipefs", "--no-act", path) == ""
    ok("destroy", NAME, "--yes")


def test_what_is_no_device(loops: Loops, tmp_path: Path) -> None:
    path = loops()
    file = tmp_path / "file"
    file.write_bytes(bytes(SIZE))
    with nothing_written(path):
        for wrong in (file, tmp_path, "/dev/null"):
            assert "not a block device" in refused(4, *create(path, wrong, options=("--force",)))
            assert "not a block device" in refused(4, *create(wrong, path))
            assert "block device" in refused(4, "examine", wrong)
        for wrong in ("/dev/none", tmp_path / "file" / "below", "", "none"):
            refused(5, *create(path, f"x={wrong}"))
            refused(5, *create(str(wrong), path))
        refused(5, "examine", "/dev/none")
        refused(5, "examine", path)


def test_words_that_make_no_sense(loops: Loops) -> None:
    one, two = loops(), loops()
    with nothing_written(one, two):
        for name in ("", "a/b", "..", "-x", ".x", "x" * 49, "control", "a b", "é"):
            words = create(one, two)
            refused(2, words[0], *words[2:], "--", name)
        for label in ("a-b", "lower", "metadata", "slot1", "a/b", "x" * 33):
            refused(2, *create(one, f"{label}={two}"))
        refused(2, *create(one, f"x={two}", f"x={one}"))
        refused(2, "create", NAME, "--primary", one)
        refused(2, "create", NAME, "--secondary", one)
        for size in ("0", "1000", "512", "1", "4097", "3G", "1E", "x", "-1", "1.5M", "4k4"):
            refused(2, *create(one, two, options=("--block-size", size)))
        for time in ("x", "-5", "1y", ""):
            refused(2, *create(one, two, options=("--interval", time)))
        refused(2, *create(one, two, options=("--mode", "often")))
        refused(2, *create(one, two)[:-1])
        refused(2, "frobnicate")
        for verb in ("start", "stop", "resync", "destroy", "status"):
            refused(5, verb, "nothing", *(("--yes",) if verb == "destroy" else ()))
        refused(5, "add", "nothing", one, "--yes")
        refused(5, "remove", "nothing", "one", "--yes")
        refused(5, "stale", "nothing", "one")


def test_names_and_members_that_are_taken(loops: Loops, rig: Rig) -> None:
    primary, one, two, free, other = (loops() for _ in range(5))
    rig.create(primary=primary, one=one)
    sh("dmsetup", "create", "taken", data=b"0 2048 zero")
    with nothing_written(primary, one, two, free, other):
        assert "a mirror named" in refused(4, *create(free, two, options=("--force",)))
        taken = create(free, two, options=("--force",))
        assert "exists already" in refused(4, taken[0], "taken", *taken[2:])
        # A member stays one, whatever it is asked for, running or not.
        for words in (create(free, one), create(primary, two), create(free, two, options=("--metadata", one))):
            refused(4, words[0], "second", *words[2:], "--force")
        for path in (one, primary):
            assert "of the mirror, are the same" in refused(4, "add", NAME, f"again={path}", "--yes", "--force")
        assert "already has" in refused(2, "add", NAME, f"one={two}", "--yes")
        refused(4, "add", NAME, f"small={free}", "--yes", "--journal-size", "20M")
        refused(5, "stale", NAME, "nobody")
        refused(5, "resync", NAME, "nobody")
    ok("stop", NAME)
    with nothing_written(primary, one, two, free):
        for words in (create(free, one), create(primary, two)):
            assert "of the mirror 'm'" in refused(4, words[0], "second", *words[2:], "--force")


def test_a_torn_header_copy_is_said_and_mended(rig: Rig, loops: Loops) -> None:
    primary, one = loops(), loops()
    rig.create(primary=primary, one=one)
    rig.resync()
    rig.write(3)
    ok("stop", NAME)
    for path in (primary, one):
        _damage(path, _older_copy(path))
        view = dmsoft("status", NAME, "--json").json["mirrors"][0]
        assert {alert["code"] for alert in view["alerts"]} == {"header-torn"}
        assert any(path in alert["summary"] for alert in view["alerts"])
        assert [copy["status"] for copy in ok("examine", path, "--json").json["copies"]].count("torn") == 1
    assert ok("start", NAME, "--json").json["doubt"] is None
    done = rig.resync()
    assert (done["kind"], done["bytes_copied"]) == ("incremental", MIB)
    rig.equal()
    assert rig.status()["alerts"] == []

    # The newer copy is torn: what it granted is gone, what the older one says still holds, and with it the journal that
    # was committed under it: applied once more, it grants the same again.
    rig.write(4)
    rig.resync()
    ok("stop", NAME)
    _damage(one, 1 - _older_copy(one))
    ok("start", NAME)
    rig.superset("one")
    rig.equal()
    assert rig.resync()["kind"] == "none"
    rig.equal()


def _older_copy(path: str) -> int:
    copies = header.read(path).copies
    return min(copies, key=lambda copy: copy.sequence or 0).slot


def _damage(path: str, copy: int) -> None:
    """Turn one bit of a copy's payload."""
    offset = copy * header.SLOT_BYTES + 4096
    data = bytearray(read(path, offset, 4096))
    data[100] ^= 1
    write(path, offset, bytes(data))
    settle()


def test_two_bad_header_copies_are_refused(rig: Rig, loops: Loops) -> None:
    # By its names under /dev/disk/by-id a disk is known that has lost its header; a loop device has none.
    primary, one, two = rig.cut("p0", SIZE), rig.cut("s0", SIZE), loops()
    rig.create(primary=primary, one=one, two=two)
    rig.resync("two")
    for copy in (0, 1):
        _damage(one, copy)
    with unchanged(one):  # to ask a running tracker its state writes its metadata
        refused(7, "resync", NAME, "one")
        refused(7, "examine", one)
    rig.write(5)
    assert {label: state for label, state in rig.states(code=9).items()} == {"one": "failed", "two": "stale"}
    done = dmsoft("resync", NAME, "--json")
    assert done.code in (0, 7) and {p["label"]: p["kind"] for p in done.json["secondaries"]}["two"] == "incremental"
    rig.equal("two")
    ok("stop", NAME)

    good = [read(primary, at, 512 * KIB) for at in (0, 512 * KIB)]
    for copy in (0, 1):
        _damage(primary, copy)
    with nothing_written(primary, one, two):
        assert "header" in refused(7, "start", NAME)
        refused(7, "resync", NAME)
        refused(7, "examine", primary)
        rig_view = dmsoft("status", "--json")
        assert rig_view.code == 9 and rig_view.json["mirrors"][0]["primary"]["state"] == "failed"
        refused(4, "create", "second", "--primary", primary, "--secondary", loops(), "--yes", "--force")
    write(primary, 0, good[0] + good[1])
    ok("start", NAME)


def test_a_header_that_nobody_here_signed(rig: Rig, loops: Loops) -> None:
    """Forged on a secondary: nothing is copied onto it. Forged on the primary: nothing starts."""
    primary, one = loops(), loops()
    rig.create(primary=primary, one=one)
    rig.resync()
    rig.write(3)
    ok("stop", NAME)
    for path, verb in ((one, "resync"), (primary, "start")):
        good = read(path, 0, MIB)
        for key in (None, b"x" * 32):
            payload = header.require(path).payload
            for slot in (0, 1):
                forged = prefix.build(payload, slot=slot, sequence=900 + slot, key=key)
                write(path, slot * header.SLOT_BYTES, forged + bytes(-len(forged) % 4096))
            if verb == "resync":
                ok("start", NAME)
                assert rig.states(code=9) == {"one": "failed"}
            with nothing_written(path):
                ran = dmsoft(verb, NAME)
                assert ran.code == 4 and "sign" in ran.err, ran
            ok("stop", NAME)
        write(path, 0, good)
    ok("start", NAME)
    assert rig.resync()["bytes_copied"] == MIB
    rig.equal()


def test_without_root(loops: Loops) -> None:
    """Every verb but explain, and nothing is even looked at."""
    one, two = loops(), loops()
    verbs = {
        "create": create(one, two), "add": ("add", NAME, one, "--yes"), "remove": ("remove", NAME, "x", "--yes"),
        "start": ("start", NAME), "stop": ("stop", NAME), "destroy": ("destroy", NAME, "--yes"), "status": ("status",),
        "stale": ("stale", NAME, "x"), "resync": ("resync", NAME), "devices": ("devices",), "examine": ("examine", one),
        "recover": ("recover", one),
    }  # fmt: skip
    with nothing_written(one, two):
        child = os.fork()
        if not child:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            runs = {verb: dmsoft(*words) for verb, words in verbs.items()}
            bad = [
                verb for verb, ran in runs.items() if ran.code != 3 or "root" not in ran.err or "Hint" not in ran.err
            ]
            os._exit(1 if bad or dmsoft("explain").code else 0)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("module", ["dm_era", "dm_raid", pytest.param("dm_writecache", marks=pytest.mark.long)])
def test_a_kernel_without_the_target(rig: Rig, module: str) -> None:
    one, two, cache = rig.cut("p0", SIZE), rig.cut("s0", SIZE), rig.cut("c0", SIZE)
    behind = ("--mode", "write-behind", "--via", f"writecache:{cache}")
    if module != "dm_era":
        rig.create(*behind, primary=one, one=two)
    sh("rmmod", module)
    tool = Path("/sbin/modprobe").resolve()
    sh("mount", "--bind", "/bin/false", tool)
    try:
        if module == "dm_era":
            with nothing_written(one, two):
                assert "era" in refused(3, *create(one, two))
        else:
            ran = dmsoft("resync", NAME)
            assert ran.code == 3 and module.removeprefix("dm_") in ran.err, ran
            assert rig.states() == {"one": "stale"}
    finally:
        sh("umount", tool)
        sh("modprobe", module)
