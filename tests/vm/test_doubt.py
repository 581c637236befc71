# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever was changed behind dmsoft's back: doubt means unknown, and an empty stale set is never the answer."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dmsoft.era.reader import EraReader
from dmsoft.era.superblock import Superblock
from dmsoft.member.payload import Region
from dmsoft.units import KIB, MIB
from tests.harness.guestkit import settle
from tests.vm.rig import NAME, Rig, crash, dmsoft, ok, ours, read, refused, sh, write

pytest_plugins = ("tests.vm.rig",)

SIZE = 32 * MIB
BLOCKS = 23


def make(rig: Rig) -> Region:
    """A small mirror, synced once; returns where its era metadata is."""
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.write(1, 2)
    rig.resync()
    return rig.primary_header().regions["metadata"]


def is_unknown(rig: Rig, word: str) -> None:
    """It is said everywhere that nothing is known of the secondary, and why."""
    one = rig.secondary("one", code=9)
    assert (one["state"], one["stale_blocks"]) == ("unknown", BLOCKS) and word in one["reason"]
    assert rig.stale("one") == set(range(BLOCKS))
    said = ok("resync", NAME, "--dry-run", "--json").json
    assert (said["kind"], said["bytes_stale"]) == ("compare", BLOCKS * MIB)


def compares_and_is_well(rig: Rig, differing: set[int]) -> None:
    """The next resync reads every block, writes those that differ, and from then on copies are incremental again."""
    assert rig.differing("one") == differing
    done = rig.resync()
    assert (done["kind"], done["bytes_stale"]) == ("compare", BLOCKS * MIB)
    assert done["bytes_copied"] == len(differing) * MIB
    rig.equal()
    assert rig.states() == {"one": "current"}
    rig.write(20)
    done = rig.resync()
    assert (done["kind"], done["bytes_copied"]) == ("incremental", MIB)
    rig.equal()


def test_zeroed_metadata(rig: Rig) -> None:
    """The kernel formats it without a word, and would say that nothing was ever written."""
    region = make(rig)
    rig.write(5, 6)
    ok("stop", NAME)
    write(rig.primary, region.offset, bytes(4096))
    assert "zeroed" in ok("start", NAME, "--json").json["doubt"]
    is_unknown(rig, "zeroed")
    # Neither a stop nor a crash makes the doubt forgotten.
    crash()
    assert ok("start", NAME, "--json").json["doubt"] is None
    is_unknown(rig, "zeroed")
    compares_and_is_well(rig, {5, 6})


@pytest.mark.parametrize("clean", [pytest.param(True, marks=pytest.mark.long), False])
def test_metadata_put_back_from_an_older_copy(rig: Rig, clean: bool) -> None:
    """After a clean stop its digest gives it away, after a crash the era that it went back to."""
    region = make(rig)
    ok("stop", NAME)
    old = read(rig.primary, region.offset, region.length)
    ok("start", NAME)
    rig.write(7, 8)
    if clean:
        ok("stop", NAME)
    else:
        crash()
    write(rig.primary, region.offset, old)
    # Also before the start has judged it.
    assert rig.stale("one") == set(range(BLOCKS)) and rig.secondary("one", code=9)["state"] == "unknown"
    doubt = ok("start", NAME, "--json").json["doubt"]
    assert ("changed while" if clean else "went back") in doubt
    is_unknown(rig, doubt[:30])
    compares_and_is_well(rig, {7, 8})


@pytest.mark.long
def test_zeroed_metadata_after_a_crash(rig: Rig) -> None:
    region = make(rig)
    rig.write(9)
    crash()
    write(rig.primary, region.offset, bytes(4096))
    assert "zeroed" in ok("start", NAME, "--json").json["doubt"]
    compares_and_is_well(rig, {9})


def _flip(find: Callable[[Superblock], int], offset: int) -> Callable[[Rig, Region], None]:
    """Damage that flips one bit in byte ``offset`` of the metadata block that ``find`` names."""

    def damage(rig: Rig, region: Region) -> None:
        with EraReader(rig.primary, offset_bytes=region.offset, length_bytes=region.length) as reader:
            at = region.offset + 4096 * find(reader.superblock())
        data = bytearray(read(rig.primary, at, 4096))
        data[offset] ^= 0x40
        write(rig.primary, at, bytes(data))

    return damage


def _fresh(rig: Rig, region: Region) -> None:
    """Metadata that another era device made of its own."""
    sh("dmsetup", "create", "other-data", data=b"0 47104 zero")
    sh("dmsetup", "create", "other-meta", data=f"0 8192 linear {rig.disks['c0']} 0".encode())
    sh("dmsetup", "create", "other", data=b"0 47104 era /dev/mapper/other-meta /dev/mapper/other-data 2048")
    for name in ("other", "other-meta", "other-data"):
        sh("dmsetup", "remove", "--retry", name)
    write(rig.primary, region.offset, read(rig.disks["c0"], 0, region.length))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_flip(lambda _: 0, 200), id="superblock"),
        pytest.param(_flip(lambda found: found.writeset_tree_root, 50), id="tree", marks=pytest.mark.long),
        pytest.param(_flip(lambda found: found.era_array_root, 4000), id="array", marks=pytest.mark.long),
        # The kernel alone needs these: it would find out in the middle of a commit, and fail the user's writes.
        pytest.param(
            _flip(lambda found: found.space_map.bitmap_root, 20), id="space-map-index", marks=pytest.mark.slow
        ),
        pytest.param(
            _flip(lambda found: found.space_map.ref_count_root, 2000), id="ref-counts", marks=pytest.mark.long
        ),
        pytest.param(_fresh, id="other", marks=pytest.mark.long),
    ],
)
def test_damaged_or_foreign_metadata(rig: Rig, damage: Callable[[Rig, Region], None]) -> None:
    region = make(rig)
    rig.write(3)
    ok("stop", NAME)
    damage(rig, region)
    assert dmsoft("resync", NAME).code == 5  # it does not run
    assert ok("start", NAME, "--json").json["doubt"]
    compares_and_is_well(rig, {3})


def _image(path: str) -> bytes:
    return read(path, 0, SIZE)


def test_the_primary_put_back_from_an_image(rig: Rig) -> None:
    """The whole disk, header and era metadata and all, as it was: before a later resync, and after it."""
    make(rig)
    rig.write(3)
    ok("stop", NAME)
    image = _image(rig.primary)

    # Written since, but not synced since: the secondary still is what the image remembers.
    ok("start", NAME)
    rig.write(4)
    ok("stop", NAME)
    write(rig.primary, 0, image)
    ok("start", NAME)
    rig.superset("one")
    rig.write(5)
    assert rig.resync()["kind"] in ("incremental", "compare")
    rig.equal()
    ok("stop", NAME)

    # Synced since: what the secondary got is no part of the image's history.
    write(rig.primary, 0, image)
    assert rig.secondary("one", code=9)["state"] == "unknown"
    ok("start", NAME)
    is_unknown(rig, "put back from an older copy")
    # Not even when the image catches up with the eras and the blocks.
    for _ in range(2):
        crash()
        ok("start", NAME)
    is_unknown(rig, "put back")
    compares_and_is_well(rig, rig.differing("one"))


@pytest.mark.slow
def test_the_secondary_put_back_from_an_image(rig: Rig) -> None:
    make(rig)
    image = _image(rig.secondaries["one"])
    rig.write(3, 4)
    rig.resync()
    ok("stop", NAME)
    write(rig.secondaries["one"], 0, image)
    ok("start", NAME)
    is_unknown(rig, "put back")
    compares_and_is_well(rig, {3, 4})


@pytest.mark.slow
@pytest.mark.parametrize(
    "offset", [0, *(pytest.param(at, marks=pytest.mark.long) for at in (MIB - 4 * KIB, BLOCKS * MIB - 4 * KIB))]
)
def test_a_member_written_elsewhere(rig: Rig, offset: int) -> None:
    """It marks nothing; the sample at the start finds what is in the first and the last MiB for certain."""
    make(rig)
    rig.write(11)
    ok("stop", NAME)
    rig.write_to_medium("one", offset, b"\x99" * 4 * KIB)
    started = ok("start", NAME, "--json").json
    assert started["doubt"] is None
    is_unknown(rig, "differs from the primary")
    compares_and_is_well(rig, {11, offset // MIB})


@pytest.mark.long
def test_a_member_written_elsewhere_while_the_mirror_runs(rig: Rig) -> None:
    """The same at a return: whatever came in between, a resync looks first."""
    make(rig)
    rig.write(11)
    rig.write_to_medium("one", 0, b"\x99" * 4 * KIB)
    done = rig.resync()
    assert done["kind"] == "compare" and done["bytes_copied"] == 2 * MIB
    rig.equal()

    # The primary itself, mounted past the mirror: as unknown, and the primary's side counts.
    ok("stop", NAME)
    rig.write_to_medium(None, 0, b"\x55" * 4 * KIB)
    ok("start", NAME)
    is_unknown(rig, "differs from the primary")
    compares_and_is_well(rig, {0})


@pytest.mark.long
def test_a_header_of_the_primary_that_somebody_wrote_to(rig: Rig) -> None:
    """What is written there next would hide it: so nothing is, but by what has every block compared."""
    make(rig)
    rig.write(5)
    rig.write_to_medium(None, 9 * MIB, b"\x55" * 4 * KIB)
    rig.overwrite_older_header(rig.primary)
    for words in (
        ("add", NAME, f"two={rig.cut('s1', SIZE)}", "--yes"),
        ("remove", NAME, "one", "--yes"),
        ("verify", NAME),
    ):
        assert "Somebody else wrote to the primary" in refused(6, *words)
    done = rig.resync()
    assert done["kind"] == "compare" and done["bytes_copied"] == 2 * MIB
    rig.equal()

    rig.overwrite_older_header(rig.primary)
    assert rig.secondary("one", code=9)["state"] == "unknown"
    assert rig.stale("one") == set(range(BLOCKS))
    ok("stop", NAME)
    refused(6, "remove", NAME, "one", "--yes")
    assert "overwritten" in ok("start", NAME, "--json").json["doubt"]
    is_unknown(rig, "overwritten")
    compares_and_is_well(rig, set())


@pytest.mark.long
def test_a_copied_header_on_another_disk(rig: Rig) -> None:
    """Same size, same header, another disk: nothing is written to it, alone or beside the real one."""
    rig.create(one=rig.disks["s0"])
    rig.resync()
    rig.write(5)
    ok("stop", NAME)
    copy = str(rig.disks["s1"])
    sh("dd", f"if={rig.secondaries['one']}", f"of={copy}", "bs=1M", "count=10", "oflag=direct", "conv=fsync")
    settle()
    before = read(copy, 0, 20 * MIB)
    ok("start", NAME)
    assert rig.secondary("one")["device"] == str(rig.disks["s0"].resolve())

    rig.disks.unplug("s0")
    one = rig.secondary("one", code=9)
    assert one["state"] == "failed" and one["device"] is None and "not the device that was recorded" in one["reason"]
    ran = dmsoft("resync", NAME, "one")
    assert ran.code == 4 and "not the device" in ran.err, ran
    ok("stop", NAME)
    ok("start", NAME)
    assert read(copy, 0, 20 * MIB) == before and "m-one" not in ours()

    rig.disks.replug("s0")
    assert rig.resync()["bytes_copied"] == MIB
    rig.equal()
    assert read(copy, 0, 20 * MIB) == before


@pytest.mark.long
def test_a_crash_in_a_copy_is_no_doubt(rig: Rig) -> None:
    """An unclean end at any moment: incremental, and nothing is missed."""
    make(rig)
    rig.write(4)
    crash()
    assert subprocess.run(["dmsetup", "ls"], capture_output=True, check=True).stdout
    for block in (5, 6):
        assert ok("start", NAME, "--json").json["doubt"] is None
        rig.write(block)
        crash()
    ok("start", NAME)
    assert rig.stale("one") == {4, 5, 6}
    done = rig.resync()
    assert (done["kind"], done["bytes_copied"]) == ("incremental", 3 * MIB)
    rig.equal()
    assert Path("/etc/dmsoft/keys").stat().st_mode & 0o777 == 0o700
