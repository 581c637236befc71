# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM runner itself: every way a guest can end, and output that arrives whole."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import vm, writelog
from tests.harness.qemu import CHECKOUT

LARGE = 50 << 20


def shell(script: str, **options: object) -> vm.Result:
    return vm.run(["sh", "-c", script], **options)  # type: ignore[arg-type]


def test_large_binary_output_arrives_whole_beside_the_error_output(tmp_path: Path, seed: int) -> None:
    data = random.Random(seed).randbytes(LARGE)
    (tmp_path / "large").write_bytes(data)
    # What a command leaves behind keeps its pipes open, and must not keep the VM.
    result = shell(f"sleep 3600 & cat {tmp_path}/large; printf 'no\\r\\nchange\\0' >&2; exit 7")
    assert (result.outcome, result.status) == (vm.Outcome.EXITED, 7)
    assert len(result.stdout) == LARGE
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()
    assert result.stderr == b"no\r\nchange\0"


def test_a_guest_has_what_a_command_needs_and_the_host_stays_as_it_was(tmp_path: Path) -> None:
    script = f"""
        set -e
        touch {CHECKOUT}/written-in-guest {tmp_path}/written /etc/written-in-guest /var/written-in-guest
        [ "$(pwd)" = {CHECKOUT} ] && [ "$(id -u)" = 0 ] && [ "$(hostname)" = dmsoft-vm ]
        [ -b /dev/disk/by-id/virtio-some ] && [ "$(blockdev --getsize64 /dev/disk/by-id/virtio-some)" = 8388608 ]
        [ "$(command -v dmsoft)" = {CHECKOUT}/.venv/bin/dmsoft ]
        pidof systemd-udevd >&2
        udevadm settle --timeout=5
        modprobe dm-era
        [ "$(wc -l </proc/swaps)" = 1 ]
        echo $(($(date +%s) - {int(time.time())}))
        echo "$DMSOFT_WORD" > /dev/stdout
        printf lazy > /dev/disk/by-id/virtio-file
        kill -KILL $$
    """
    file = tmp_path / "file.img"
    file.write_bytes(bytes(1 << 20))
    result = shell(
        script, disks=[vm.Disk("some", size=8 << 20), vm.Disk("file", path=file)], env={"DMSOFT_WORD": "a word"}
    )
    assert result.status == 128 + signal.SIGKILL, result.stderr
    seconds, word = result.stdout.decode().splitlines()
    assert 0 <= int(seconds) < 120
    assert word == "a word"
    for path in (CHECKOUT, tmp_path, Path("/etc"), Path("/var")):
        assert not list(path.glob("written*"))
    assert file.read_bytes()[:4] == b"lazy"


def test_a_command_that_does_not_exist() -> None:
    result = vm.run(["/no/such/program"])
    assert (result.outcome, result.status) == (vm.Outcome.EXITED, 127)
    assert result.stderr == b"/no/such/program: No such file or directory\n"


def test_a_disk_file_outlives_a_reset_and_a_power_cut(tmp_path: Path) -> None:
    disk = vm.Disk("keep", path=tmp_path / "disk,with=odd name.img")
    assert disk.path is not None
    disk.path.write_bytes(bytes(1 << 20))
    write = "printf %s | dd of=/dev/disk/by-id/virtio-keep oflag=direct,sync bs=4096 seek=%d conv=sync 2>/dev/null; "
    reset = shell(write % ("first", 0) + "echo b >/proc/sysrq-trigger; sleep 60", disks=[disk])
    assert (reset.outcome, reset.status) == (vm.Outcome.RESET, 123), reset.message
    cut = shell(write % ("second", 1) + "echo written; sleep 60", disks=[disk], cut_at=b"written\n")
    assert (cut.outcome, cut.status) == (vm.Outcome.CUT, 121), cut.message
    assert cut.seconds < 60 + cut.boot_seconds
    data = disk.path.read_bytes()
    assert data[:5] == b"first"
    assert data[4096:4102] == b"second"


def test_a_power_cut_can_take_the_write_cache(tmp_path: Path) -> None:
    disk = vm.Disk("cache", path=tmp_path / "disk.img", log=tmp_path / "log")
    assert disk.path is not None
    assert disk.log is not None
    disk.path.write_bytes(b"old" + bytes((1 << 20) - 3))
    before = tmp_path / "before.img"
    shutil.copyfile(disk.path, before)
    write = "printf %s | dd of=/dev/disk/by-id/virtio-cache oflag=direct%s bs=4096 seek=%d conv=sync 2>/dev/null\n"
    script = write % ("flushed", "", 0) + "sync /dev/disk/by-id/virtio-cache\n" + write % ("lost", "", 1)
    cut = shell(script + "echo written; sleep 60", disks=[disk], cut_at=b"written\n")
    assert cut.outcome is vm.Outcome.CUT, cut.message
    assert disk.path.read_bytes()[4096:4100] == b"lost"
    after = tmp_path / "after.img"
    shutil.copyfile(before, after)
    assert writelog.lose_cache(disk.log, after) == 4096
    assert after.read_bytes() == b"flushed" + bytes((1 << 20) - 7)
    writelog.lose_cache(disk.log, before, kept=lambda _: True)
    assert before.read_bytes() == disk.path.read_bytes()


def test_a_panic_says_why() -> None:
    result = shell("echo begun; sleep 1; echo c >/proc/sysrq-trigger; sleep 60")
    assert (result.outcome, result.status) == (vm.Outcome.PANIC, 122)
    assert result.message == "kernel panic: sysrq triggered crash"
    assert result.stdout == b"begun\n"


def test_a_hung_guest_times_out() -> None:
    started = time.monotonic()
    result = shell("echo begun; exec sleep 1000", timeout=30)
    assert (result.outcome, result.status) == (vm.Outcome.TIMEOUT, 124)
    assert time.monotonic() - started < 40
    assert result.stdout == b"begun\n"


def start_runner(temporary: Path) -> "tuple[subprocess.Popen[bytes], int]":
    """``./dev vm`` with a command that would take an hour, and the process id of its QEMU."""
    argv = [sys.executable, "-m", "tests.harness", "--", "sleep", "3600"]
    # A runner that is killed outright cannot remove its folder.
    env = dict(os.environ, TMPDIR=str(temporary))
    process = subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            # A child goes by its parent's name, then setpriv's, before it is QEMU; one before is asked for its version.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                name, argv = (Path(f"/proc/{child}/{what}").read_text() for what in ("comm", "cmdline"))
                if name.startswith("qemu") and "-nodefaults" in argv.split("\0"):
                    return process, int(child)
        time.sleep(0.02)
    raise AssertionError("QEMU did not start")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_vm_never_outlives_its_runner(tmp_path: Path, number: signal.Signals, status: int) -> None:
    process, qemu = start_runner(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == status
    deadline = time.monotonic() + 10
    while is_running(qemu) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(qemu)
    assert number == signal.SIGKILL or not list(tmp_path.iterdir())


def test_a_killed_qemu_is_a_failure_of_the_harness(tmp_path: Path) -> None:
    process, qemu = start_runner(tmp_path)
    os.kill(qemu, signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 125
    assert b"QEMU was killed by signal 9" in said
    assert said.count(b"\n") == 1
