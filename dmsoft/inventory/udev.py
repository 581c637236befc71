# SPDX-License-Identifier: GPL-2.0-or-later
"""What udev knows of a block device: its properties and links. Works, knowing less, when udevd is not running.

Links under /dev are read from the file system: they are what udev left there and what the user can see. The
database is asked for properties, and for links that another device with the same name has taken over.
"""

import contextlib
import functools
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dmsoft.inventory.sysfs import BlockDevice

if TYPE_CHECKING:
    from pyudev import Context

log = logging.getLogger(__name__)

_CONTROL: Final = Path("/run/udev/control")
_BY_ID: Final = Path("/dev/disk/by-id")
_INITIALIZED_SECONDS: Final = 5.0


class Udev:
    """The udev database and the links of /dev. Every answer is empty when there is none to be had."""

    def __init__(self, by_id: Path = _BY_ID, control: Path = _CONTROL) -> None:
        self._by_id = by_id
        self._control = control

    @property
    def running(self) -> bool:
        """Whether udevd answers: without it names may be missing, and no property is fresh."""
        return self._control.exists()

    def properties(self, device: BlockDevice) -> dict[str, str]:
        try:
            from pyudev import DeviceNotFoundError, Devices
        except ImportError as err:  # libudev itself is missing
            log.debug("udev is not asked: %s", err)
            return {}
        try:
            found = Devices.from_device_number(_context(), "block", os.makedev(*device.number))
            return {str(key): str(value) for key, value in found.properties.items()}
        except (DeviceNotFoundError, OSError, ValueError) as err:
            log.debug("udev does not know %s: %s", device.name, err)
            return {}

    def initialized(self, device: BlockDevice) -> bool:
        """Whether udev has finished with the device, so that its links are all there."""
        return "USEC_INITIALIZED" in self.properties(device)

    def wait(self, device: BlockDevice, seconds: float = _INITIALIZED_SECONDS) -> bool:
        """Wait until udev has finished with a device that was just plugged in; at once when udevd is not running."""
        deadline = time.monotonic() + seconds
        while self.running and not self.initialized(device):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def by_id(self, device: BlockDevice) -> list[str]:
        """Names under /dev/disk/by-id that are ``device``'s, sorted; such as udev makes: text, and no folders."""
        prefix = f"{_BY_ID}/"
        claimed = {
            link.removeprefix(prefix)
            for link in self.properties(device).get("DEVLINKS", "").split()
            if link.startswith(prefix)
        }
        found = claimed | {name for name, number in self._links() if number == device.number}
        return sorted(name for name in found if name.isprintable() and "/" not in name and name.strip("."))

    def _links(self) -> Iterator[tuple[str, tuple[int, int]]]:
        try:
            entries = sorted(self._by_id.iterdir())
        except OSError:
            return
        for entry in entries:
            try:
                status = entry.stat()
            except OSError:
                continue
            if stat.S_ISBLK(status.st_mode):
                yield entry.name, (os.major(status.st_rdev), os.minor(status.st_rdev))


def prepare() -> None:
    """Load libudev, so that forks of this process need not look for it."""
    with contextlib.suppress(ImportError):
        _context()


@functools.cache
def _context() -> "Context":
    """Made once: each one looks for libudev anew, which takes a process."""
    from pyudev import Context

    return Context()


HOST: Final = Udev()
