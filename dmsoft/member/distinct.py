# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether several arguments are several devices: a mirror of a disk with itself would protect nothing."""

import itertools
import os
from collections.abc import Sequence
from typing import Final

from dmsoft.errors import DeviceError, NotFoundError, RefusedError
from dmsoft.inventory.sysfs import HOST, BlockDevice, Sysfs, block_device
from dmsoft.member.refusal import GateUnknownError, SameDeviceError

# World-wide names that the drive itself carries. Others (t10) may be shared by the slots of a cheap enclosure.
_UNIQUE_WWIDS: Final = ("naa.", "eui.", "nvme.", "uuid.")
_HINT: Final = "Give each member a device of its own."


def distinct(paths: Sequence[str], sysfs: Sysfs = HOST, *, beside: Sequence[BlockDevice] = ()) -> list[BlockDevice]:
    """The devices that ``paths`` name, in order, if no two are one device and none is part of another, nor of one of
    ``beside``, which are members of their mirror already.

    Raises `SameDeviceError`, also through other names, a partition and its disk, a device built on another, two
    paths to one drive and two loop devices of one file; `GateUnknownError` when what a device stands on cannot be
    told; and the errors of `block_device`.
    """
    devices = [block_device(path, sysfs) for path in paths]
    named = list(zip(paths, devices, strict=True))
    known = [(f"{device.path}, a member of the mirror,", device) for device in beside]
    for (path, device), (other_path, other) in (*itertools.combinations(named, 2), *itertools.product(named, known)):
        if (why := overlap(device, other, sysfs)) is not None:
            raise SameDeviceError(f"{path} and {other_path} {why}.", hint=_HINT)
    return devices


def overlap(one: BlockDevice, two: BlockDevice, sysfs: Sysfs = HOST) -> str | None:
    """None, or how two devices share storage, to follow "A and B". Raises `GateUnknownError`."""
    if one.number == two.number:
        return "are the same device"
    if one.parent == two.name or two.parent == one.name:
        return "overlap: one is a partition of the other"
    if two.name in _foundations(one, sysfs) or one.name in _foundations(two, sysfs):
        return "overlap: one is built on the other"
    if _same_drive(one, two):
        return "are two paths to the same drive"
    if _same_file(one, two):
        return "are loop devices of the same file"
    return None


def _foundations(device: BlockDevice, sysfs: Sysfs) -> set[str]:
    try:
        return {lower.name for lower in sysfs.below(device)}
    except (DeviceError, NotFoundError, RefusedError) as err:
        raise GateUnknownError(
            f"What {device.path} stands on cannot be told: {err.message}", hint="Try again, or use another device."
        ) from err


def _same_drive(one: BlockDevice, two: BlockDevice) -> bool:
    whole = one.parent is None and two.parent is None
    return whole and one.wwid is not None and one.wwid == two.wwid and one.wwid.startswith(_UNIQUE_WWIDS)


def _same_file(one: BlockDevice, two: BlockDevice) -> bool:
    if one.backing_file is None or two.backing_file is None:
        return False
    try:
        return os.path.samefile(one.backing_file, two.backing_file)
    except OSError:
        return one.backing_file == two.backing_file
