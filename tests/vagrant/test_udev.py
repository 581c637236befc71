# SPDX-License-Identifier: GPL-2.0-or-later
"""What a whole system's udev makes of a mirror: at a boot, and when disks are plugged in and pulled out."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vagrant.conftest import path
from tests.vagrant.machine import Machine

NAME = "probed"
UUID = "5d1f1e9c-93a5-4b59-8f5c-ba9d2d1e7c11"


@pytest.fixture(scope="module", autouse=True)
def mirror(machine: Machine) -> Iterator[None]:
    """A mirror whose file system can be seen on its top, its lower and both legs, and on the disks themselves."""
    machine.dmsoft("create", NAME, "--yes", "--primary", path("p0"), "--secondary", f"one={path('s0')}")
    machine.run("mkfs.ext4", "-q", "-E", "nodiscard", "-U", UUID, "-L", "precious", f"/dev/mapper/{NAME}")
    machine.dmsoft("resync", NAME)
    yield
    machine.ask("dmsoft", "stop", NAME)
    machine.dmsoft("destroy", NAME, "--yes")


def properties(machine: Machine, device: str) -> dict[str, str]:
    lines = machine.run("udevadm", "info", "--query=property", f"--name={device}").splitlines()
    return dict(line.split("=", 1) for line in lines)


def links(machine: Machine, device: str) -> set[str]:
    """The links below /dev/disk that lead to the device."""
    return {link for link in properties(machine, device).get("DEVLINKS", "").split() if link.startswith("/dev/disk/")}


def check_members(machine: Machine) -> None:
    for serial, role in (("p0", "primary"), ("s0", "secondary")):
        found = properties(machine, path(serial))
        assert (found["ID_FS_TYPE"], found["SYSTEMD_READY"], found["DMSOFT_ROLE"]) == ("dmsoft_member", "0", role)
        assert not {link for link in links(machine, path(serial)) if "by-uuid" in link or "by-label" in link}
        # What desktops ask before they offer to mount or format something.
        hint = machine.run("udisksctl", "info", "--block-device", found["DEVNAME"])
        assert re.search(r"HintIgnore: +true", hint) and re.search(r"IdType: +dmsoft_member", hint), hint


def check_layers(machine: Machine) -> None:
    names = set(machine.sh("dmsetup ls | cut -f 1").split()) - {NAME}
    assert names
    for name in names:
        assert "ID_FS_TYPE" not in properties(machine, f"/dev/mapper/{name}")
        assert links(machine, f"/dev/mapper/{name}") == set()
    assert f"/dev/disk/by-uuid/{UUID}" in links(machine, f"/dev/dmsoft/{NAME}")
    assert machine.sh(f"readlink -f $(findfs UUID={UUID})") == machine.run("readlink", "-f", f"/dev/dmsoft/{NAME}")


def test_members_and_layers(machine: Machine) -> None:
    machine.run("udevadm", "settle")
    check_members(machine)
    check_layers(machine)


def test_no_other_program_takes_a_layer(machine: Machine) -> None:
    """As each boot does it: all events again, then everything that assembles, activates or mounts."""
    machine.sh("udevadm trigger --action=add --subsystem-match=block --settle; vgscan; mdadm --assemble --scan || true")
    check_members(machine)
    check_layers(machine)
    assert machine.run("systemctl", "--failed", "--no-legend") == ""


@pytest.mark.long
def test_a_boot(machine: Machine) -> None:
    """The coldplug of a whole system finds members, and takes none of them for a file system."""
    machine.dmsoft("stop", NAME)
    machine.reboot()
    check_members(machine)
    machine.dmsoft("start", NAME)
    check_layers(machine)


def test_a_disk_is_pulled_out_and_plugged_in(machine: Machine, tmp_path: Path) -> None:
    target, image = machine.disk("s0")
    machine.detach(target)
    assert machine.ask("test", "-e", path("s0")).returncode != 0
    machine.run("dd", "if=/dev/urandom", f"of=/dev/mapper/{NAME}", "bs=64K", "seek=1600", "count=4", "oflag=direct")
    machine.attach(image, "s0", target)
    machine.wait_for(path("s0"))
    check_members(machine)
    machine.dmsoft("wait", NAME, "one")  # for what its unit does
    assert machine.secondary(NAME, "one")["state"] == "current"


def test_another_disk_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    """A disk of no mirror that is plugged in stays an ordinary one."""
    image = tmp_path / "stick.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    machine.attach(image, "stick", "vdz")
    machine.wait_for(path("stick"))
    machine.run("mkfs.ext4", "-q", "-L", "holiday", path("stick"))
    machine.run("udevadm", "settle")
    found = properties(machine, path("stick"))
    assert (found["ID_FS_TYPE"], found.get("SYSTEMD_READY", "1")) == ("ext4", "1")
    assert "/dev/disk/by-label/holiday" in links(machine, path("stick"))
    machine.detach("vdz")
