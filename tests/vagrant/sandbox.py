# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m tests.vagrant.sandbox COMMAND...``: run COMMAND with a libvirtd of its own, and leave nothing of it.

Process, mount and network namespaces hold all that is started here: the daemons, their VMs, bridges and mounts end with
the first process, however that or this one ends. COMMAND finds no network but the loopback, libvirt at
``qemu:///system`` and a Vagrant that remembers nothing. It is told of Ctrl-C by the terminal and can clean up.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.harness import emulator

# Where libvirt keeps things: for this run in its own folder.
_FOLDERS = {
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "etc": "/etc/libvirt",
}
_USER = "libvirt-qemu"
# No security driver, no cgroups, no user but root: nothing here has to be kept from anything else.
_QEMU = """
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
dynamic_ownership = 0
remember_owner = 0
"""
_LIBVIRTD = """
unix_sock_group = "root"
auth_unix_rw = "none"
"""
# A QEMU looks for its modules beside itself.
_MODULES = "/usr/lib/x86_64-linux-gnu/qemu"
# A QEMU without a machine is one that is asked.
_WRAPPER = """#!/bin/sh
case " $* " in *" -machine none"*) QEMU_MODULE_DIR={modules} exec {asked} "$@" ;; esac
exec {found} "$@"
"""
DAEMON_SECONDS = 60
# The status of a sandbox that could not be made, as for ./dev vm.
FAILED = 125


def main(argv: list[str]) -> int:
    """Exit status: COMMAND's, or 125 if libvirt does not start."""
    if argv[:1] == ["--inside"]:
        return _inside(Path(argv[1]), argv[2], argv[3:])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    qemu = emulator.find()
    work = tempfile.mkdtemp(prefix="dmsoft-vagrant-")
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    inside = [sys.executable, "-m", "tests.vagrant.sandbox", "--inside", work, qemu, *argv]
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *namespaces, "--", *inside])
    try:
        return _wait(process)
    finally:
        process.kill()
        process.wait()
        _remove(Path(work))


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """The status of a process that hears of Ctrl-C as well; only a second one is not waited for."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        print("sandbox: cleaning up; once more ends everything at once", file=sys.stderr, flush=True)
        return process.wait()


def _remove(work: Path) -> None:
    """The folder goes once the last process of the namespace has let go of it."""
    for _ in range(50):
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return
        time.sleep(0.1)
    print(f"sandbox: {work} could not be removed", file=sys.stderr)


def _inside(work: Path, qemu: str, command: list[str]) -> int:
    """As the first process of the namespaces; ``qemu`` was found outside, where it can be fetched."""
    # The first process of a namespace lives on while COMMAND cleans up.
    signal.signal(signal.SIGINT, lambda *_: None)
    for name, there in _FOLDERS.items():
        (work / name).mkdir()
        Path(there).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", work / name, there], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    _add_user(work)
    _take_emulator(work, qemu)
    Path("/etc/libvirt/qemu.conf").write_text(_QEMU)
    Path("/etc/libvirt/libvirtd.conf").write_text(_LIBVIRTD)
    Path("/var/lib/libvirt/images").mkdir()
    logs = [_daemon(name, work) for name in ("virtlogd", "libvirtd")]
    if not _answers():
        print("sandbox: libvirtd does not answer", *(log.read_text() for log in logs), sep="\n", file=sys.stderr)
        return FAILED
    environment = {
        "LIBVIRT_DEFAULT_URI": "qemu:///system",
        "VAGRANT_HOME": str(work / "home"),
        "VAGRANT_DOTFILE_PATH": str(work / "dotfile"),
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }
    return _reap(subprocess.Popen(command, env={**os.environ, **environment}).pid)


def _reap(command: int) -> int:
    """The status of a child; those whose parents are gone become ours, and are collected meanwhile."""
    while True:
        child, status = os.wait()
        if child == command:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


def _add_user(work: Path) -> None:
    """libvirtd looks for its user even if it shall be root; the package that makes one starts services as well."""
    for file, line in (("passwd", "{0}:x:64055:64055::/:/usr/sbin/nologin"), ("group", "{0}:x:64055:")):
        there = Path("/etc") / file
        users = there.read_text()
        if f"\n{_USER}:" not in users:
            (work / file).write_text(users + line.format(_USER) + "\n")
            subprocess.run(["mount", "--bind", work / file, there], check=True)


def _take_emulator(work: Path, qemu: str) -> None:
    """Machines run in the harness's QEMU. libvirt may be too old to know it, and asks the installed one what it can."""
    installed, found = shutil.which("qemu-system-x86_64"), shutil.which(qemu)
    if not installed or not found or installed == found:
        return
    asked, wrapper = work / "qemu-installed", work / "qemu"
    asked.touch()
    subprocess.run(["mount", "--bind", installed, asked], check=True)
    wrapper.write_text(_WRAPPER.format(asked=asked, found=found, modules=_MODULES))
    wrapper.chmod(0o755)
    subprocess.run(["mount", "--bind", wrapper, installed], check=True)


def _daemon(name: str, work: Path) -> Path:
    """Start it; what it says is in the file. A Ctrl-C of the terminal is not for it."""
    log = work / f"{name}.log"
    with log.open("w") as file:
        # The usual place of this file is not in a folder of libvirt's.
        argv = [name, "--pid-file", str(work / f"{name}.pid")]
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    return log


def _answers() -> bool:
    deadline = time.monotonic() + DAEMON_SECONDS
    while time.monotonic() < deadline:
        if subprocess.run(["virsh", "-c", "qemu:///system", "uri"], capture_output=True, check=False).returncode == 0:
            return True
        time.sleep(0.2)
    return False


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    sys.exit(main(sys.argv[1:]))
