# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels to boot: the installed one, or Debian packages unpacked into a cache and never installed."""

from dataclasses import dataclass
from pathlib import Path

from tests.harness.errors import HarnessError

DEFAULT = "6.1"


@dataclass(frozen=True)
class Kernel:
    """A bootable kernel: ``modules`` is the directory that holds ``modules.dep`` of exactly this ``release``."""

    release: str
    image: Path
    modules: Path


def installed(version: str) -> Kernel | None:
    """The newest kernel of that version (``6.1``) or release (``6.1.0-56-amd64``) under /boot, if there is one."""
    for image in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
        release = image.name.removeprefix("vmlinuz-")
        modules = Path("/usr/lib/modules") / release
        if (release == version or release.startswith(f"{version}.")) and (modules / "modules.dep").exists():
            return Kernel(release, image, modules)
    return None


def find(version: str) -> Kernel:
    """The kernel to boot for ``version``. Raises `HarnessError` when there is none."""
    kernel = installed(version)
    if kernel is None:
        raise HarnessError(f"kernel {version} is not installed")
    return kernel
