# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev load``: programs at work on a mirror in a VM, on one file system after the other, while its secondaries come,
go and catch up. Every copy is looked into by the file system's and the programs' own checks, and compared at the end.
"""

import argparse
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from dmsoft.units import MIB
from tests.harness import kernels, vm
from tests.harness.errors import HarnessError
from tests.harness.qemu import CHECKOUT
from tests.harness.signals import unwind
from tests.load.database import make_cluster

KINDS = ("ext4", "xfs")
_SIZES = {"p0": 600, "s0": 600, "s1": 600, "c0": 400}
# What setting up takes, and the checks, at most, for each file system.
_MORE_SECONDS = 1500


def load(seed: int, minutes: float, kinds: list[str], kernel: str = kernels.DEFAULT) -> vm.Result:
    """One VM; what it says goes to standard output and error as it comes."""
    # The guest has file systems of its own at /tmp and /var/tmp.
    cache = CHECKOUT / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="load-", dir=cache) as name:
        folder = Path(name)
        make_cluster(folder / "cluster.tar")
        _make_tree(folder / "tree.tar")
        disks = tuple(vm.Disk(serial, size=size * MIB) for serial, size in _SIZES.items())
        seconds = 60 * minutes
        options = vm.Options(
            disks, kernel, memory=2048, cpus=min(2, os.cpu_count() or 1),
            timeout=len(kinds) * (seconds + _MORE_SECONDS),
        )  # fmt: skip
        words = ["python", "-m", "tests.load.guest", str(seed), str(seconds), name, *kinds]
        return vm.stream(words, options, lambda data: os.write(1, data), lambda data: os.write(2, data))


def _make_tree(archive: Path) -> None:
    """A source tree that every machine has: of Python's library."""
    parts = ("asyncio", "email", "importlib", "json", "unittest", "xml")
    argv = ["tar", "--exclude=__pycache__", "-cf", str(archive), "-C", sysconfig.get_path("stdlib"), *parts]
    subprocess.run(argv, check=True)


def main(argv: list[str]) -> int:
    """Exit status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="dev load", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=10, help="of work on each file system (default %(default)s)")
    add("--file-systems", default=",".join(KINDS), help="default: %(default)s")
    add("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="repeats the draws of another run")
    add("--kernel", default=kernels.DEFAULT, help="version to boot (default %(default)s)")
    asked = parser.parse_args(argv)
    print(f"seed {asked.seed}, kernel {asked.kernel}", flush=True)
    try:
        result = load(asked.seed, asked.minutes, asked.file_systems.split(","), asked.kernel)
    except HarnessError as err:
        print(f"seed {asked.seed}: {err}", file=sys.stderr)
        return 1
    good = result.outcome is vm.Outcome.EXITED and result.status == 0
    print(f"seed {asked.seed}: {result.message}, {result.seconds:.0f} s", flush=True)
    if not good:
        print(result.console[-4000:], file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    unwind()
    sys.exit(main(sys.argv[1:]))
