# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev install`` on the machine's own system, before that boots.

Emulated, pip takes minutes for what the processor does in seconds. So it runs in a chroot of the box: the same files as
on the machine's disk, with what changes kept beside them and handed over. The mounts end with the sandbox.
"""

import os
import subprocess
from pathlib import Path

from tests.harness.qemu import CHECKOUT

_DISK_UNIT = 1 << 20


class Installation:
    """A checkout and pip's packages on top of the box's system."""

    def __init__(self, box: Path, wheels: Path, folder: Path) -> None:
        self._changes = folder / "changes"
        self.root = folder / "root"
        for name in ("changes", "work", "root"):
            (folder / name).mkdir()
        layers = f"lowerdir={box / 'root'},upperdir={self._changes},workdir={folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        subprocess.run(["mount", "--bind", "/proc", self.root / "proc"], check=True)
        subprocess.run(["mount", "--bind", "/dev", self.root / "dev"], check=True)
        for name in _files():
            target = self.root / "root/dmsoft" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((CHECKOUT / name).read_bytes())
            target.chmod((CHECKOUT / name).stat().st_mode)
        subprocess.run(["cp", "-r", wheels, self.root / "root/wheels"], check=True)

    def install(self) -> None:
        """As a user does it; pip finds in a folder what it would fetch, for there is no network here."""
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/root/wheels"}
        environment = {"HOME": "/root", "LC_ALL": "C.UTF-8", "PATH": os.defpath + ":/usr/sbin:/sbin", **offline}
        done = subprocess.run(
            ["chroot", self.root, "/root/dmsoft/dev", "install"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"./dev install: status {done.returncode}\n{done.stdout}{done.stderr}"

    def pack(self, archive: Path) -> None:
        """Make a tar file, good for a disk, of what is there now and was not in the box, but for what pip read."""
        argv = ["tar", "-C", str(self._changes), "--exclude=./root/wheels", "-cf", str(archive)]
        subprocess.run([*argv, "."], check=True)
        os.truncate(archive, -(-archive.stat().st_size // _DISK_UNIT) * _DISK_UNIT)


def _files() -> list[str]:
    """What a clone would hold, and what is not committed yet."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (CHECKOUT / name).is_file()]
