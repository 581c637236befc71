# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine of Vagrant's, seen from the host: commands by ssh, cables and power by libvirt."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.harness.qemu import CHECKOUT

# Emulated, a boot takes half a minute on a quiet machine, and a command may take as long on a busy one.
BOOT_SECONDS = 600
COMMAND_SECONDS = 300
_SSH_FAILED = 255


class GuestError(AssertionError):
    """A command in the guest failed; the message has what it said."""


class Machine:
    """Up from the start; `destroy` takes it away with all that it had."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self.console = folder / "console.log"
        os.environ["DMSOFT_CONSOLE"] = str(self.console)
        # A checkout may change while tests run.
        shutil.copy(CHECKOUT / "vagrant/Vagrantfile", folder)
        self._vagrant("up", name)
        config = folder / "ssh-config"
        config.write_text(self._vagrant("ssh-config", name))
        self._ssh = ["ssh", "-F", str(config), "-o", f"ControlPath={folder}/ssh", "-o", "ControlMaster=auto"]
        self._ssh += ["-o", "ControlPersist=60", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR", name]
        self._domain = virsh("list", "--name").split()[0]

    def destroy(self) -> None:
        self._hang_up()
        self._vagrant("destroy", "--force", self._name)

    def _vagrant(self, *arguments: str) -> str:
        done = subprocess.run(
            ["vagrant", *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=BOOT_SECONDS * 2,
            check=False,
        )
        # Without the lines that are written over and over.
        said = re.sub(r"[^\n]*Progress: [^\n]*", "", done.stdout + done.stderr)
        assert done.returncode == 0, f"vagrant {shlex.join(arguments)}:\n{said}"
        return done.stdout

    # -- commands

    def ask(
        self, *argv: str, timeout: float = COMMAND_SECONDS, data: bytes | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a command as root and return how it ended; status 255 is ssh's own."""
        command = ["sudo", "--", "env", "LC_ALL=C.UTF-8", *argv]
        return subprocess.run(
            [*self._ssh, shlex.join(command)], input=data or b"", capture_output=True, timeout=timeout, check=False
        )

    def run(self, *argv: str, timeout: float = COMMAND_SECONDS, data: bytes | None = None) -> str:
        """The output of a command that has to succeed."""
        done = self.ask(*argv, timeout=timeout, data=data)
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")
            raise GuestError(f"{shlex.join(argv)}: status {done.returncode}\n{said}")
        return done.stdout.decode(errors="replace")

    def sh(self, script: str, timeout: float = COMMAND_SECONDS) -> str:
        """The output of a shell script, which ends at the first command that fails."""
        return self.run("bash", "-euo", "pipefail", "-c", script, timeout=timeout)

    def dmsoft(self, *argv: str, timeout: float = COMMAND_SECONDS) -> str:
        return self.run("dmsoft", *argv, timeout=timeout)

    def wait_for(self, path: str) -> None:
        """Until udev has made that link, and all it does then."""
        self.sh(f"until test -e {shlex.quote(path)}; do sleep 0.2; done; udevadm settle")

    def status(self, name: str) -> dict[str, Any]:
        """What ``dmsoft status`` says of one mirror; its status 9 tells of an alert."""
        done = self.ask("dmsoft", "status", "--json")
        assert done.returncode in (0, 9), done.stderr.decode()
        (mirror,) = [mirror for mirror in json.loads(done.stdout)["mirrors"] if mirror["name"] == name]
        return dict(mirror)

    def secondary(self, name: str, label: str) -> dict[str, Any]:
        return next(dict(leg) for leg in self.status(name)["secondaries"] if leg["label"] == label)

    # -- power

    def boot_id(self) -> str:
        return self.run("cat", "/proc/sys/kernel/random/boot_id").strip()

    def reboot(self) -> None:
        """Through systemd, as a person does it; returns when the next boot is complete."""
        before = self.boot_id()
        self.ask("systemctl", "--no-block", "reboot")
        self._wait_up(before)

    def shut_down(self) -> None:
        """Through systemd; returns when the power is off."""
        self.ask("systemctl", "--no-block", "poweroff")
        self._wait_off()

    def cut_power(self) -> None:
        """What the guest had not written to its disks is gone."""
        self._hang_up()
        virsh("destroy", self._domain)

    def power_on(self) -> None:
        virsh("start", self._domain)
        self._wait_up(None)

    def _wait_off(self) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while virsh("domstate", self._domain).strip() != "shut off":
            assert time.monotonic() < deadline, "the machine does not power off"
            time.sleep(1)
        self._hang_up()

    def _wait_up(self, before: str | None) -> None:
        """Until another boot than that one has started all it should."""
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            assert time.monotonic() < deadline, "the machine does not come up"
            with contextlib.suppress(GuestError, subprocess.TimeoutExpired):
                if self.boot_id() != before:
                    break
            self._hang_up()
            time.sleep(1)
        # Its status tells of failed units, which is for a test to judge.
        self.ask("systemctl", "is-system-running", "--wait", timeout=BOOT_SECONDS)

    def _hang_up(self) -> None:
        """A connection that outlives its machine would be waited for."""
        subprocess.run([*self._ssh[:-1], "-O", "exit", self._ssh[-1]], capture_output=True, check=False)

    # -- cables

    def attach(self, image: Path, serial: str, target: str) -> None:
        """Plug a disk in, for this boot and the next ones."""
        virsh(
            *("attach-disk", self._domain, str(image), target, "--serial", serial, "--targetbus", "virtio"),
            *("--driver", "qemu", "--subdriver", "raw", "--persistent"),
        )

    def detach(self, target: str) -> None:
        """Pull a disk out, in use or not, for this boot and the next ones; returns when the guest has let go."""
        virsh("detach-disk", self._domain, target, "--persistent")
        deadline = time.monotonic() + COMMAND_SECONDS
        while f" {target} " in virsh("domblklist", self._domain):
            assert time.monotonic() < deadline, f"the guest does not let go of {target}"
            time.sleep(0.5)

    def disk(self, serial: str) -> tuple[str, Path]:
        """The target and the image of a disk that the machine was made with."""
        for line in virsh("domblklist", self._domain).splitlines()[2:]:
            target, _, image = line.strip().partition(" ")
            if f"<serial>{serial}</serial>" in _disk_xml(self._domain, target):
                return target, Path(image.strip())
        raise KeyError(serial)


def _disk_xml(domain: str, target: str) -> str:
    disks = virsh("dumpxml", domain).split("<disk ")[1:]
    return next((disk for disk in disks if f"<target dev='{target}'" in disk), "")


def virsh(*arguments: str) -> str:
    """The output of a virsh command that has to succeed."""
    done = subprocess.run(["virsh", *arguments], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    assert done.returncode == 0, f"virsh {shlex.join(arguments)}: {done.stderr}"
    return done.stdout
