# SPDX-License-Identifier: GPL-2.0-or-later
"""Making it so: wanted devices into the kernel, bottom up, and out again, top down.

Either all of a list stands afterwards, or what was made for it is gone again. Devices are found by uuid alone.
"""

import contextlib
import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from dmsoft.dm.device import Device
from dmsoft.dm.failures import DmIoctlError
from dmsoft.dm.targets import Error, Segment, Table, single
from dmsoft.errors import DeviceError, DmsoftError
from dmsoft.mirror.names import Node
from dmsoft.mirror.plan import Wanted
from dmsoft.units import SECTOR

log = logging.getLogger(__name__)

_BLKDISCARD = 0x1277  # linux/fs.h


def device(node: Node, *, inner: bool = True) -> Device:
    return Device(node.name, node.uuid, inner=inner)


def ensure(wanted: Sequence[Wanted], *, inner: bool = True) -> list[Node]:
    """Make every device stand with its table, bottom up; returns the nodes that were made new.

    One that stands with that table is left alone. One that stands with another table is an error: tables are swapped
    only where it is known how (`dmsoft.mirror.lower`). On any error what was made here is removed.
    """
    made: list[Node] = []
    try:
        for each in wanted:
            if _stands(each, inner=inner):
                continue
            made.append(each.node)
            _make(each, inner=inner)
    except BaseException:
        with contextlib.suppress(DmsoftError):
            dismantle(made)
        raise
    return made


def dismantle(nodes: Iterable[Node]) -> list[Node]:
    """Remove those of ``nodes`` (given bottom up) that exist, top down; returns what was removed.

    A device left suspended is resumed first, as it would block its own removal; one that does not resume (an era that
    cannot begin) fails what waits in it instead. Everything is tried; the first error is raised at the end.
    """
    removed, first, nodes = [], None, list(nodes)
    for node in nodes:
        with contextlib.suppress(DmsoftError):  # what lies deepest must move first: those on it write to it as they go
            if (info := device(node).info()) is not None and info.suspended and info.live_table:
                device(node).resume()
    for node in reversed(nodes):
        target = device(node)
        try:
            info = target.info()
            if info is None:
                continue
            if info.suspended and info.live_table:
                _let_go(target)
            target.remove()
            removed.append(node)
        except DmsoftError as err:
            log.debug("removing %s: %s", node.name, err)
            first = first or err
    if first is not None:
        raise first
    return removed


def _let_go(target: Device) -> None:
    try:
        target.resume()
    except DmIoctlError:
        (line,) = target.table()
        target.load(single(line.length, Error()))
        target.resume()


def discards_off(node: Node) -> None:
    """Have a device say that it takes no discards; those loaded on top of it afterwards inherit that.

    Loading another table undoes it. Raises `DeviceError` when the kernel does not take it.
    """
    info = device(node).require()
    queue = Path(f"/sys/dev/block/{info.number}/queue")
    try:
        (queue / "discard_max_bytes").write_text("0")
    except OSError as err:
        raise DeviceError(f"Discards on {node.name} cannot be turned off: {err.strerror}.") from err


def takes_discards(node: Node) -> bool:
    """Whether a discard would get through: asked for one that is not aligned, a device that takes them minds that.

    Before Linux 5.19 the limit that `discards_off` sets is not what decides.
    """
    fd = os.open(node.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", 1, SECTOR))
    except OSError as err:
        return err.errno != errno.EOPNOTSUPP
    finally:
        os.close(fd)
    return True


def require_no_discards(node: Node) -> None:
    """Raise `DeviceError` if the device would let a discard through, of which dm-era marks only the first block."""
    if takes_discards(node):
        raise DeviceError(
            f"{node.name} accepts discards, which its era tracking would miss.",
            hint="This kernel does not let dmsoft turn them off; please report its version.",
        )


def resolve(table: Table) -> list[str]:
    """The table's lines with /dev paths replaced by ``MAJOR:MINOR``, as the kernel shows them."""
    return [f"{s.start} {s.length} {s.target.kind} " + " ".join(map(_number, s.target.params().split())) for s in table]


def _number(word: str) -> str:
    if not word.startswith("/dev/"):
        return word
    status = os.stat(word)
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _stands(wanted: Wanted, *, inner: bool) -> bool:
    target = device(wanted.node, inner=inner)
    info = target.info()
    if info is None:
        return False
    if not info.live_table or info.suspended:
        # Left over from a run that died before it was ready; nothing was ever on it.
        target.remove()
        return False
    shown = [line.segment() for line in target.table()]
    if not _same(wanted.table, shown):
        raise DeviceError(
            f"{wanted.node.name} stands with another table than it should.",
            hint="Stop the mirror and start it again.",
        )
    return True


def _same(table: Table, shown: Sequence[Segment]) -> bool:
    return resolve(table) == [f"{s.start} {s.length} {s.target.kind} {s.target.params()}" for s in shown]


def _make(wanted: Wanted, *, inner: bool) -> None:
    target = device(wanted.node, inner=inner)
    target.create()
    target.load(wanted.table)
    target.resume()
