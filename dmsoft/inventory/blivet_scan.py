# SPDX-License-Identifier: GPL-2.0-or-later
"""The program that `dmsoft.inventory.blivet` runs without privileges: scan with blivet, print one JSON object.

Everything that could change the machine fails here for want of a privilege, which blivet takes badly in places:
LVM is therefore not asked, and a device that cannot be scanned is left out and named.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from dmsoft.inventory.blivet import Scan


def main() -> None:
    # What libraries print on standard error is read only if this program fails.
    logging.disable(logging.CRITICAL)
    scan = Scan()
    try:
        tree = _populate(scan)
    # Everything may fail at import: a release that does not fit the library raises ValueError or RuntimeError.
    except Exception as err:
        scan.failed = f"{type(err).__name__}: {err}"
    else:
        for device in tree:
            _describe(device, scan)
    sys.stdout.buffer.write(msgspec.json.encode(scan))


def _populate(scan: Scan) -> list[Any]:
    import blivet
    from blivet import storage_log
    from blivet.devicetree import DeviceTree
    from blivet.flags import flags
    from blivet.populator import populator
    from blivet.static_data import lvm_info

    scan.version = str(blivet.__version__)
    # Degraded arrays are not to be run, multipath is not to be configured, parted is not to repair anything.
    flags.allow_imperfect_devices = False
    flags.auto_dev_updates = False
    flags.multipath = False
    populator.parted_exn_handler = _no_repair
    for name in ("LVsInfo", "PVsInfo", "VGsInfo"):
        if hasattr(lvm_info, name):
            getattr(lvm_info, name).cache = property(lambda _self: {})
    # Logs that nobody reads, each with the whole stack in it, were a third of the time.
    storage_log.function_name_and_depth = lambda: ("", 0)
    tree = DeviceTree()
    tree.handle_device = _guarded(tree.handle_device, scan)
    tree.populate()
    return list(tree.devices)


def _guarded(handle: Callable[..., Any], scan: Scan) -> Callable[..., Any]:
    """One device that blivet cannot scan must not keep it from the others."""

    def guarded(info: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return handle(info, *args, **kwargs)
        except Exception as err:
            scan.unscanned[str(info.get("SYS_NAME") or "?")] = f"{type(err).__name__}: {err}".splitlines()[0]
            return None

    return guarded


def _no_repair(_type: int, _options: int, _message: str) -> int:
    import parted

    unhandled: int = parted.EXCEPTION_RESOLVE_UNHANDLED
    return unhandled


def _describe(device: Any, scan: Scan) -> None:
    name = (device.sysfs_path or "").rpartition("/")[2]
    if not name:
        return  # a volume group has no node
    reasons = []
    if device.format.type is not None and device.format.type != "disklabel":
        reasons.append(f"holds {device.format.name or device.format.type}")
    built = [child.name for child in device.children if child.type != "partition"]
    if built:
        reasons.append(f"is part of {', '.join(built)}")
    # blivet protects every device-mapper device that it does not know; that says nothing about the device.
    if device.protected and device.type != "dm" and not device.readonly:
        reasons.append("is protected")
    scan.reasons[name] = reasons


if __name__ == "__main__":
    main()
