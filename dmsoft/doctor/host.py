# SPDX-License-Identifier: GPL-2.0-or-later
"""What surrounds a mirror: the kernel's targets, udev and its rules, libraries and programs."""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from dmsoft.dm import libdevmapper
from dmsoft.dm.kernel import require_targets
from dmsoft.doctor.finding import Finding, Health
from dmsoft.errors import KernelError
from dmsoft.run import CommandError, run

# What each target is for; without the first two there is no mirror at all.
_TARGETS: Final = {
    "era": "every mirror", "linear": "every mirror", "raid": "write-behind mode",
    "writecache": "--via writecache", "delay": "--via delay, and this doctor's measurements",
}  # fmt: skip
_NEEDED: Final = ("era", "linear")
_RULE_FOLDERS: Final = tuple(
    map(Path, ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"))
)
_OLDEST_LIBRARY: Final = (1, 2, 185)
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS: Final = {"wipefs": "util-linux", "blkid": "util-linux", "modprobe": "kmod"}


def findings() -> Iterator[Finding]:
    yield from targets()
    yield udev(libdevmapper.udev_runs(), list(_rules()))
    yield library(libdevmapper.library_version())
    yield programs()
    if (found := era_tools()) is not None:
        yield found


def targets() -> Iterator[Finding]:
    """One finding a target; modules are loaded for it."""
    for name, purpose in _TARGETS.items():
        try:
            version = ".".join(map(str, require_targets([name])[name]))
            yield Finding(f"target-{name}", "ok", f"version {version}", f"For {purpose}.")
        except KernelError:
            health: Health = "fail" if name in _NEEDED else "warning"
            yield Finding(f"target-{name}", health, "this kernel does not have it", f"Not possible: {purpose}.")


def has_target(found: Iterable[Finding], name: str) -> bool:
    return any(each.check == f"target-{name}" and each.health == "ok" for each in found)


def udev(runs: bool, rules: list[str]) -> Finding:
    """``rules``: the names of all rule files."""
    if not runs:
        return Finding(
            "udev", "warning", "udev does not run", "Links under /dev/disk are missing; dmsoft makes its own nodes."
        )
    if not any(re.search(r"dm(-notify)?\.rules$", name) for name in rules):
        return Finding(
            "udev",
            "fail",
            "the rules of device-mapper are missing",
            "Every verb would wait for udev in vain: install dmsetup.",
        )
    if not any("dmsoft" in name for name in rules):
        return Finding(
            "udev",
            "warning",
            "the rules of dmsoft are not installed",
            "Mirrors do not start when their disks appear, and nothing hides those disks.",
        )
    return Finding(
        "udev", "ok", "it runs, with the rules of device-mapper and dmsoft", "Disks are recognised when they appear."
    )


def _rules() -> Iterator[str]:
    for folder in map(Path, _RULE_FOLDERS):
        if folder.is_dir():
            yield from (path.name for path in folder.glob("*.rules"))


def library(version: str) -> Finding:
    """``version`` as libdevmapper prints it: ``1.02.185 (2022-05-18)``."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version.split(" ", maxsplit=1)[0]))
    if numbers >= _OLDEST_LIBRARY:
        return Finding("libdevmapper", "ok", f"version {version}", "As tested, or newer.")
    return Finding("libdevmapper", "warning", f"version {version}", "Older than any that dmsoft is tested with.")


def programs() -> Finding:
    missing = {name: package for name, package in _PROGRAMS.items() if shutil.which(name, path=_PATH) is None}
    if not missing:
        return Finding("programs", "ok", f"found {', '.join(_PROGRAMS)}", "The gate can check every device.")
    names, packages = ", ".join(missing), ", ".join(sorted(set(missing.values())))
    return Finding("programs", "fail", f"not found: {names}", f"Devices cannot be checked: install {packages}.")


def era_tools() -> Finding | None:
    """Tools of others that read the same metadata, and may be believed where they are wrong."""
    if shutil.which("era_invalidate", path=_PATH) is None:
        return None
    try:
        version = run(["era_invalidate", "--version"]).stdout.decode(errors="replace").strip()
    except CommandError:
        version = "of unknown version"
    return Finding(
        "era-tools",
        "ok",
        f"found era_invalidate {version}",
        "dmsoft does not use it. Nor should a copy: it leaves out the current era.",
    )
