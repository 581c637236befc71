# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a device is still the one that was recorded: its size, and the names udev derives from its hardware.

A name can be shared by a clone or a cheap enclosure, so identity is one of two witnesses; the other is the member
uuid in the header, which the gate compares too.
"""

import itertools
from typing import Final

from dmsoft.inventory.sysfs import HOST, BlockDevice, Sysfs, block_device
from dmsoft.inventory.udev import HOST as HOST_UDEV
from dmsoft.inventory.udev import Udev
from dmsoft.member.payload import MAX_BY_ID, Identity
from dmsoft.units import format_size

# Derived from what is written on the device, which becoming a member overwrites.
_VOLATILE: Final = ("lvm-pv-uuid-",)
_MAX_NAME: Final = 255


def identify(path: str, *, sysfs: Sysfs = HOST, udev: Udev = HOST_UDEV) -> Identity:
    """What ``path`` is now: size in bytes and names under /dev/disk/by-id, sorted. Raises like `block_device`."""
    return identity_of(block_device(path, sysfs), udev)


def identity_of(device: BlockDevice, udev: Udev = HOST_UDEV) -> Identity:
    """The identity of a device that was looked up already; waits for udev if it was plugged in just now."""
    udev.wait(device)
    names = (name for name in udev.by_id(device) if not name.startswith(_VOLATILE) and len(name) <= _MAX_NAME)
    return Identity(size_bytes=device.size_bytes, by_id=tuple(itertools.islice(names, MAX_BY_ID)))


def matches(recorded: Identity, seen: Identity) -> str | None:
    """None when ``seen`` is the device ``recorded``, else a sentence why not.

    The size must be equal. Of the names recorded at least one must still be there (an enclosure or a kernel may
    change some of them); where none was, the size is all there is to compare.
    """
    if recorded.size_bytes != seen.size_bytes:
        return (
            f"It has {seen.size_bytes} bytes ({format_size(seen.size_bytes)}), "
            f"but {recorded.size_bytes} ({format_size(recorded.size_bytes)}) are recorded."
        )
    if recorded.by_id and not set(recorded.by_id) & set(seen.by_id):
        now = f"it is {seen.by_id[0]}" if seen.by_id else "it has no such name"
        return f"It was {recorded.by_id[0]} under /dev/disk/by-id, now {now}."
    return None
