# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels to boot: the installed one, or Debian's packages unpacked into a cache and never installed on the host."""

import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness import archive
from tests.harness.cached import cache_folder, exclusive
from tests.harness.errors import HarnessError

DEFAULT = "6.1"
# Where Debian has each series; any other version is looked for in all of them.
SUITES = {
    "5.10": ("bullseye",),
    "6.1": ("bookworm",),
    "6.12": ("trixie",),
    "6.18": ("trixie-backports",),
    "7.2": ("sid", "trixie-backports"),
}
_MODULES = "usr/lib/modules"


@dataclass(frozen=True)
class Kernel:
    """A bootable kernel: ``modules`` is the directory that holds ``modules.dep`` of exactly this ``release``."""

    release: str
    image: Path
    modules: Path


def find(version: str) -> Kernel:
    """The kernel for a series (``6.1``) or a release (``6.1.0-56-amd64``), fetched on first use.

    Raises `HarnessError` when there is none.
    """
    cache = cache_folder() / "kernels"
    kernel = _present(Path("/"), version) or _cached(cache, version)
    if kernel is None:
        with exclusive(cache):
            # Another run may have fetched it while this one waited.
            kernel = _cached(cache, version) or _fetch(cache, version)
    return kernel


def matches(release: str, version: str) -> bool:
    """Whether ``release`` is ``version`` itself, or a kernel of that series built for this suite and no flavour."""
    if release == version:
        return True
    # 6.1.0-56-amd64 and 6.12.107+deb13-amd64, but neither 6.1.0-0.deb11.52-amd64 nor 6.1.0-56-rt-amd64.
    return re.fullmatch(rf"{re.escape(version)}\.\d+(-\d+|\+deb\d+)-amd64", release) is not None


def newest(releases: Sequence[str]) -> str | None:
    """The highest release by its numbers, as Debian would order them."""
    return max(releases, key=lambda release: [int(number) for number in re.findall(r"\d+", release)], default=None)


def _present(root: Path, version: str) -> Kernel | None:
    """The newest fitting kernel under ``root``, complete with its modules."""
    found: dict[str, Kernel] = {}
    for modules in (root / _MODULES).glob("*"):
        # From 7.2 on the image lies beside the modules.
        for image in (root / f"boot/vmlinuz-{modules.name}", modules / "vmlinuz"):
            if matches(modules.name, version) and (modules / "modules.dep").exists() and image.exists():
                found.setdefault(modules.name, Kernel(modules.name, image, modules))
    release = newest(list(found))
    return found[release] if release else None


def _cached(cache: Path, version: str) -> Kernel | None:
    release = newest([folder.name for folder in cache.glob("*") if matches(folder.name, version)])
    return _present(cache / release, release) if release else None


def _fetch(cache: Path, version: str) -> Kernel:
    print(f"dev: fetching kernel {version} into {cache} (once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as name:
        folder = Path(name)
        apt = archive.Apt(
            folder, SUITES.get(version) or sorted({suite for suites in SUITES.values() for suite in suites})
        )
        packages = apt.names("linux-image-")
        release = newest(
            [name for package in packages if matches(name := package.removeprefix("linux-image-"), version)]
        )
        if release is None:
            raise HarnessError(f"no Debian suite has a kernel {version}")
        tree = folder / "tree"
        for package in apt.download(*_parts(apt, release)):
            archive.unpack(package, tree)
        # Older packages still put their modules into /lib; depmod of either age must find them.
        if not (tree / _MODULES).exists():
            (tree / "usr").mkdir(exist_ok=True)
            (tree / "lib").rename(tree / "usr/lib")
        if not (tree / "lib").exists():
            (tree / "lib").symlink_to("usr/lib")
        archive.call("depmod", "-b", str(tree), release)
        kernel = _present(tree, release)
        if kernel is None:
            raise HarnessError(f"the packages of kernel {release} lack its image or its modules")
        shutil.rmtree(cache / release, ignore_errors=True)
        tree.rename(cache / release)
    found = _present(cache / release, release)
    assert found is not None
    return found


def _parts(apt: archive.Apt, release: str) -> list[str]:
    """The packages of the image and those that newer kernels are split into, all of one release."""
    known = set(apt.names("linux-"))
    parts = (f"linux-{part}-{release}" for part in ("image", "base", "binary", "modules"))
    return [part for part in parts if part in known]
