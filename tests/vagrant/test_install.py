# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user has after ``./dev install`` on a fresh Debian."""

import json

import pytest

from tests.vagrant.conftest import DISKS
from tests.vagrant.installation import Installation
from tests.vagrant.machine import Machine


@pytest.mark.core
def test_the_command_and_its_pages(machine: Machine) -> None:
    assert machine.sh("command -v dmsoft").strip() == "/usr/local/sbin/dmsoft"
    assert machine.dmsoft("--version").startswith("dmsoft")
    # What another left in root's environment is not imported.
    machine.sh("mkdir -p /tmp/evil && echo 'raise SystemExit(77)' >/tmp/evil/click.py")
    assert machine.sh("PYTHONPATH=/tmp/evil dmsoft --version").startswith("dmsoft")
    assert machine.run("find", "/usr/share/man", "-name", "dmsoft*").count("\n") >= 2


@pytest.mark.core
def test_the_disks_are_found(machine: Machine) -> None:
    """With blivet and the libraries of this Debian, without which it would say less."""
    listed = json.loads(machine.dmsoft("devices", "--json"))
    usable = {
        link for device in listed["devices"] if device["roles"]["secondary"]["usable"] for link in device["by_id"]
    }
    assert {f"virtio-{serial}" for serial in DISKS} <= usable
    assert listed["missing"] == []


@pytest.mark.core
def test_nothing_is_missing(machine: Machine) -> None:
    """The doctor tries this kernel and this libdevmapper."""
    assert machine.ask("dmsoft", "doctor", timeout=600).returncode == 0


@pytest.mark.core
def test_a_second_install_is_an_upgrade(installation: Installation) -> None:
    """As after ``git pull``: what was there goes on, and what the new version lacks is gone."""
    home = installation.root / "usr/local/lib/dmsoft"
    before = (home / "pyvenv.cfg").stat().st_ino
    (package,) = home.glob("lib/python3*/site-packages/dmsoft")
    gone = installation.root / "root/dmsoft/dmsoft/gone.py"
    gone.write_text("")
    installation.install()
    assert (package / "gone.py").exists()
    gone.unlink()
    installation.install()
    assert (home / "pyvenv.cfg").stat().st_ino == before
    assert not (package / "gone.py").exists() and (package / "cli/create.py").exists()
