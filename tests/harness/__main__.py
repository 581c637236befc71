# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev vm``: one command in a throw-away VM."""

import argparse
import os
import re
import signal
import sys
from pathlib import Path

from dmsoft.errors import DmsoftError
from dmsoft.units import parse_size
from tests.harness import kernels, vm
from tests.harness.errors import HarnessError
from tests.harness.qemu import CHECKOUT
from tests.harness.signals import unwind

_LAST_LINES = 30


def main(argv: list[str]) -> int:
    """Exit status: COMMAND's; 122 kernel panic, 123 guest reset, 124 timeout, 125 no VM, 128 + N ended by signal N."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("no COMMAND was given")
    env = {name: value for name, value in os.environ.items() if name == "CI" or name.startswith("DMSOFT_")}
    options = vm.Options(
        tuple(arguments.disks),
        arguments.kernel,
        arguments.memory,
        arguments.cpus,
        arguments.timeout,
        arguments.accel,
        env,
    )
    try:
        result = vm.stream(command, options, _writer(1), _writer(2))
    except HarnessError as error:
        print(f"dev vm: {error}", file=sys.stderr)
        return vm.Outcome.FAILED.value
    # Whoever was killed inside cannot say why; the guest's kernel can, if it ran out of memory.
    if result.outcome is not vm.Outcome.EXITED or result.status == 128 + signal.SIGKILL:
        for line in result.console.splitlines()[-_LAST_LINES:]:
            print(f"dev vm: {line}", file=sys.stderr)
        print(f"dev vm: {result.message} ({_keep(result.console)})", file=sys.stderr)
    return result.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dev vm", description=__doc__, epilog=main.__doc__)
    add = parser.add_argument
    add("--kernel", default=kernels.DEFAULT, help="version to boot (default %(default)s)")
    add("--disk", dest="disks", action="append", default=[], type=_empty_disk, metavar="SIZE:SERIAL")
    add("--disk-file", dest="disks", action="append", type=_file_disk, metavar="PATH:SERIAL")
    add("--memory", type=int, default=1024, metavar="MIB")
    add("--cpus", type=int, default=1, metavar="N")
    add("--timeout", type=float, default=600, metavar="S", help="for boot and command together (default %(default)s)")
    add("--accel", choices=("kvm", "tcg"), help="default: what a trial boot proved")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...")
    return parser


def _empty_disk(text: str) -> vm.Disk:
    size, _, serial = text.rpartition(":")
    try:
        return vm.Disk(_serial(serial), size=parse_size(size))
    except DmsoftError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _file_disk(text: str) -> vm.Disk:
    path, _, serial = text.rpartition(":")
    return vm.Disk(_serial(serial), path=Path(path))


def _serial(text: str) -> str:
    """A virtio disk's serial has at most 20 bytes; udev would write others than these differently."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,20}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a serial: at most 20 letters, digits and -_.")
    return text


def _keep(console: str) -> str:
    """Save what the guest's kernel said last, where it can be read afterwards."""
    file = CHECKOUT / f".cache/console-{os.getpid()}.log"
    file.parent.mkdir(exist_ok=True)
    file.write_text(console)
    return f"console: {file.relative_to(CHECKOUT)}"


def _writer(descriptor: int) -> vm.Sink:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    return write


if __name__ == "__main__":
    unwind()
    sys.exit(main(sys.argv[1:]))
