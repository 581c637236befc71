# SPDX-License-Identifier: GPL-2.0-or-later
"""One machine for all tests of a run, with dmsoft installed on it as its user would."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.qemu import CHECKOUT
from tests.vagrant.installation import Installation
from tests.vagrant.machine import GuestError, Machine, virsh

# Those of vagrant/Vagrantfile by their serials.
DISKS = ("p0", "s0", "s1", "s2", "c0")


def path(serial: str) -> str:
    """Where the guest has that disk."""
    return f"/dev/disk/by-id/virtio-{serial}"


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    if "DMSOFT_VAGRANT" not in os.environ:
        pytest.fail("these tests run in a sandbox: ./dev vagrant NAME [PATH]")
    made = Installation(
        Path(os.environ["DMSOFT_BOX"]), Path(os.environ["DMSOFT_WHEELS"]), tmp_path_factory.mktemp("installation")
    )
    made.install()
    return made


@pytest.fixture(scope="session")
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, installation: Installation
) -> Iterator[Machine]:
    name = os.environ["DMSOFT_VAGRANT"]
    folder = tmp_path_factory.mktemp("machine")
    installation.pack(folder / "files.tar")
    guest = Machine(name, folder)
    try:
        # As a disk, because an emulated processor takes minutes to decrypt what ssh brings.
        guest.attach(folder / "files.tar", "files", "vdy")
        guest.wait_for(path("files"))
        guest.run("tar", "-C", "/", "-xf", path("files"))
        guest.detach("vdy")
        guest.sh("udevadm control --reload; systemctl daemon-reload")
        yield guest
    finally:
        if request.session.testsfailed:
            _keep(guest, name)
        guest.destroy()
    assert virsh("list", "--all", "--name").split() == []
    assert virsh("net-list", "--all", "--name").split() == []


def _keep(guest: Machine, name: str) -> None:
    """What the machine had to say, for whoever looks into a failure."""
    file = CHECKOUT / f".cache/vagrant-{name}.log"
    try:
        journal = guest.run("journalctl", "--no-pager", "-o", "short-monotonic")
    except (GuestError, subprocess.TimeoutExpired) as error:
        journal = str(error)
    console = guest.console.read_text(errors="replace") if guest.console.exists() else ""
    file.write_text(f"{journal}\n--- console\n{console}")
    print(f"journal and console: {file.relative_to(CHECKOUT)}")
