# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests that run as root inside a VM.

Every VM of the suite has the disks of `tests.harness.guestkit.DISKS`: ``p0`` (primary, 96 MiB), ``s0``, ``s1``, ``s2``
(secondaries, 96 MiB), ``c0`` (cache, 32 MiB), ``small0`` (32 MiB) and ``big0`` (64 GiB, sparse). ``disks["p0"]`` is
the path of one; a test that asks for ``disks`` finds all of them plugged in and zeroed.

After each test whatever dm device, loop device or mount it left is removed, and the kernel log of its time is read:
a BUG, a WARNING or a hung task fails it, unless ``@pytest.mark.kernel_log(allow="regex")`` expects that message.
"""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy  # noqa: F401 - so that its library is there to be kept from forks
import pytest

from dmsoft.units import MIB
from tests.harness.guestkit import Disks, Inventory, KernelLog, clean

_MADV_DONTFORK = 10


def pytest_configure(config: pytest.Config) -> None:
    # These tests load modules and wipe disks: never on a machine that was not made for it.
    if not config.option.collectonly and Path("/proc/sys/kernel/hostname").read_text().strip() != "dmsoft-vm":
        pytest.exit("tests/vm run inside a VM only: ./dev test tests/vm/...", returncode=4)


@pytest.fixture(scope="session", autouse=True)
def _small_forks() -> None:
    """A guard locks and so copies all memory that it has from its caller, for an emulated processor a long work. A
    quarter of it is what numpy's linear algebra, which nothing here calls, keeps for itself."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, access, *_, last = line.split()
        first, end = (int(part, 16) for part in place.split("-"))
        if last == "0" and access == "rw-p" and end - first == 32 * MIB:  # of no file
            assert madvise(first, end - first, _MADV_DONTFORK) == 0


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
