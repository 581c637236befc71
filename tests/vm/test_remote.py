# SPDX-License-Identifier: GPL-2.0-or-later
"""A secondary on another machine, whose link is cut and comes back: the primary goes on, and nothing is missed."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmsoft.units import MIB
from tests.harness.guestkit import settle
from tests.vm.rig import NAME, Rig, dmsoft, ok, refused, sh, wait_until

pytest_plugins = ("tests.vm.rig",)

SIZE = 32 * MIB
PORT = 10809
BY_ID = Path("/dev/disk/by-id/nbd-one")
RULES = Path("/run/udev/rules.d/99-nbd.rules")


class Link:
    """An export of this machine to itself. What is asked of it fails after 3 s; a connection that broke stays so, and
    the next one is another device."""

    def __init__(self, folder: Path) -> None:
        self._config = folder / "config"
        disk = folder / "disk"
        disk.touch()
        os.truncate(disk, SIZE)
        self._config.write_text(
            f"[generic]\nlistenaddr = 127.0.0.1\nport = {PORT}\nuser = root\n[one]\nexportname = {disk}\nflush = true\n"
        )
        self._server: subprocess.Popen[bytes] | None = None

    def connect(self, number: int) -> Path:
        device = Path(f"/dev/nbd{number}")
        sh("nbd-client", "-N", "one", "127.0.0.1", str(PORT), device, "-timeout", "3", "-block-size", "4096")
        size = Path(f"/sys/block/nbd{number}/size")
        wait_until("it is connected", lambda: size.read_text().strip() != "0")
        settle()
        return device

    def serve(self) -> None:
        """In a session of its own: it has a process for each connection."""
        argv = ["nbd-server", "-C", str(self._config), "-d"]
        self._server = subprocess.Popen(argv, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_until("it listens", self._listens)

    def _listens(self) -> bool:
        """Not asked by connecting: it serves one connection alone."""
        return f":{PORT:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()

    def signal(self, number: int) -> None:
        assert self._server is not None
        os.killpg(self._server.pid, number)

    def cut(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._server is not None
        self._server.wait()

    def close(self) -> None:
        for number in (0, 1):
            subprocess.run(["nbd-client", "-d", f"/dev/nbd{number}"], capture_output=True, check=False)
        with contextlib.suppress(ProcessLookupError):
            self.cut()


@pytest.fixture
def link(rig: Rig, tmp_path: Path) -> Iterator[Link]:
    sh("ip", "link", "set", "lo", "up")
    sh("modprobe", "nbd", "nbds_max=2")
    RULES.parent.mkdir(parents=True, exist_ok=True)
    RULES.write_text('KERNEL=="nbd[0-9]", ATTR{size}!="0", SYMLINK+="disk/by-id/nbd-one"\n')
    sh("udevadm", "control", "--reload")
    made = Link(tmp_path)
    made.serve()
    yield made
    dmsoft("stop", NAME)
    made.close()
    RULES.unlink()
    sh("udevadm", "control", "--reload")


@pytest.mark.slow
def test_a_link_is_cut_and_comes_back(rig: Rig, link: Link) -> None:
    link.connect(0)
    rig.create(primary=rig.cut("p0", SIZE), one=BY_ID)
    rig.write(1, 2)
    rig.resync()
    rig.equal()

    # The other machine hangs: what is asked of it fails after a while, and nobody else waits.
    link.signal(signal.SIGSTOP)
    with rig.writing(span=MIB) as writer:
        rig.write(3, 4)
        ran = dmsoft("resync", NAME, "one")
    assert ran.code in (5, 6) and writer.longest < 30
    assert rig.states(code=9)["one"] == "failed"
    assert rig.stale("one") >= {3, 4}
    link.signal(signal.SIGCONT)
    link.cut()
    with rig.writing(span=MIB) as writer:
        rig.write(5)
        refused(5, "resync", NAME, "one")
    assert writer.longest < 30
    assert rig.secondary("one", code=9)["state"] == "failed"

    link.serve()
    device = link.connect(1)
    rig.secondaries["one"] = str(device)
    done = ok("attach", device, "--json").json
    assert done["verdict"] == "caught-up"
    assert 3 * MIB <= done["resync"]["bytes_copied"] <= 5 * MIB
    rig.equal()
    assert rig.states() == {"one": "current"}
