# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel's targets and their tools do wrong, each shown with plain dmsetup, and beside it that dmsoft stays
right. Where kernels differ the test says what was measured on which; a kernel that is mended fails it and is noted.

Those that need nothing of a mirror are in other files; `ELSEWHERE` has them all.
"""

import errno
import mmap
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmsoft.dm.cookie import Cookie
from dmsoft.dm.device import Device
from dmsoft.dm.helper import Helper, Operation
from dmsoft.doctor import io
from dmsoft.doctor.bed import Bed
from dmsoft.era.reader import EraReader
from dmsoft.mirror import loss
from dmsoft.mirror.plan import MAX_WRITE_BEHIND, names_of
from dmsoft.units import KIB, MIB
from tests import features
from tests.vm.faulty import faulty
from tests.vm.rig import NAME, Rig, dmsoft, ok, ours, read, sh, table, wait_until, write

pytest_plugins = ("tests.vm.rig",)
pytestmark = pytest.mark.slow

# What the kernel does wrong, and the tests of other files that show it and what dmsoft does about it.
ELSEWHERE = {
    "an era table loaded before the suspend loses marks": (
        "test_era_live.py::test_a_table_loaded_before_the_suspend_loses_marks",
        "test_dm.py::test_an_era_table_is_loaded_only_while_suspended",
    ),
    "the status of an inactive era table overwrites the live record": (
        "test_dm.py::test_the_inactive_era_table_is_never_asked",
    ),
    "a suspended era answers no status and no message, and who asks cannot be ended": (
        "test_dm.py::test_a_suspended_era_is_asked_nothing",
    ),
    "a discard marks its first block alone, or its last": (
        "test_era_live.py::test_no_limit_makes_discards_safe",
        "test_periodic.py::test_discards_are_refused",
    ),
    "the record read through the page cache is an old one": ("test_era_live.py::test_what_a_buffered_reader_misses",),
    "a flush waits for every leg, and writes that touch wait for each other": ("test_doctor.py::test_a_checkup",),
}
LENGTH = 4 * MIB
SECTORS = LENGTH // 512
SIZE = 24 * MIB
BEHIND = ("--mode", "write-behind")
METADATA_ERRORS = "I/O error|era|space map|Buffer|flakey|btree|array|bitset|block manager|transaction manager"
HELD_MS, LONG_MS = 1500, 15000


def here(feature: dict[str, bool]) -> bool:
    """Whether the kernel that runs has it."""
    return feature[features.series(os.uname().release)]


@pytest.fixture
def bed() -> Iterator[Bed]:
    sh("modprobe", "loop")
    for module in ("dm_raid", "dm_era", "dm_delay", "dm_flakey", "dm_writecache"):
        sh("modprobe", module)
    with Bed() as made:
        yield made


def dm(name: str, target: str, length: int = SECTORS, uuid: str | None = None) -> str:
    """A device made by dmsetup; the guest is cleaned of it after the test."""
    sh("dmsetup", "create", name, *(("--uuid", uuid) if uuid else ()), data=f"0 {length} {target}\n".encode())
    return f"/dev/mapper/{name}"


def swap(name: str, target: str, length: int = SECTORS) -> None:
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", name)
    sh("dmsetup", "load", name, data=f"0 {length} {target}\n".encode())
    sh("dmsetup", "resume", name)


def path(number: str) -> str:
    return f"/dev/{Path(os.readlink(f'/sys/dev/block/{number}')).name}"


def raid(*legs: tuple[str, str], options: str = "nosync region_size 2048") -> str:
    words = options.split()
    parts = " ".join(f"{meta} {data}" for meta, data in legs)
    return f"raid raid1 {len(words) + 1} 0 {options} {len(legs)} {parts}"


def held_back(disk: str, ms: int = HELD_MS) -> str:
    """A target that holds writes back, and neither reads nor flushes."""
    return f"delay {disk} 0 0 {disk} 0 {ms} {disk} 0 0"


def on_its_way(name: str) -> int:
    """Writes that a delay has not passed on yet."""
    return int(sh("dmsetup", "status", name).split("delay")[1].split()[1])


def let_go(name: str) -> None:
    """A delay that is suspended passes on what it holds at once."""
    sh("dmsetup", "suspend", "--nolockfs", name)
    sh("dmsetup", "resume", name)


def dropped(top: str, leg: str) -> bool:
    """Whether md has dropped a leg whose delay lets all go: 7.2 was seen to send a write that failed once more."""
    let_go(leg)
    return "D" in health(top)


def health(name: str) -> str:
    return sh("dmsetup", "status", name).split()[5]


def action(name: str) -> str:
    return sh("dmsetup", "status", name).split()[7]


def differ(one: str, two: str) -> bool:
    return read(one, 0, LENGTH) != read(two, 0, LENGTH)


def page(device: str, offset: int, fill: bytes, length: int = 4 * KIB) -> None:
    """Write without a flush."""
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as buffer:
            buffer[:] = fill * length
            assert os.pwritev(fd, [buffer], offset) == length
    finally:
        os.close(fd)


def fails(device: str, offset: int) -> bool:
    """Whether a write does."""
    try:
        page(device, offset, b"n")
    except OSError as err:
        assert err.errno == errno.EIO
        return True
    return False


def fsync_error(device: str) -> int:
    """The errno of an fsync, 0 for none."""
    fd = os.open(device, os.O_RDWR)
    try:
        os.fsync(fd)
    except OSError as err:
        return err.errno or -1
    finally:
        os.close(fd)
    return 0


def data_bytes(rig: Rig, label: str | None, block: int) -> bytes:
    payload = rig.primary_header() if label is None else rig.secondary_header(label)
    where = rig.primary if label is None else rig.secondaries[label]
    return read(where, payload.regions["data"].offset + block * MIB, MIB)


@pytest.mark.parametrize("trap", ELSEWHERE)
def test_what_is_shown_elsewhere_is_there(trap: str) -> None:
    for test in ELSEWHERE[trap]:
        file, name = test.split("::")
        assert f"def {name}(" in (Path(__file__).parent / file).read_text(), test


@pytest.mark.core
def test_a_checkpoint_is_no_barrier(rig: Rig) -> None:
    """A write may land long after the era that it is marked in (shown by the doctor); a resync has to wait for it."""
    rig.create("--metadata", rig.disks["c0"], primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    data = rig.primary_header().regions["data"]
    first, count = data.offset // 512, data.length // 512
    disk, rest = rig.disks["p0"], SIZE // 512 - first - count
    lines = [f"0 {first} linear {disk} 0"]
    lines += [f"{first} {count} delay {disk} {first} 0 {disk} {first} {HELD_MS} {disk} {first} 0"]
    lines += [f"{first + count} {rest} linear {disk} {first + count}"] if rest else []
    name = Path(rig.primary).name
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", name)
    sh("dmsetup", "load", name, data="\n".join(lines).encode())
    sh("dmsetup", "resume", name)
    landing = io.Started(lambda: page(rig.top, 3 * MIB, b"n"))
    wait_until("the write is on its way", lambda: on_its_way(name))
    # The plain checkpoint comes back while it still is.
    sh("dmsetup", "message", NAME, "0", "checkpoint")
    assert not landing.done
    rig.resync()
    landing.wait()
    rig.superset("one")
    rig.equal()


@pytest.mark.core
def test_raid1_never_resyncs_after_a_crash(bed: Bed) -> None:
    """Its bitmap says that regions are dirty, and it says AA; for dmsoft they are stale until they are copied (see
    `test_a_mirror_beside_them`)."""
    slots, fast, slow = [bed.ram(256 * KIB) for _ in range(2)], bed.ram(LENGTH), bed.ram(LENGTH)
    leg = dm("trap-leg", held_back(slow, LONG_MS))
    top = dm("trap", raid((slots[0], leg), (slots[1], fast),
                          options="nosync region_size 2048 write_mostly 0 max_write_behind 64"))  # fmt: skip
    for block in range(3):
        page(top, block * MIB, b"n")
    # What a power cut would leave now, as the disks have it.
    copies = [bed.ram(256 * KIB) for _ in range(2)], bed.ram(LENGTH), bed.ram(LENGTH)
    for source, target in zip((*slots, slow, fast), (*copies[0], *copies[1:]), strict=True):
        size = int(sh("blockdev", "--getsize64", path(source)))
        write(path(target), 0, read(path(source), 0, size))
    dm("trap-after", raid((copies[0][0], copies[1]), (copies[0][1], copies[2]), options="region_size 2048"))
    wait_until("it is idle", lambda: action("trap-after") == "idle")
    time.sleep(1)
    assert (health("trap-after"), action("trap-after")) == ("AA", "idle")
    assert differ(path(copies[1]), path(copies[2]))
    let_go("trap-leg")


@pytest.mark.core
def test_a_behind_write_that_fails(bed: Bed, rig: Rig) -> None:
    """Since 6.12.13 the bitmap does not cover a write that is still on its way to the leg behind: md recovers the leg
    without it, and says AA. dmsoft copies what its own record says."""
    slots, fast, slow = [bed.ram(256 * KIB) for _ in range(2)], bed.ram(LENGTH), bed.ram(LENGTH)
    under = dm("trap-under", f"linear {slow} 0")
    leg = dm("trap-leg", held_back(under, LONG_MS))
    top = dm("trap", raid((slots[0], leg), (slots[1], fast),
                          options="nosync region_size 2048 write_mostly 0 max_write_behind 64"))  # fmt: skip
    page(top, MIB, b"n")
    swap("trap-under", "error")
    wait_until("the leg is dropped", lambda: dropped("trap", "trap-leg"))
    swap("trap-under", f"linear {slow} 0")
    swap("trap-leg", f"linear {under} 0")
    sh("dmsetup", "suspend", "trap")
    sh("dmsetup", "resume", "trap")
    wait_until("md has recovered it", lambda: (health("trap"), action("trap")) == ("AA", "idle"))
    assert differ(path(slow), path(fast)) is not here(features.RECOVERS)

    rig.create(*BEHIND, "--via", f"delay:{LONG_MS}", primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    page(rig.top, 3 * MIB, b"n")
    wait_until("the write is on its way", lambda: on_its_way("m-one"))
    rig.behave(rig.secondaries["one"], "s0", "error_writes")
    wait_until("md drops it", lambda: dropped("m-lower", "m-one"))
    rig.behave(rig.secondaries["one"], "s0")
    assert {3} <= rig.stale("one")
    assert rig.resync()["kind"] == "incremental"
    ok("stop", NAME)
    rig.equal()


@pytest.mark.core
def test_write_behind_at_the_second_place(bed: Bed) -> None:
    """On 6.1 a write goes behind only if the leg that is written mostly comes first; on 5.10, 6.12, 6.18 and 7.2 it
    does at either place. dmsoft has its secondaries first (see `test_a_mirror_beside_them`)."""

    def behind(place: int) -> bool:
        """Whether a write comes back while the slow leg still holds it."""
        slots, fast, slow = [bed.ram(256 * KIB) for _ in range(2)], bed.ram(LENGTH), bed.ram(LENGTH)
        leg = Device(f"trap-leg{place}", f"DMSOFT-trap-leg{place}")
        data = [
            fast,
            dm(
                leg.name,
                held_back(slow, LONG_MS if place == 0 or here(features.BEHIND_SECOND) else HELD_MS),
                uuid=leg.uuid,
            ),
        ]
        data = data[::-1] if place == 0 else data
        options = f"nosync region_size 2048 write_mostly {place} max_write_behind 64"
        page(dm(f"trap{place}", raid((slots[0], data[0]), (slots[1], data[1]), options=options)), MIB, b"n")
        held = io.held(leg).writes > 0
        let_go(leg.name)
        return held

    assert (behind(0), behind(1)) == (here(features.BEHIND_FIRST), here(features.BEHIND_SECOND))


@pytest.mark.core
def test_repair_takes_the_first_leg_for_the_truth(bed: Bed) -> None:
    """Also if that is write-mostly, as dmsoft's secondaries are (see `test_a_mirror_asks_md_nothing`)."""
    slots, primary, stale = [bed.ram(256 * KIB) for _ in range(2)], bed.ram(LENGTH), bed.ram(LENGTH)
    write(path(primary), MIB, b"n" * MIB)
    write(path(stale), MIB, b"o" * MIB)
    dm("trap", raid((slots[0], stale), (slots[1], primary), options="nosync region_size 2048 write_mostly 0"))
    sh("dmsetup", "message", "trap", "0", "repair")
    wait_until("the primary is overwritten", lambda: read(path(primary), MIB, MIB) == b"o" * MIB)


@pytest.mark.core
def test_md_swallows_flush_errors(bed: Bed) -> None:
    """Whichever leg fails to flush, the raid1 says that all is durable (see `test_a_mirror_asks_md_nothing`)."""
    slots, disks = [bed.ram(256 * KIB) for _ in range(2)], [bed.ram(LENGTH) for _ in range(2)]
    legs = [dm(f"trap-leg{index}", f"linear {disk} 0") for index, disk in enumerate(disks)]
    top = dm("trap", raid((slots[0], legs[0]), (slots[1], legs[1])))
    for index, (leg, disk) in enumerate(zip(legs, disks, strict=True)):
        swap(f"trap-leg{index}", f"flakey {disk} 0 0 600 1 error_writes")
        assert (fsync_error(leg), fsync_error(top)) == (errno.EIO, 0)
    assert health("trap") == "AA"


@pytest.mark.core
def test_a_bare_suspend_ends_the_order_of_behind_writes(bed: Bed) -> None:
    """Two writes of one place go to the leg behind one after the other, until the raid1 was suspended and resumed as it
    is; from then on they may overtake each other (see `test_a_mirror_asks_md_nothing`)."""
    slots, fast, slow = [bed.ram(256 * KIB) for _ in range(2)], bed.ram(LENGTH), bed.ram(LENGTH)
    leg = Device("trap-leg", "DMSOFT-trap-leg")
    dm(leg.name, held_back(slow), uuid=leg.uuid)
    table_of = raid((slots[0], "/dev/mapper/trap-leg"), (slots[1], fast),
                    options="nosync region_size 2048 write_mostly 0 max_write_behind 64")  # fmt: skip
    top = dm("trap", table_of)

    def second_waits() -> bool:
        io.drained(leg)
        page(top, MIB, b"1")
        again = io.Started(lambda: page(top, MIB, b"2"))
        io.wait_until(lambda: again.done or io.held(leg).writes > 1)
        waits = io.held(leg).writes < 2  # the first had landed, when the second was let through
        again.wait()
        return waits

    assert second_waits()
    sh("dmsetup", "suspend", "trap")
    sh("dmsetup", "resume", "trap")
    assert not second_waits()
    swap("trap", table_of)
    assert second_waits()


@pytest.mark.core
def test_a_mirror_asks_md_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """dmsoft's side of the three before: it resumes a raid1 only with a table that was loaded for it, flushes the disks
    themselves, and `verify --repair` copies from the primary, though that is the second leg."""
    calls: list[str] = []
    for name in ("load", "resume"):
        original = getattr(Device, name)

        def noted(
            device: Device, *words: object, _original: object = original, _name: str = name, **options: object
        ) -> object:
            if device.name == "m-lower":
                calls.append(_name)
            return _original(device, *words, **options)  # type: ignore[operator]

        monkeypatch.setattr(Device, name, noted)
    started = Helper.start

    def start(helper: Helper, operation: Operation, target: Device) -> Cookie:
        if (operation, target.name) == (Operation.RESUME, "m-lower"):
            calls.append("resume")
        return started(helper, operation, target)

    monkeypatch.setattr(Helper, "start", start)

    rig.create(*BEHIND, primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    before = rig.secondary_header("one").sync.era
    write(rig.top, 3 * MIB, b"n" * MIB)
    wait_until("it was written behind", lambda: not rig.differing("one"))
    rig.behave(rig.secondaries["one"], "s0", "error_writes")
    assert (fsync_error(rig.secondaries["one"]), fsync_error(rig.top)) == (errno.EIO, 0)
    assert dmsoft("resync", NAME).code == 6
    assert rig.secondary_header("one").sync.era == before and rig.stale("one") == {3}
    rig.behave(rig.secondaries["one"], "s0")
    rig.resync()

    assert "write_mostly 0" in table("m-lower")
    rig.write_to_medium("one", 3 * MIB, b"o" * MIB)
    dmsoft("verify", NAME, "--repair")
    assert data_bytes(rig, "one", 3) == data_bytes(rig, None, 3) == b"n" * MIB
    ok("stop", NAME)
    rig.equal()
    resumes = [at for at, name in enumerate(calls) if name == "resume"]
    assert len(resumes) >= 3 and all(at and calls[at - 1] == "load" for at in resumes), calls


@pytest.mark.core
def test_a_leg_of_larger_blocks(bed: Bed, rig: Rig) -> None:
    """A writecache of 4 KiB raises the raid1's blocks and not those of an era that stands on it: one write of 512 bytes
    and the leg is out. dmsoft's writecache has the primary's block size."""
    slots, fast, slow, cache = [bed.ram(256 * KIB) for _ in range(2)], bed.ram(LENGTH), bed.ram(LENGTH), bed.ram(MIB)
    lower = dm("trap", f"linear {fast} 0")
    top = dm("trap-era", f"era {bed.ram(MIB)} {lower} 128")
    leg = dm("trap-leg", f"writecache s {slow} {cache} 4096 0")
    swap("trap", raid((slots[0], leg), (slots[1], fast), options="nosync region_size 2048 write_mostly 0"))
    assert [sh("blockdev", "--getss", each).strip() for each in (lower, top)] == ["4096", "512"]
    page(top, MIB, b"n", 512)
    wait_until("the leg is out", lambda: "D" in health("trap"))

    rig.create(*BEHIND, "--via", f"writecache:{rig.disks['c0']}", primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    page(rig.top, 3 * MIB, b"n", 512)
    assert fsync_error(rig.top) == 0
    assert health("m-lower") == "AA" and sh("blockdev", "--getss", "/dev/mapper/m-lower").strip() == "512"


@pytest.mark.core
def test_daemon_sleep_bricks_an_array(bed: Bed) -> None:
    """It is stored in seconds, rounded down; a stored 0 cannot be activated again. dmsoft's tables do not have it (see
    `test_a_mirror_beside_them`)."""
    legs = [(bed.ram(256 * KIB), bed.ram(LENGTH)) for _ in range(2)]
    line = raid(*legs, options="nosync region_size 2048 daemon_sleep 100")
    dm("trap", line)
    sh("dmsetup", "remove", "--retry", "trap")
    done = subprocess.run(
        ["dmsetup", "create", "trap"], input=f"0 {SECTORS} {line}\n".encode(), capture_output=True, check=False
    )
    assert done.returncode != 0 and b"Invalid argument" in done.stderr, done.stderr


@pytest.mark.core
def test_the_limit_of_behind_writes_is_halved(bed: Bed) -> None:
    """Loaded, it is halved and shown so; what a bitmap has noted once counts more than any table. dmsoft's tables come
    from its model, and its slots are zeroed before each (see `test_a_mirror_beside_them`)."""
    shown = []
    legs = [(bed.ram(256 * KIB), bed.ram(LENGTH)) for _ in range(2)]
    wanted = "nosync region_size 2048 write_mostly 0 max_write_behind {}"
    dm("trap", raid(*legs, options=wanted.format(64)))
    for value in (64, 1024):  # the second with metadata that know better
        swap("trap", raid(*legs, options=wanted.format(value)))
        shown.append(re.findall(r"max_write_behind (\d+)", sh("dmsetup", "table", "trap")))
    assert shown == [["32"], ["32"]]


def test_a_mirror_beside_them(rig: Rig) -> None:
    """dmsoft's side of those traps that need no more than a mirror: its raid1 has the secondary first, its own limit of
    writes behind each time and no `daemon_sleep`, and what is on its way is stale, whatever md says."""
    rig.create(*BEHIND, "--via", f"delay:{LONG_MS}", primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    for fill in (b"n", b"m"):
        rig.resync()
        shown = table("m-lower")
        assert "write_mostly 0" in shown and f"max_write_behind {MAX_WRITE_BEHIND // 2}" in shown
        assert "daemon_sleep" not in shown
        page(rig.top, 3 * MIB, fill)
        assert on_its_way("m-one") and health("m-lower") == "AA"
        assert rig.stale("one") == {3}
        rig.superset("one")
    let_go("m-one")  # else whoever cleans up waits for it


@pytest.mark.core
def test_md_answers_messages_with_errors(bed: Bed) -> None:
    """`idle` and `frozen` are acted on in part and said to be invalid since 6.9; dmsoft sends none to a raid1."""
    legs = [(bed.ram(256 * KIB), bed.ram(LENGTH)) for _ in range(2)]
    dm("trap", raid(*legs))
    codes = [
        subprocess.run(["dmsetup", "message", "trap", "0", word], capture_output=True, check=False).returncode
        for word in ("frozen", "idle")
    ]
    frozen = action("trap") == "frozen"
    assert (codes == [0, 0]) is here(features.ANSWERS), (codes, frozen)
    assert not frozen
    root = Path(__file__).resolve().parents[2] / "dmsoft"
    sent = {word for file in root.rglob("*.py") for word in re.findall(r'\.message\("(\w+)', file.read_text())}
    assert sent == {"flush", "checkpoint"}


@pytest.mark.core
def test_era_invalidate_lacks_the_current_era(bed: Bed) -> None:
    """The tool never lists what was written in the era that had not ended, not even after a crash."""
    metadata, origin = bed.ram(MIB), bed.ram(LENGTH)
    top = dm("trap", f"era {metadata} {origin} 128")
    page(top, 0, b"n")
    sh("dmsetup", "message", "trap", "0", "checkpoint")
    page(top, 3 * 64 * KIB, b"n")
    after = bed.ram(MIB)
    write(path(after), 0, read(path(metadata), 0, MIB))
    listed = sh("era_invalidate", "--written-since", "1", path(after))
    assert 'block="0"' in listed.replace(" ", "") and 'block="3"' not in listed.replace(" ", "")
    with EraReader(path(after)) as reader:
        assert reader.written_since(1).blocks.extents().tolist() == [[0, 1], [3, 1]]


def filled(top: str, name: str) -> None:
    """Write and begin eras until one or the other fails."""
    for turn in range(12):
        try:
            page(top, turn * 13 * 4 * KIB, b"n")
        except OSError as err:
            assert err.errno == errno.EIO
            return
        if subprocess.run(["dmsetup", "message", name, "0", "checkpoint"], capture_output=True, check=False).returncode:
            return
    raise AssertionError("the metadata never became full")


@pytest.mark.core
@pytest.mark.kernel_log(allow=METADATA_ERRORS)
def test_metadata_that_fail_for_a_moment(bed: Bed, rig: Rig) -> None:
    """dm-era goes on as if the blocks that failed were on the disk, and then reads what lay there before: what was
    written and had its mark has it no more, and the status is well. dmsoft has that noticed."""
    ram, blocks = bed.ram(8 * MIB), LENGTH // (4 * KIB)
    era = f"era {dm('trap-metadata', f'linear {ram} 0', 8 * MIB // 512)} {bed.ram(LENGTH)} 8"
    top, forgotten = dm("trap-forgets", era), set[int]()
    for _ in range(40):
        sh("dmsetup", "suspend", "trap-forgets")
        sh("dmsetup", "resume", "trap-forgets")  # a new era
        marked = rig.chance.sample(range(blocks - 2), rig.chance.randrange(30, 90))
        for block in marked:
            page(top, block * 4 * KIB, b"n")
        swap("trap-metadata", f"flakey {ram} 0 0 600 1 error_writes", 8 * MIB // 512)
        with pytest.raises(OSError, match="Input/output error"):
            page(top, (blocks - 2) * 4 * KIB, b"n")
        swap("trap-metadata", f"linear {ram} 0", 8 * MIB // 512)
        if fails(top, (blocks - 1) * 4 * KIB):
            swap("trap-forgets", era)
            continue
        with EraReader(path(ram)) as reader:
            found = reader.written_since(reader.superblock().current_era).blocks
            forgotten = {block for block in marked if block not in found}
        if forgotten:
            break
    assert forgotten and sh("dmsetup", "status", "trap-forgets").split()[3:] != ["Error"]

    metadata = rig.cut("c0", 16 * MIB)
    rig.create("--metadata", metadata, primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.resync()
    downs = [(), ("stop",), ("top",), ("top", "lower"), ("metadata",)]
    # Elsewhere this is of the core, which has to be short.
    for down in rig.chance.sample(downs, 2 if features.series(os.uname().release) == "6.1" else 1):
        rig.write(1, 2)
        assert remembers() == "A"
        rig.behave(metadata, "c0", "error_writes")
        with pytest.raises(OSError, match="Input/output error"):
            rig.write(3)
        rig.behave(metadata, "c0")
        fails(rig.top, 4 * MIB)
        assert remembers() == "D"
        assert "tracking-failed" in [alert["code"] for alert in rig.status(9)["alerts"]]
        take_down(rig, down)
        assert rig.resync()["kind"] == "compare"
        rig.equal()

    # A start begins tracking anew in a mirror that runs.
    rig.behave(metadata, "c0", "error_writes")
    with pytest.raises(OSError, match="Input/output error"):
        rig.write(3)
    rig.behave(metadata, "c0")
    started = ok("start", NAME, "--json").json
    assert started["doubt"] and started["untracked"] is None
    rig.write(4)
    assert rig.resync()["kind"] == "compare"
    rig.equal()


def remembers() -> str:
    """The letter of the stripe below the record."""
    return sh("dmsetup", "status", "m-metadata-watch").splitlines()[0].split()[-1]


def take_down(rig: Rig, what: tuple[str, ...]) -> None:
    """Stop and start the mirror, after others have removed some of it; what was remembered is not forgotten."""
    if not what:
        return
    if what != ("stop",):
        sh("dmsetup", "remove", "--retry", NAME)
    if "lower" in what:
        for name in sorted({"m-shield", "m-lower"} & set(ours()), reverse=True):  # the shield is on 5.10 alone
            sh("dmsetup", "remove", "--retry", name)
    if "metadata" in what:
        loss.remember(names_of(rig.primary_header()))  # as the daemon does at its end
        for name in ("m-metadata", "m-metadata-watch", "m-metadata-disk"):
            sh("dmsetup", "remove", "--retry", name)
    if what != ("top",):
        ok("stop", NAME)
    assert "the era metadata failed" in ok("start", NAME, "--json").json["doubt"]


@pytest.mark.core
@pytest.mark.kernel_log(allow=METADATA_ERRORS + "|nbd")
def test_a_record_whose_flush_fails(rig: Rig, tmp_path: Path) -> None:
    """The disk loses then what it had not written. From Linux 6.11 on a flush passes a lone stripe by."""
    with faulty(tmp_path, 16 * MIB) as disk:
        rig.create("--metadata", disk.path, primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
        rig.resync()
        rig.write(1, 2)
        assert remembers() == "A"
        disk.fail("flush", times=1)
        with pytest.raises(OSError, match="Input/output error"):
            rig.write(3)
        disk.mend()
        assert remembers() == "D"
        assert rig.resync()["kind"] == "compare"
        rig.equal()
        ok("stop", NAME)


@pytest.mark.core
@pytest.mark.kernel_log(allow=METADATA_ERRORS)
def test_metadata_that_fill_up_or_fail(bed: Bed) -> None:
    """Writes fail, a resume leaves the device suspended, and metadata that are well again heal nothing by themselves
    (see the last of `test_metadata_that_fail_for_a_moment`)."""
    origin, length = bed.ram(23 * MIB), 23 * MIB // 512
    top = dm("trap-full", f"era {bed.ram(21 * 4 * KIB)} {origin} 8", length)
    filled(top, "trap-full")
    sh("dmsetup", "suspend", "trap-full")
    done = subprocess.run(["dmsetup", "resume", "trap-full"], capture_output=True, check=False)
    assert done.returncode and b"No space left" in done.stderr
    assert "SUSPENDED" in sh("dmsetup", "info", "trap-full")
    sh("dmsetup", "load", "trap-full", data=f"0 {length} linear {origin} 0\n".encode())
    sh("dmsetup", "resume", "trap-full")

    ram, origin = bed.ram(MIB), bed.ram(LENGTH)
    era = f"era {dm('trap-metadata', f'linear {ram} 0', MIB // 512)} {origin} 128"
    top = dm("trap-failed", era)
    page(top, 0, b"n")
    swap("trap-metadata", f"flakey {ram} 0 0 600 1 error_writes", MIB // 512)
    for healed in (False, True):
        with pytest.raises(OSError, match="Input/output error"):
            page(top, MIB, b"n")
        assert sh("dmsetup", "status", "trap-failed").split()[3:] == ["Error"]
        page(top, 0, b"m")  # it has its mark
        if not healed:
            swap("trap-metadata", f"linear {ram} 0", MIB // 512)
    swap("trap-failed", era)
    page(top, MIB, b"n")
