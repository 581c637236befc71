# SPDX-License-Identifier: GPL-2.0-or-later
"""A second opinion from blivet's device tree; it can only add reasons not to use a device.

A scan by blivet is not read-only. Measured on Debian 12: it stopped a running md array that it did not understand,
and let parted rewrite a partition table whose backup was not at the end of the disk. So the scan runs in a process
that the kernel lets read every device and do nothing else: another user, and CAP_DAC_READ_SEARCH alone. That keeps
away its noise, its time to import and its hangs as well.

Without udevd blivet knows no formats; without its bindings it cannot be imported. Either is said, not guessed over.
"""

import sys
from typing import Final

import msgspec

from dmsoft.inventory.udev import HOST as HOST_UDEV
from dmsoft.inventory.udev import Udev
from dmsoft.run import CommandError, run

_SECONDS: Final = 60
_NAMED: Final = 4
_ALONE: Final = "-all,+dac_read_search"
_UNPRIVILEGED: Final = (
    "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs",
    f"--inh-caps={_ALONE}", f"--ambient-caps={_ALONE}", f"--bounding-set={_ALONE}",
)  # fmt: skip


class Scan(msgspec.Struct):
    """What a scan found: phrases to follow "it" by kernel name, and what could not be looked at, and why."""

    version: str | None = None
    failed: str | None = None
    reasons: dict[str, list[str]] = {}
    unscanned: dict[str, str] = {}


class Advice(msgspec.Struct, frozen=True):
    """Reasons not to use a device, by kernel name, and sentences about what blivet could not see."""

    reasons: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]


def advice(udev: Udev = HOST_UDEV) -> Advice:
    """Ask blivet now; takes seconds. Never raises: what it misses is said in the answer."""
    # -I: nothing of the caller's directory or environment is imported by a program that root starts.
    argv = [*_UNPRIVILEGED, sys.executable, "-I", "-m", "dmsoft.inventory.blivet_scan"]
    try:
        scan = msgspec.json.decode(run(argv, timeout=_SECONDS).stdout, type=Scan)
    except CommandError as err:
        return Advice({}, (f"blivet could not be asked: {err.message}",))
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as err:
        return Advice({}, (f"blivet's answer is not understood: {err}.",))
    return judge(scan, udev_running=udev.running)


def judge(scan: Scan, *, udev_running: bool) -> Advice:
    """The advice that a scan is worth."""
    missing = []
    if scan.failed is not None:
        missing.append(f"blivet cannot be used: {scan.failed.rstrip('.')}.")
    elif not udev_running:
        missing.append("udevd is not running, so blivet sees no formats.")
    if scan.unscanned:
        names = sorted(scan.unscanned)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        missing.append(f"blivet, which scans without privileges, cannot see {', '.join(names[:_NAMED])}{more}.")
    return Advice(
        {name: tuple(f"it {phrase}" for phrase in found) for name, found in scan.reasons.items()}, tuple(missing)
    )
