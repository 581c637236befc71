# SPDX-License-Identifier: GPL-2.0-or-later
"""A helper that was killed: its caller is told by one of our errors, and nothing else."""

import ctypes
import gc
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmsoft.dm.device import Device
from dmsoft.dm.failures import DmIoctlError
from dmsoft.dm.helper import Helper, Operation, close_files
from dmsoft.resync.buffers import aligned_buffer
from dmsoft.units import MIB

TOP = Device("m", "DMSOFT-top")


def helper_of(end: socket.socket) -> Helper:
    """One whose other end is in our hands."""
    helper = Helper.__new__(Helper)
    helper._devices, helper._pending, helper._socket = (TOP,), None, end
    helper.pid = os.fork()
    if helper.pid == 0:
        os._exit(0)
    return helper


def test_one_that_died_before_it_was_told_anything() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with helper_of(ours) as helper:
        with pytest.raises(DmIoctlError, match="could not suspend m"):
            helper.start(Operation.SUSPEND_NOLOCKFS, TOP)
        assert not helper.busy


@pytest.mark.parametrize("heard", [True, False])
def test_one_that_died_at_work(heard: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with helper_of(ours) as helper:
        helper.start(Operation.SUSPEND, TOP)
        if heard:
            theirs.recv(100)
        theirs.close()
        with pytest.raises(DmIoctlError, match="no answer"):
            helper.wait(1)
        assert not helper.busy


class _Left:
    """Something in a circle: it lives until the collector comes by."""

    def __init__(self, what: object) -> None:
        self.what, self.circle = what, self


def ends_well(own: Callable[[], None]) -> bool:
    """Whether a child with no files but its own does that and lives."""
    pid = os.fork()
    if pid == 0:
        try:
            close_files()
            own()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def later() -> Iterator[None]:
    """Nothing is collected before the test says so."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.mark.usefixtures("later")
def test_a_file_that_its_parent_left_closes_none_of_its_own(tmp_path: Path) -> None:
    file = (tmp_path / "left").open("xb", buffering=0)
    number = file.fileno()
    _Left(file)
    del file

    def own() -> None:
        while os.open("/dev/null", os.O_RDONLY) < number:
            pass
        gc.collect()
        os.fstat(number)

    assert ends_well(own)


@pytest.mark.usefixtures("later")
def test_memory_that_its_parent_left_unmaps_none_of_its_own() -> None:
    view = aligned_buffer(MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    _Left(view)
    del view

    def own() -> None:
        assert _mapped_at(address, MIB)
        gc.collect()
        ctypes.memset(address, 1, MIB)  # or it ends by SIGSEGV

    assert ends_well(own)


def _mapped_at(address: int, size_bytes: int) -> bool:
    """Private memory just there, where nothing is yet."""
    mmap = ctypes.CDLL(None).mmap
    mmap.restype = ctypes.c_void_p
    mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    private_anonymous_fixed = 0x2 | 0x20 | 0x100000
    return bool(mmap(address, size_bytes, 0x3, private_anonymous_fixed, -1, 0) == address)
