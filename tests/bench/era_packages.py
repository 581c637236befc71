# SPDX-License-Identifier: GPL-2.0-or-later
"""The era tools of Debian releases, unpacked with their libraries into a cache and never installed."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.harness import archive
from tests.harness.cached import cache_folder, exclusive
from tests.harness.errors import HarnessError

PACKAGE = "thin-provisioning-tools"
# Its libraries; the C library comes along because an older machine's is too old for it.
_LIBRARIES = (
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libexpat1",
    "libaio1",
    "libboost-iostreams1.74.0",
    "libdevmapper1.02.1",
    "libudev1",
    "libselinux1",
    "libpcre2-8-0",
    "libcap2",
)


@dataclass(frozen=True)
class EraInvalidate:
    """``era_invalidate`` of one release; ``argv`` starts it, ``files`` are what it reads to start."""

    version: str
    argv: tuple[str, ...]
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        return f"era_invalidate {self.version}"


def find(suite: str, series: str) -> EraInvalidate:
    """The tool of ``suite``: the installed one if it is of ``series`` (``0.9.``), else fetched once into the cache."""
    present = shutil.which("era_invalidate", path="/usr/sbin:/usr/bin")
    if present and (installed := _installed()).startswith(series):
        return EraInvalidate(installed.partition("-")[0], (present,), (Path(present),))
    base = cache_folder() / "tools"
    tree = base / f"{PACKAGE}-{suite}"
    with exclusive(base):
        if not tree.exists():
            _fetch(suite, tree)
    version = (tree / "version").read_text()
    libraries = tree / "libraries"
    program = next(tree.glob(f"{PACKAGE}/**/sbin/era_invalidate")).resolve()
    loader = str(libraries / "ld-linux-x86-64.so.2")
    argv = (loader, "--argv0", "era_invalidate", "--library-path", str(libraries), str(program))
    return EraInvalidate(version, argv, (program, *(library.resolve() for library in libraries.iterdir())))


def _installed() -> str:
    """The version of the installed package, empty if there is none."""
    try:
        return archive.call("dpkg-query", "-W", "-f", "${Version}", PACKAGE)
    except HarnessError:
        return ""


def _fetch(suite: str, tree: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=tree.parent) as name:
        folder = Path(name)
        (folder / "tree").mkdir()
        apt = archive.Apt(folder, [suite])
        known = set(apt.names())
        for file in apt.download(*(name for name in (PACKAGE, *_LIBRARIES) if name in known)):
            package, version, _ = file.name.split("_")
            # One folder each: merged, their /lib and /usr/lib would get into each other's way.
            archive.unpack(file, folder / "tree" / package)
            if package == PACKAGE:
                (folder / "tree/version").write_text(version.partition("-")[0])
        (folder / "tree/libraries").mkdir()
        for library in folder.glob("tree/*/**/lib/x86_64-linux-gnu/*.so*"):
            link = folder / "tree/libraries" / library.name
            if not link.is_symlink():
                link.symlink_to(Path("..") / library.relative_to(folder / "tree"))
        (folder / "tree").rename(tree)
