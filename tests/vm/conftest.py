# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests that run as root inside a VM.

Every VM of the suite has the disks of `tests.harness.guestkit.DISKS`: ``p0`` (primary, 96 MiB), ``s0``, ``s1``, ``s2``
(secondaries, 96 MiB), ``c0`` (cache, 32 MiB), ``small0`` (32 MiB) and ``big0`` (64 GiB, sparse). ``disks["p0"]`` is
the path of one; a test that asks for ``disks`` finds all of them plugged in and zeroed.

After each test whatever dm device, loop device or mount it left is removed, and the kernel log of its time is read:
a BUG, a WARNING or a hung task fails it, unless ``@pytest.mark.kernel_log(allow="regex")`` expects that message.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.guestkit import Disks, Inventory, KernelLog, clean


def pytest_configure(config: pytest.Config) -> None:
    # These tests load modules and wipe disks: never on a machine that was not made for it.
    if not config.option.collectonly and Path("/proc/sys/kernel/hostname").read_text().strip() != "dmsoft-vm":
        pytest.exit("tests/vm run inside a VM only: ./dev test tests/vm/...", returncode=4)


@pytest.fixture(scope="session")
def _cables() -> Disks:
    return Disks()


@pytest.fixture
def disks(_cables: Disks, _clean_guest: None) -> Disks:
    """The disks by serial: ``disks["s0"]`` is a path under /dev/disk/by-id."""
    _cables.reset()
    return _cables


@pytest.fixture
def unplug(disks: Disks) -> Callable[[str], None]:
    """``unplug(serial)``: the disk is gone at once, in use or not."""
    return disks.unplug


@pytest.fixture
def replug(disks: Disks) -> Callable[[str], None]:
    """``replug(serial)``: the disk is back with its data, and udev has seen it."""
    return disks.replug


@pytest.fixture(autouse=True)
def kernel_log(request: pytest.FixtureRequest) -> Iterator[KernelLog]:
    """The kernel's messages since the test began; checked when it has ended and was cleaned up after."""
    log = KernelLog()
    yield log
    marker = request.node.get_closest_marker("kernel_log")
    faults = log.faults(marker.kwargs["allow"] if marker else None)
    lines = log.lines()
    log.close()
    assert not faults, "the kernel complained:\n" + "\n".join(lines[-80:])


@pytest.fixture(autouse=True)
def _clean_guest(kernel_log: KernelLog) -> Iterator[None]:
    before = Inventory.now()
    yield
    left = clean(before)
    assert not left, f"could not be removed after the test: {', '.join(left)}"
