# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing of a sandbox is left, however it ends. (They are made inside another one here.)"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.qemu import CHECKOUT

# Daemonized as libvirt's machines are, and not to be confused with anything else that sleeps.
LEFT = "sleep 98765"
SCRIPT = f"trap 'echo cleaned; exit 3' INT; setsid {LEFT} & virsh list --all >/dev/null && echo up; wait; wait"


class Sandbox:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.vagrant.sandbox", "bash", "-c", SCRIPT],
            cwd=CHECKOUT,
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"

    def output(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def check_nothing_left(self) -> None:
        deadline = time.monotonic() + 10
        while _processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert _processes() == []


def _processes() -> list[str]:
    """What the sandbox started; the libvirtd around it is another one."""
    listed = subprocess.run(["ps", "-e", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "98765" in line]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    if "DMSOFT_VAGRANT" not in os.environ:
        pytest.fail("these tests run in a sandbox: ./dev vagrant NAME [PATH]")
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        made = Sandbox(Path(folder))
        yield made
        made.process.kill()
        made.process.wait()


def test_told_to_end(sandbox: Sandbox) -> None:
    assert len(_processes()) >= 2
    sandbox.process.terminate()
    assert sandbox.process.wait(60) == 128 + signal.SIGTERM
    sandbox.check_nothing_left()
    assert list(sandbox.folder.iterdir()) == []


def test_ctrl_c_lets_the_command_clean_up(sandbox: Sandbox) -> None:
    os.killpg(sandbox.process.pid, signal.SIGINT)
    assert sandbox.process.wait(60) == 3
    assert "cleaned" in sandbox.output()
    sandbox.check_nothing_left()
    assert list(sandbox.folder.iterdir()) == []


def test_killed(sandbox: Sandbox) -> None:
    sandbox.process.kill()
    sandbox.process.wait()
    sandbox.check_nothing_left()
