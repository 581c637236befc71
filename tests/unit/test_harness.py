# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the harness that decide, without a VM."""

import argparse
import json
import lzma
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import accel, archive, bootimage, emulator, initramfs, kernels, qemu, suite, vm, writelog
from tests.harness.__main__ import _empty_disk, _file_disk, _parser
from tests.harness.cached import cached
from tests.harness.errors import HarnessError
from tests.harness.kernels import Kernel, matches, newest


@pytest.mark.parametrize(
    ("release", "version", "fits"),
    [
        ("6.1.0-56-amd64", "6.1", True),
        ("6.1.0-56-amd64", "6.1.0-56-amd64", True),
        ("6.12.107+deb13-amd64", "6.12", True),
        ("7.2.13+deb14-amd64", "7.2", True),
        ("6.12.107+deb13-amd64", "6.1", False),
        ("6.1.0-0.deb11.52-amd64", "6.1", False),
        ("6.1.0-56-rt-amd64", "6.1", False),
        ("6.1.0-56-cloud-amd64", "6.1", False),
        ("6.1.0-56-amd64-unsigned", "6.1", False),
        ("6x1.0-56-amd64", "6.1", False),
    ],
)
def test_a_release_belongs_to_its_series_alone(release: str, version: str, fits: bool) -> None:
    assert matches(release, version) is fits


def test_the_newest_release_is_the_highest_number_not_the_last_word() -> None:
    assert newest(["6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-50-amd64"]) == "6.1.0-56-amd64"
    assert newest(["7.2.9+deb13-amd64", "7.2.13+deb14-amd64"]) == "7.2.13+deb14-amd64"
    assert newest([]) is None


@pytest.mark.parametrize("beside_modules", [False, True])
def test_a_kernel_needs_its_modules(tmp_path: Path, beside_modules: bool) -> None:
    release = "7.2.13+deb14-amd64"
    modules = tmp_path / "usr/lib/modules" / release
    image = modules / "vmlinuz" if beside_modules else tmp_path / f"boot/vmlinuz-{release}"
    for folder in (modules, image.parent):
        folder.mkdir(parents=True, exist_ok=True)
    image.touch()
    assert kernels._present(tmp_path, "7.2") is None
    (modules / "modules.dep").touch()
    assert kernels._present(tmp_path, "7.2") == Kernel(release, image, modules)
    assert kernels._present(tmp_path, "7.1") is None


def make_image(payload: bytes) -> bytes:
    """A bzImage: two sectors of setup code, its header's fields, 100 bytes of unpacking code, the payload."""
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 100, len(payload) + 4)
    return bytes(image) + bytes(100) + payload + b"size" + b"tail"


@given(st.binary(max_size=2000))
def test_a_kernel_is_unpacked(elf: bytes) -> None:
    assert bootimage.unpack(make_image(lzma.compress(elf))) == elf


def test_a_kernel_packed_with_zstd_is_unpacked() -> None:
    packed = subprocess.run(["zstd", "-c"], input=b"kernel" * 99, capture_output=True, check=True).stdout
    assert bootimage.unpack(make_image(packed)) == b"kernel" * 99


@pytest.mark.parametrize("image", [b"", bytes(4096), make_image(b"unknown compression")])
def test_what_cannot_be_unpacked_is_booted_as_it_is(tmp_path: Path, image: bytes) -> None:
    (tmp_path / "vmlinuz").write_bytes(image)
    kernel = Kernel("1", tmp_path / "vmlinuz", tmp_path)
    assert bootimage.build(kernel, tmp_path / "cache") == kernel.image


def test_a_kernel_without_an_entry_point_for_qemu_is_booted_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(make_image(lzma.compress(b"\x7fELF without a note")))
    kernel = Kernel("1", tmp_path / "vmlinuz", tmp_path)
    assert bootimage.build(kernel, tmp_path / "cache") == kernel.image


def test_modules_load_after_those_they_need(tmp_path: Path) -> None:
    dep = """\
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/fscache.ko kernel/fs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko kernel/drivers/virtio.ko
kernel/fs/fscache.ko: kernel/fs/netfs.ko
kernel/fs/netfs.ko:
kernel/drivers/virtio.ko:
kernel/other/unwanted.ko:
"""
    (tmp_path / "modules.dep").write_text(dep)
    order = [path.name.partition(".")[0] for path in initramfs._load_order(Kernel("1", tmp_path, tmp_path))]
    assert sorted(order) == ["9p", "9pnet", "9pnet_virtio", "fscache", "netfs", "virtio"]
    assert order.index("netfs") < order.index("fscache") < order.index("9p")
    assert order.index("9pnet") < order.index("9pnet_virtio") > order.index("virtio")


def test_a_cached_file_is_made_once_and_never_seen_half(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)
    seen = []

    def make() -> bytes:
        barrier.wait()
        return bytes(1 << 20)

    def read() -> None:
        seen.append(cached(tmp_path, "name", b"key", make).stat().st_size)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1 << 20] * 4
    assert cached(tmp_path, "name", b"key", lambda: b"again").stat().st_size == 1 << 20
    assert cached(tmp_path, "name", b"other", lambda: b"other").read_bytes() == b"other"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cached_file_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        cached(tmp_path, "name", b"key", fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("boots", "expected"), [(True, "kvm"), (False, "tcg")])
def test_kvm_is_used_once_a_boot_proved_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boots: bool, expected: str
) -> None:
    monkeypatch.setattr(accel, "_DEVICE", "/dev/null")
    trials = []

    def trial() -> bool:
        trials.append(boots)
        return boots

    assert [accel.choose(tmp_path, trial) for _ in range(3)] == [expected] * 3
    assert len(trials) == 1


def test_without_kvm_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "_DEVICE", str(tmp_path / "none"))
    assert accel.choose(tmp_path, lambda: pytest.fail("tried")) == "tcg"


def hardware(**changes: object) -> qemu.Hardware:
    fields = {
        "program": "qemu-system-x86_64",
        "kernel": Kernel("6.1.0-56-amd64", Path("/boot/vmlinuz"), Path("/usr/lib/modules/6.1.0-56-amd64")),
        "boot_image": Path("/cache/vmlinux"),
        "initramfs": Path("/cache/initramfs"),
        "images": (qemu.Image(Path("/tmp/odd, name"), "s0"),),  # noqa: S108
        "memory": 512,
        "cpus": 2,
        "accel": "tcg",
        "console": Path("/tmp/a,b/console"),  # noqa: S108
    }
    return qemu.Hardware(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_version_of_qemu() -> None:
    assert emulator.major("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003") == 7
    assert emulator.major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)") == 10
    with pytest.raises(HarnessError, match="setup"):
        emulator.major("usage: qemu")


def installed(patch: pytest.MonkeyPatch, debian: str, version: int) -> None:
    emulator.find.cache_clear()
    patch.setattr(emulator, "_debian", lambda: debian)
    patch.setattr(emulator, "_major", lambda program: version)
    patch.setattr(emulator.archive, "Apt", lambda folder, suites: pytest.fail("fetched"))


def test_a_qemu_that_is_fast_is_not_looked_for_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for debian, version in (("bookworm", 10), ("trixie", 10), ("bullseye", 5)):
        installed(monkeypatch, debian, version)
        assert emulator.find() == "qemu-system-x86_64"


def test_without_another_qemu_the_installed_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(folder: Path, suites: list[str]) -> archive.Apt:
        raise HarnessError("no network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    installed(monkeypatch, "bookworm", 7)
    monkeypatch.setattr(emulator.archive, "Apt", none)
    assert emulator.find() == "qemu-system-x86_64"
    assert capsys.readouterr().err.endswith("going on with the installed QEMU, which is slower: no network\n")
    assert not list(tmp_path.rglob("tree"))
    emulator.find.cache_clear()


def test_paths_with_commas_reach_qemu_whole() -> None:
    argv = qemu.arguments(hardware(), {"control": 7})
    assert "file,id=console,path=/tmp/a,,b/console" in argv
    assert '"filename": "/tmp/odd, name"' in argv[argv.index("-blockdev") + 1]
    assert "virtio-blk-pci,drive=disk0,serial=s0" in argv
    assert "socket,id=control,fd=7" in argv


def test_a_disk_can_have_a_speed() -> None:
    image = qemu.Image(Path("/images/slow"), "p0", speed=1000, iops=20)
    argv = qemu.arguments(hardware(images=(image,)), {"control": 7})
    assert "throttle-group,id=limit0,x-bps-total=1000,x-iops-total=20" in argv
    node = json.loads(argv[argv.index("-blockdev") + 1])
    assert (node["driver"], node["node-name"], node["throttle-group"]) == ("throttle", "disk0", "limit0")
    assert node["file"]["file"]["filename"] == "/images/slow"


def test_a_kernel_of_the_cache_brings_its_modules() -> None:
    own = Kernel("7.2", Path("/c/vmlinuz"), Path("/c/usr/lib/modules/7.2"))
    argv = qemu.arguments(hardware(kernel=own), {})
    assert "dmsoft.modules=/c/usr/lib/modules/7.2" in argv[argv.index("-append") + 1].split()
    assert "dmsoft.modules" not in " ".join(qemu.arguments(hardware(), {}))


def test_disks_of_the_command_line() -> None:
    assert _empty_disk("64M:a") == vm.Disk("a", size=64 << 20)
    assert _file_disk("/with:colon:b") == vm.Disk("b", path=Path("/with:colon"))
    for wrong in ("64M", "64M:", ":a", "x:a", "64M:a,b=c", "64M:" + "a" * 21):
        with pytest.raises(argparse.ArgumentTypeError):
            _empty_disk(wrong)


def test_the_command_keeps_its_own_options() -> None:
    arguments = _parser().parse_args(["--disk", "1M:a", "--", "ls", "--disk", "-l", "--", "x"])
    assert arguments.command == ["--", "ls", "--disk", "-l", "--", "x"]
    assert arguments.disks == [vm.Disk("a", size=1 << 20)]


def test_the_plan_covers_every_vm_test_once_on_the_default_kernel() -> None:
    jobs = suite.plan([], None, everything=False)
    for kernel, folder in ((kernels.DEFAULT, "tests/vm"), (None, "tests/unit")):
        files = [path for job in jobs if job.kernel == kernel for path in job.paths if path != "tests/crash"]
        assert sorted(files) == sorted(str(path) for path in Path(folder).glob("**/test_*.py"))
    assert {job.kernel for job in jobs} == {None, "6.1", "6.12", "7.2"} and not any(job.machine for job in jobs)
    assert [job.paths for job in jobs if job.name == "crash"] == [("tests/crash",)]
    assert all("not slow" in job.marks for job in jobs)


def test_the_plan_for_all_kernels_leaves_nothing_out() -> None:
    jobs = suite.plan([], None, everything=True)
    assert {job.kernel for job in jobs} == {None, "5.10", "6.1", "6.12", "6.18", "7.2"}
    assert not any("slow" in job.marks for job in jobs)
    machines = [job for job in jobs if job.machine]
    assert [job.argv([]) for job in machines] == [
        ["./dev", "vagrant", "debian12", "-m", "not long", "tests/vagrant"],
        ["./dev", "vagrant", "debian13", "-m", "core", "tests/vagrant"],
    ]


def test_what_is_named_runs_where_it_belongs() -> None:
    named = ["tests/vm/test_guest.py::test_x", "tests/unit", "tests/vagrant/test_udev.py"]
    jobs = suite.plan(named, "7.2", everything=False)
    assert [(job.kernel, job.machine, job.paths) for job in jobs] == [
        ("7.2", None, ("tests/vm/test_guest.py::test_x",)),
        (None, "debian12", ("tests/vagrant/test_udev.py",)),
        (None, None, ("tests/unit",)),
    ]
    assert [job.marks for job in jobs] == ["", "", ""]
    assert jobs[1].argv(["-x"]) == ["./dev", "vagrant", "debian12", "tests/vagrant/test_udev.py", "-x"]


def fake(script: str, name: str = "fake") -> suite.Job:
    class Fake(suite.Job):
        def argv(self, extra: object, timeout: int = 0) -> list[str]:
            return ["sh", "-c", script]

    return Fake(name, (), "")


def run_jobs(*scripts: str) -> suite.Totals:
    runner = suite.Runner([], {"PATH": "/usr/bin:/bin"})
    runner.run([fake(script) for script in scripts])
    return runner.totals


COUNTS = 'echo \'dmsoft-totals {"passed": 3, "failed": %d, "skipped": 1}\'; exit %d'


def test_totals_are_summed_over_all_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert str(run_jobs(COUNTS % (0, 0), "echo some line; " + COUNTS % (2, 1))) == "6 passed, 2 failed, 2 skipped"
    said = capsys.readouterr().out
    assert "[fake] some line\n" in said
    assert "dmsoft-totals" not in said


@pytest.mark.parametrize("script", ["exit 124", "kill -9 $$", COUNTS % (0, 122), COUNTS % (0, 2)])
def test_a_run_that_breaks_off_is_a_failure(script: str) -> None:
    totals = run_jobs(script)
    assert totals.failed == 1
    assert "did not finish" in totals.lines[0]


def test_a_run_in_which_nothing_is_selected_is_none() -> None:
    assert str(run_jobs("exit 5")) == "0 passed, 0 failed, 0 skipped"


def make_log(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A log of writes with sectors of 512 bytes: (sector, sectors, flags, data) each."""
    log = struct.pack("<QQQI", 0x6A736677736872, 1, 0, 512).ljust(512, b"\0")
    for first, count, flags, data in entries:
        log += struct.pack("<QQQQ", first, count, flags, 0).ljust(512, b"\0") + data
    return log


def test_only_what_was_flushed_survives(tmp_path: Path) -> None:
    a, b, c, d = (letter * 512 for letter in (b"a", b"b", b"c", b"d"))
    flush = (0, 0, writelog.FLUSH, b"")
    discard = (3, 1, writelog.DISCARD, b"")
    requests = [(0, 1, 0, a), (3, 1, 0, b), discard, flush, (1, 1, 0, c), (2, 1, writelog.FUA, d), (0, 1, 0, c)]
    (tmp_path / "log").write_bytes(make_log(*requests) + bytes(4096))
    image = tmp_path / "image"
    image.write_bytes(b"-" * 2048)
    assert writelog.lose_cache(tmp_path / "log", image) == 1024
    assert image.read_bytes() == a + b"-" * 512 + d + bytes(512)
    assert writelog.lose_cache(tmp_path / "log", image, kept=lambda _: True) == 0
    assert image.read_bytes() == c + c + d + bytes(512)


def test_a_log_without_a_flush_promises_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(make_log((0, 1, 0, bytes(512))))
    (tmp_path / "image").write_bytes(b"-" * 512)
    assert writelog.lose_cache(tmp_path / "log", tmp_path / "image") == 512
    assert (tmp_path / "image").read_bytes() == b"-" * 512


def test_another_file_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(4096))
    with pytest.raises(ValueError, match="not a log"):
        list(writelog.requests(tmp_path / "log"))


def run_pytest(folder: Path, source: str, **environment: str) -> str:
    """What pytest prints for one file under the hooks of this suite."""
    (folder / "test_it.py").write_text(source)
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path.cwd()), "DMSOFT_TEST_TOTALS": "1", **environment}
    argv = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", "/dev/null"]
    done = subprocess.run([*argv, str(folder / "test_it.py")], env=env, cwd=folder, capture_output=True, check=False)
    return done.stdout.decode() + done.stderr.decode()


SKIPPING = "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('no such thing')\n"


@pytest.mark.parametrize(
    ("environment", "totals"),
    [
        ({}, '{"passed": 1, "failed": 0, "skipped": 1}'),
        ({"CI": "true"}, '{"passed": 1, "failed": 1, "skipped": 0}'),
    ],
)
def test_nothing_is_skipped_in_silence(tmp_path: Path, environment: dict[str, str], totals: str) -> None:
    said = run_pytest(tmp_path, SKIPPING, **environment)
    assert f"{suite.TOTALS}{totals}" in said
    assert ("skipped in CI: Skipped: no such thing" in said) is bool(environment)


def test_totals_count_a_test_once_and_a_broken_file(tmp_path: Path) -> None:
    source = """
import pytest
@pytest.fixture
def broken():
    yield
    assert False
def test_a(broken): assert False
def test_b(broken): pass
@pytest.mark.xfail
def test_c(): assert False
"""
    assert f'{suite.TOTALS}{{"passed": 0, "failed": 2, "skipped": 1}}' in run_pytest(tmp_path, source)
    assert '"failed": 1' in run_pytest(tmp_path, "no python")


def test_a_seed_is_the_same_again_and_another_for_another_test(tmp_path: Path) -> None:
    source = "def test_a(seed): print('a', seed); assert 0\ndef test_b(seed): print('b', seed); assert 0\n"
    seeds = [re.findall(r"^[ab] (\d+)$", run_pytest(tmp_path, source, DMSOFT_TEST_SEED="7"), re.M) for _ in range(2)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 2


def test_a_disk_that_got_no_request_has_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    (tmp_path / "image").write_bytes(b"a" * 512)
    assert writelog.lose_cache(tmp_path / "log", tmp_path / "image") == 0
    assert (tmp_path / "image").read_bytes() == b"a" * 512
