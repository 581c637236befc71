# SPDX-License-Identifier: GPL-2.0-or-later
"""What wakes the daemon: disks that come and go, and device-mapper's events. Nothing here waits for a device."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dmsoft.dm.device import devices
from dmsoft.errors import DeviceError
from dmsoft.mirror.names import PREFIX, Names

_WRITES_FIELD: Final = 4  # Documentation/block/stat.rst
_BUFFER_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Plug:
    """A disk came, went or changed. ``mirror_uuid`` by udev's rules: a claim of the disk, None if they do not say."""

    action: Literal["came", "went", "changed"]
    number: str
    mirror_uuid: str | None


@dataclass(frozen=True, slots=True)
class Standing:
    """A mirror that stands in the kernel: its top's number, its devices, and the event number of its lower."""

    names: Names
    top: str
    layers: frozenset[str]
    lower_event: int | None

    def writes(self) -> int | None:
        """Writes to the top that the kernel has counted so far; None if it does not tell."""
        try:
            return int(Path(f"/sys/dev/block/{self.top}/stat").read_text().split()[_WRITES_FIELD])
        except (OSError, IndexError, ValueError):
            return None


def standing() -> dict[str, Standing]:
    """Every mirror whose top has a table, by uuid. Asks no target anything, and so never waits."""
    found = devices(PREFIX)
    tops = [info for info in found if info.uuid.endswith("-top") and info.live_table]
    mirrors = {}
    for top in tops:
        names = Names(top.name, top.uuid.removeprefix(PREFIX).removesuffix("-top"))
        mine = [info for info in found if info.uuid.startswith(names.prefix)]
        event = next((info.event_nr for info in mine if info.uuid == names.lower.uuid), None)
        mirrors[names.mirror_uuid] = Standing(names, top.number, frozenset(info.uuid for info in mine), event)
    return mirrors


class Plugs:
    """udev's events of block devices, or the kernel's where udev does not run."""

    def __init__(self) -> None:
        try:
            from pyudev import Context, Monitor
        except ImportError as err:
            raise DeviceError("libudev is not installed.", hint="Install it (Debian: libudev1).") from err
        source = "udev" if Path("/run/udev/control").exists() else "kernel"
        self._monitor = Monitor.from_netlink(Context(), source)
        self._monitor.filter_by("block")
        with contextlib.suppress(OSError):
            self._monitor.set_receive_buffer_size(_BUFFER_BYTES)
        self._monitor.start()

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def take(self) -> list[Plug] | None:
        """What has happened; None if some of it was lost, as more came than the kernel kept for us."""
        found = []
        try:
            while (device := self._monitor.poll(0)) is not None:
                plug = _plug(device.action, dict(device.properties))
                if plug is not None:
                    found.append(plug)
        except (OSError, ValueError):  # ValueError: of a property that is no text, which a disk can bring about
            return None
        return found


def _plug(action: str | None, said: dict[str, str]) -> Plug | None:
    """None for what is of no interest: the devices of mirrors, and changes of disks that are none of ours."""
    if said.get("DM_UUID", "").startswith(PREFIX) or not {"MAJOR", "MINOR"} <= said.keys():
        return None
    number, uuid = f"{said['MAJOR']}:{said['MINOR']}", said.get("DMSOFT_MIRROR_UUID")
    match action:
        case "add":
            return Plug("came", number, uuid)
        case "remove":
            return Plug("went", number, uuid)
        case "change" if said.get("DMSOFT_MEMBER") == "1":
            return Plug("changed", number, uuid)
    return None
