# SPDX-License-Identifier: GPL-2.0-or-later
"""A mirror in /etc/fstab through everything that a machine goes through: each test goes on where the last one ended."""

import json
import time
from collections.abc import Iterator

import pytest

from dmsoft.member import header
from dmsoft.member.payload import Primary
from tests.vagrant.conftest import path
from tests.vagrant.machine import Machine

NAME = "archive"
WHERE = "/srv/archive"
UNITS = ("dmsoftd.service", "dmsoft-stop.service")
CATCH_UP_SECONDS = 300


@pytest.fixture(scope="module", autouse=True)
def mirror(machine: Machine) -> Iterator[None]:
    # As ./dev install and README tell a user.
    machine.run("systemctl", "enable", "--now", *UNITS)
    machine.dmsoft(
        *("create", NAME, "--yes", "--interval", "15s", "--primary", path("p0")),
        *("--secondary", f"one={path('s0')}", "--secondary", f"two={path('s1')}"),
    )
    machine.sh(f"""
        mkfs.ext4 -q -E nodiscard -L archive /dev/dmsoft/{NAME}
        mkdir -p {WHERE}
        echo '/dev/dmsoft/{NAME} {WHERE} ext4 defaults,x-systemd.device-timeout=5min 0 2' >>/etc/fstab
        systemctl daemon-reload
        mount {WHERE}
    """)
    yield
    machine.sh(f"umount {WHERE} || true; sed -i '/dmsoft/d' /etc/fstab; systemctl daemon-reload")
    machine.ask("dmsoft", "stop", NAME)
    machine.dmsoft("destroy", NAME, "--yes")


def write(machine: Machine, name: str) -> str:
    """A new file of 3 MB in the mirror, on its disk when this returns; its checksum."""
    return machine.sh(f"""
        head -c 3000000 /dev/urandom >{WHERE}/{name}
        sync {WHERE}/{name}
        sha256sum {WHERE}/{name}
    """)


def check(machine: Machine, *files: str) -> None:
    """The machine is well, the mirror is mounted, the files are what they were."""
    assert machine.run("systemctl", "--failed", "--no-legend") == ""
    assert machine.ask("systemctl", "is-system-running").stdout == b"running\n"
    for unit in UNITS:
        assert machine.run("systemctl", "is-active", unit) == "active\n"
    top = machine.run("readlink", "-f", f"/dev/dmsoft/{NAME}").strip()
    source, options = machine.run("findmnt", "-n", "-o", "SOURCE,OPTIONS", WHERE).split()
    assert machine.run("readlink", "-f", source).strip() == top and options.startswith("rw")
    if files:
        machine.run("sha256sum", "--check", "--quiet", data="".join(files).encode())


def caught_up(machine: Machine, label: str) -> None:
    """Wait until the daemon has copied all that was written before this call, without a command of ours."""
    now = machine.run("date", "-u", "+%Y-%m-%dT%H:%M:%S").strip()
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while True:
        leg = machine.secondary(NAME, label)
        if leg["state"] == "current" or (leg["consistent_as_of"] or "") > now:
            return
        assert time.monotonic() < deadline, f"{label} stays behind: {leg}"
        time.sleep(3)


def said(machine: Machine, *selection: str) -> str:
    return machine.run("journalctl", "--no-pager", "--quiet", "-o", "cat", *selection)


def went_down_well(machine: Machine) -> None:
    """The boot before this one ended in good order: all unmounted, mirrors stopped, nothing killed."""
    last = said(machine, "-b", "-1", "-u", "dmsoft-stop.service", "-u", "dmsoftd.service")
    assert "Stopped dmsoft-stop.service" in last and "Stopped dmsoftd.service" in last, last
    # lvm2 removes every device that it can, before us and after the daemon.
    assert any(end in last for end in (f"{NAME} is stopped.", f"{NAME} was not stopped by dmsoft; its record is")), last
    theirs = said(machine, "-b", "-1", "-o", "json", "-u", "blk-availability.service", "-u", "dmsoftd.service")
    said_by = [json.loads(line).get("MESSAGE", "") for line in theirs.splitlines()]
    if (began := next((n for n, text in enumerate(said_by) if "Deactivating block devices" in text), None)) is not None:
        assert any("Stopped dmsoftd.service" in text for text in said_by[:began]), said_by
    for trouble in ("Failed with result", "timed out", "Killing process", "SIGKILL"):
        assert trouble not in last, last
    assert "Failed unmounting" not in said(machine, "-b", "-1", "-n", "400")


@pytest.mark.core
def test_the_units(machine: Machine) -> None:
    machine.sh("systemd-analyze verify --man=no /usr/lib/systemd/system/dmsoft*.service")
    for unit in UNITS:
        assert machine.run("systemctl", "is-enabled", unit) == "enabled\n"
    check(machine, write(machine, "first"))


@pytest.mark.core
def test_no_order_is_a_cycle(machine: Machine) -> None:
    """Also where services of the network are ordered between the local file systems and lvm2's."""
    unit = "[Unit]\nDefaultDependencies=no\nAfter=local-fs.target\n[Service]\nType=oneshot\nExecStart=/bin/true\n"
    folder = "/run/systemd/system"
    machine.run("mkdir", "-p", f"{folder}/sysinit.target.wants")
    for name in ("iscsi.service", "rbdmap.service"):
        machine.run("tee", f"{folder}/{name}", data=unit.encode())
        machine.run("ln", "-s", f"../{name}", f"{folder}/sysinit.target.wants")
    assert "cycle" not in machine.sh("systemd-analyze verify --man=no default.target 2>&1 || true")
    machine.sh(f"rm {folder}/{{iscsi,rbdmap}}.service {folder}/sysinit.target.wants/{{iscsi,rbdmap}}.service")


@pytest.mark.core
def test_the_daemon_catches_up(machine: Machine) -> None:
    first = write(machine, "first")
    for label in ("one", "two"):
        caught_up(machine, label)
    check(machine, first)


def test_a_reboot(machine: Machine) -> None:
    """Down in good order, up again with what is mounted, and the record of what was written goes on."""
    kept = write(machine, "kept")
    before = machine.status(NAME)["era"]["current"]
    machine.reboot()
    check(machine, kept)
    went_down_well(machine)
    after = machine.status(NAME)
    assert after["era"]["current"] >= before
    assert {leg["state"] for leg in after["secondaries"]} <= {"current", "stale", "syncing"}
    caught_up(machine, "one")
    # Doubt would have had it compare every block, and a first copy would have copied them.
    assert after["era"]["block_bytes"] and _resyncs(machine) <= {"incremental", "none"}


def _resyncs(machine: Machine) -> set[str]:
    """The kinds of the copies that one more round makes."""
    lines = machine.dmsoft("resync", NAME, "--json").splitlines()
    return {json.loads(lines[-1])["kind"]}


@pytest.mark.long
def test_a_missing_secondary(machine: Machine) -> None:
    """Nothing waits for it at the boot, and when it is plugged in it is caught up without a command."""
    kept = write(machine, "kept")
    target, image = machine.disk("s1")
    machine.shut_down()
    # As the disk was left: what was written is on record, and nobody can change the record unnoticed.
    primary = header.require(machine.disk("p0")[1]).payload
    assert isinstance(primary, Primary) and primary.tracker.clean_digest is not None
    machine.detach(target)
    machine.power_on()
    check(machine, kept)
    went_down_well(machine)
    assert "Timed out waiting for device" not in said(machine, "-b")
    assert "Startup finished" in said(machine, "-b", "-u", "init.scope") + said(machine, "-b", "_PID=1")
    assert machine.secondary(NAME, "two")["state"] in ("missing", "away")
    missed = write(machine, "missed")
    machine.attach(image, "s1", target)
    machine.wait_for(path("s1"))
    caught_up(machine, "two")
    check(machine, missed)


def test_a_secondary_is_pulled_out_while_it_is_used(machine: Machine) -> None:
    target, image = machine.disk("s0")
    writer = f"for n in $(seq 60); do head -c 1000000 /dev/urandom >{WHERE}/busy.$((n % 5)); sync {WHERE}; done"
    machine.run("systemd-run", "--quiet", "--unit=busy", "bash", "-euc", writer)
    machine.detach(target)
    machine.sh("while systemctl --quiet is-active busy; do sleep 1; done")
    assert machine.run("systemctl", "show", "-P", "Result", "busy") == "success\n"
    assert machine.secondary(NAME, "one")["state"] in ("missing", "away", "failed")
    machine.attach(image, "s0", target)
    machine.wait_for(path("s0"))
    caught_up(machine, "one")
    check(machine)


def test_without_the_daemon_a_disk_is_caught_up_by_its_unit(machine: Machine) -> None:
    machine.run("systemctl", "stop", "dmsoftd.service")
    target, image = machine.disk("s0")
    machine.detach(target)
    missed = write(machine, "missed")
    machine.attach(image, "s0", target)
    machine.wait_for(path("s0"))
    machine.sh("until journalctl -b -u 'dmsoft-attach@*' | grep -q ': caught-up, because'; do sleep 1; done")
    machine.run("systemctl", "start", "dmsoftd.service")
    check(machine, missed)


@pytest.mark.long
def test_the_power_fails(machine: Machine) -> None:
    """In the middle of writes: what was synced is there, the file system is sound, and the copies follow."""
    kept = write(machine, "kept")
    writer = f"while :; do head -c 1000000 /dev/urandom >{WHERE}/lost.$((RANDOM % 8)); done"
    machine.run("systemd-run", "--quiet", "--unit=lost", "bash", "-euc", writer)
    time.sleep(10)
    machine.cut_power()
    machine.power_on()
    check(machine, kept)
    for label in ("one", "two"):
        caught_up(machine, label)
    check(machine, write(machine, "first"))


@pytest.mark.core
def test_every_copy_is_one(machine: Machine) -> None:
    """After all of that: what the last resync says is equal is equal, byte for byte."""
    machine.sh(f"umount {WHERE}")
    machine.dmsoft("resync", NAME)
    machine.dmsoft("stop", NAME)
    primary = json.loads(machine.dmsoft("examine", path("p0"), "--json"))
    for serial in ("s0", "s1"):
        secondary = json.loads(machine.dmsoft("examine", path(serial), "--json"))
        skip = f"{primary['data_offset_bytes']}:{secondary['data_offset_bytes']}"
        size = str(min(primary["data_bytes"], secondary["data_bytes"]))
        machine.sh(f"blockdev --flushbufs {path('p0')}; blockdev --flushbufs {path(serial)}")  # no cache is compared
        machine.run("cmp", f"--ignore-initial={skip}", f"--bytes={size}", path("p0"), path(serial))
    machine.dmsoft("start", NAME)
