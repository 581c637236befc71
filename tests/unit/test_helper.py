# SPDX-License-Identifier: GPL-2.0-or-later
"""A helper that was killed: its caller is told by one of our errors, and nothing else."""

import os
import socket

import pytest

from dmsoft.dm.device import Device
from dmsoft.dm.failures import DmIoctlError
from dmsoft.dm.helper import Helper, Operation

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
