# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages of any Debian suite, downloaded and unpacked somewhere: never installed on the host."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.harness.errors import HarnessError

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Apt:
    """apt with lists and sources of its own: the machine's configuration is read for the mirror, never changed. Nothing
    of what is installed there counts."""

    def __init__(self, folder: Path, suites: Sequence[str]) -> None:
        self._folder = folder
        (folder / "status").touch()
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True)
        signed = f"[signed-by={_KEYRING}]"
        lines = [f"deb {signed} {_mirror()} {suite} main" for suite in suites]
        (folder / "sources.list").write_text("\n".join(lines) + "\n")
        settings = {
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
            "Acquire::Retries": "3",
            # The user apt drops to cannot write into a folder of ours.
            "APT::Sandbox::User": "root",
        }
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        call("apt-get", *self._options, "-qq", "update")

    def names(self, prefix: str = "") -> list[str]:
        return call("apt-cache", *self._options, "pkgnames", prefix).split()

    def download(self, *packages: str) -> list[Path]:
        """The files of ``packages``, each NAME or NAME/SUITE."""
        call("apt-get", *self._options, "-qq", "download", *packages, cwd=self._folder)
        return sorted(self._folder.glob("*.deb"))


def unpack(package: Path, tree: Path) -> None:
    call("dpkg-deb", "-x", str(package), str(tree))


def call(*argv: str, cwd: Path | None = None) -> str:
    """What the command writes to its standard output. Raises `HarnessError`, with what it said, if it fails."""
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise HarnessError(f"{argv[0]} is not installed; run ./dev setup") from error
    if done.returncode:
        raise HarnessError(f"{argv[0]} failed: {(done.stderr or done.stdout).strip() or done.returncode}")
    return done.stdout


def _mirror() -> str:
    """The URI of Debian's main archive as this machine is configured to reach it."""
    targets = call("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages")
    for line in targets.splitlines():
        label, _, uri = line.partition(" ")
        if label == "Debian":
            return uri
    raise HarnessError("apt has no lists of Debian's archive; run apt-get update")
