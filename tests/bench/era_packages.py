# SPDX-License-Identifier: GPL-2.0-or-later
"""The era tools of Debian releases, unpacked with their libraries into a cache and never installed."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

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
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


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
    installed = _call("dpkg-query", "-W", "-f", "${Version}", PACKAGE, check=False)
    present = shutil.which("era_invalidate", path="/usr/sbin:/usr/bin")
    if present and installed.startswith(series):
        return EraInvalidate(installed.partition("-")[0], (present,), (Path(present),))
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dmsoft/tools"
    tree = base / f"{PACKAGE}-{suite}"
    base.mkdir(parents=True, exist_ok=True)
    with (base / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            _fetch(suite, tree)
    version = (tree / "version").read_text()
    libraries = tree / "libraries"
    program = next(tree.glob(f"{PACKAGE}/**/sbin/era_invalidate")).resolve()
    loader = str(libraries / "ld-linux-x86-64.so.2")
    argv = (loader, "--argv0", "era_invalidate", "--library-path", str(libraries), str(program))
    return EraInvalidate(version, argv, (program, *(library.resolve() for library in libraries.iterdir())))


def _fetch(suite: str, tree: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=tree.parent) as name:
        folder = Path(name)
        for part in ("lists/partial", "archives/partial", "tree"):
            (folder / part).mkdir(parents=True)
        (folder / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {suite} main\n")
        # Nothing of what is installed here counts.
        (folder / "status").touch()
        settings = {
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        _call("apt-get", *options, "-qq", "update")
        known = set(_call("apt-cache", *options, "pkgnames").split())
        wanted = [name for name in (PACKAGE, *_LIBRARIES) if name in known]
        _call("apt-get", *options, "-qq", "download", *wanted, cwd=folder)
        for archive in folder.glob("*.deb"):
            package, version, _ = archive.name.split("_")
            # One folder each: merged, their /lib and /usr/lib would get into each other's way.
            _call("dpkg-deb", "-x", str(archive), str(folder / "tree" / package))
            if package == PACKAGE:
                (folder / "tree/version").write_text(version.partition("-")[0])
        (folder / "tree/libraries").mkdir()
        for library in folder.glob("tree/*/**/lib/x86_64-linux-gnu/*.so*"):
            link = folder / "tree/libraries" / library.name
            if not link.is_symlink():
                link.symlink_to(Path("..") / library.relative_to(folder / "tree"))
        (folder / "tree").rename(tree)


def _mirror() -> str:
    """Where this machine gets Debian's main archive from."""
    targets = _call("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages")
    for line in targets.splitlines():
        label, _, uri = line.partition(" ")
        if label == "Debian":
            return uri
    raise RuntimeError("apt has no lists of Debian's archive; run apt-get update")


def _call(*argv: str, cwd: Path | None = None, check: bool = True) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{argv[0]} failed: {done.stderr.strip()}")
    return done.stdout
