# SPDX-License-Identifier: GPL-2.0-or-later
"""What pip would fetch for an installation: a guest without a network finds it in a folder instead."""

import hashlib
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.harness.qemu import CHECKOUT

# The tags of glibc that packages are built for and that both releases have.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def collect(cache: Path, python: str, blivet: str) -> Path:
    """The folder with everything for that version of Python, fetched once; HarnessError is pip's own message."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"], "wheel", "six"]
    key = hashlib.sha256(repr((wanted, python, blivet)).encode()).hexdigest()[:12]
    target = cache / f"wheels/{python}-{key}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as folder:
            platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
            _pip("download", "-d", folder, "--only-binary=:all:", "--python-version", python, *platforms, *wanted)
            # Published as source alone.
            _pip("wheel", "-w", folder, "--no-deps", f"blivet=={blivet}")
            Path(folder).rename(target)
            Path(folder).mkdir()
    return target


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], check=True, stdin=subprocess.DEVNULL)
