# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev vagrant NAME``: the tests that need a real boot, on a machine that Vagrant makes and destroys.

What needs a network (the box, pip's packages) is fetched before and kept in ~/.cache/dmsoft; the machine has none.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.harness import vm
from tests.harness.cached import cache_folder
from tests.harness.qemu import CHECKOUT
from tests.harness.signals import unwind
from tests.vagrant import sandbox, wheels


@dataclass(frozen=True)
class Release:
    """What differs between the releases of Debian: the version of Python, and blivet's that fits libblockdev."""

    python: str
    blivet: str


RELEASES = {"debian12": Release("3.11", "3.7.1"), "debian13": Release("3.13", "3.12.1")}


def main(argv: list[str]) -> int:
    """Exit status: pytest's, or 125 if there is no machine; what follows NAME goes to pytest."""
    parser = argparse.ArgumentParser(prog="dev vagrant", description=__doc__, epilog=main.__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(RELEASES), default="debian12")
    arguments, extra = parser.parse_known_args(argv)
    try:
        built = subprocess.run(
            [CHECKOUT / "vagrant/build-box", arguments.name], stdout=subprocess.PIPE, text=True, check=True
        )
        release = RELEASES[arguments.name]
        packages = wheels.collect(cache_folder(), release.python, release.blivet)
    except subprocess.CalledProcessError as error:
        print(f"dev vagrant: {error}", file=sys.stderr)
        return sandbox.FAILED
    os.environ["DMSOFT_VAGRANT"] = arguments.name
    os.environ["DMSOFT_BOX"] = built.stdout.strip()
    os.environ["DMSOFT_WHEELS"] = str(packages)
    os.environ["DMSOFT_ACCEL"] = "kvm" if vm.accelerator() == "kvm" else "qemu"
    print(f"{arguments.name} on {platform.node()} with {os.environ['DMSOFT_ACCEL']}", flush=True)
    paths = [] if any(word.startswith("tests/") for word in extra) else ["tests/vagrant"]
    pytest = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider"]
    began = time.monotonic()
    code = sandbox.main([*pytest, "--durations=8", "--durations-min=10", *paths, *extra])
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    what = " ".join([arguments.name, *extra])
    print(f"dev vagrant {what}: ended with status {code} after {minutes} min {seconds} s", flush=True)
    return code


if __name__ == "__main__":
    unwind(signal.SIGTERM, signal.SIGHUP)
    sys.exit(main(sys.argv[1:]))
