# SPDX-License-Identifier: GPL-2.0-or-later
"""The doctor finds on each kernel what that kernel is known to do, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmsoft.dm.device import devices
from dmsoft.doctor import bed, behind, tracking
from dmsoft.mirror import canary
from tests import features
from tests.harness.guestkit import Disks
from tests.vm.rig import dmsoft, ours, sh, unchanged, wait_until


def word(found: bool) -> str:
    return "behind" if found else "waits"


def words(first: dict[str, bool], second: dict[str, bool]) -> str:
    """What the doctor says here of the secondary as first leg and as second."""
    here = features.series(os.uname().release)
    return f"the secondary as first leg: {word(first[here])}; as second: {word(second[here])}"


def loops() -> set[str]:
    return {folder.parent.name for folder in Path("/sys/block").glob("loop*/loop")}


@pytest.mark.smoke
def test_a_checkup(disks: Disks) -> None:
    before = loops()
    with unchanged(*(disks[serial] for serial in ("p0", "s0", "c0"))):
        ran = dmsoft("doctor", "--json")
    assert (ours(), loops()) == ([], before)
    found = {each["check"]: each for each in ran.json["findings"]}
    assert ran.json["kernel"] == os.uname().release
    assert ran.code == (3 if any(each["health"] == "fail" for each in found.values()) else 0)
    assert not [each for each in found.values() if "could not be measured" in each["found"]]
    health = {check: each["health"] for check, each in found.items()}
    for check in ("target-era", "target-linear", "era-tracking", "suspend-drains", "discards", "behind-arrives"):
        assert health[check] == "ok", found[check]
    assert found["checkpoint"]["found"] == "a checkpoint does not wait for writes on their way"
    assert found["discards"]["found"].startswith("marks 1 of the 8 blocks")
    assert (health["fsync"], found["fsync"]["found"]) == ("warning", "every fsync waits for the secondary")
    assert found["behind-scattered"]["found"] == words(features.BEHIND_FIRST, features.BEHIND_SECOND)
    assert found["behind-sequential"]["found"] == words(features.TOUCHING_FIRST, features.TOUCHING_SECOND)
    sequential = features.TOUCHING_FIRST[features.series(os.uname().release)]
    assert health["behind-sequential"] == ("ok" if sequential else "warning")


@pytest.mark.slow
def test_a_doctor_that_is_killed_leaves_nothing(disks: Disks) -> None:
    before = loops()
    process = subprocess.Popen([sys.executable, "-m", "dmsoft.cli", "doctor"], stderr=subprocess.DEVNULL)
    try:
        wait_until("it is at work", lambda: len(devices(bed.PREFIX)) > 2, 60)
        assert dmsoft("doctor", "--json").code == 10, "one at a time"
    finally:
        process.kill()
        process.wait()
    wait_until("all is gone", lambda: not devices(bed.PREFIX) and loops() == before, 60)
    sh("dmsetup", "udevcomplete_all", "--yes")  # who is killed while it waits for udev leaves its semaphore


def test_what_was_left_is_removed_by_the_next(disks: Disks) -> None:
    """Also if it is suspended, and its cleaner died with the machine's other processes."""
    sh("dmsetup", "create", "dmsoft-doctor-old", "-u", f"{bed.PREFIX}old", data=b"0 2048 zero")
    sh("dmsetup", "suspend", "dmsoft-doctor-old")
    with bed.Bed() as scratch:
        assert ours() == []
        assert scratch.ram(4096 * 16)
    assert ours() == []


def test_tracking_that_is_not_sound_is_a_failure(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    sh("modprobe", "dm_era")
    monkeypatch.setattr(canary, "_differs", lambda *_: "a write to block 5 was not recorded")
    with bed.Bed() as scratch:
        found = tracking.sound(scratch)
    assert (found.health, found.found) == ("fail", "a write to block 5 was not recorded")


def test_writes_that_get_lost_are_a_failure() -> None:
    assert behind._arrival(behind.Measured(0, True, True, False, True)).health == "fail"
