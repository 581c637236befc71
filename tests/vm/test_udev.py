# SPDX-License-Identifier: GPL-2.0-or-later
"""What udev makes of a mirror: its disks are nobody else's, its layers are hidden, its top is a disk like any other."""

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.guestkit import settle
from tests.harness.qemu import CHECKOUT
from tests.vm.rig import NAME, Rig, ok, ours, sh

pytest_plugins = ("tests.vm.rig",)

LINKS = Path("/dev/disk")


@pytest.fixture(scope="module", autouse=True)
def rules() -> Iterator[None]:
    subprocess.run([CHECKOUT / "dev", "install"], check=True)
    yield
    for path in (*Path("/usr/lib/udev/rules.d").glob("*dmsoft*.rules"), Path("/usr/lib/udev/dmsoft_probe")):
        path.unlink()
    subprocess.run(["udevadm", "control", "--reload"], check=True)


def properties(path: str | Path) -> dict[str, str]:
    lines = sh("udevadm", "info", "--query=property", f"--name={path}").splitlines()
    return dict(line.split("=", 1) for line in lines)


def links_to(path: str | Path, kind: str = "*") -> set[str]:
    """The links of that kind under /dev/disk that lead to the device."""
    target = Path(path).resolve()
    return {str(link.relative_to(LINKS)) for link in LINKS.glob(f"{kind}/*") if link.resolve() == target}


@contextlib.contextmanager
def watching(*links: Path) -> Iterator[None]:
    """Assert that no link is gone or changed at any moment of the block."""
    wanted = {link: link.readlink() for link in links}
    missed: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            for link, target in wanted.items():
                try:
                    if link.readlink() != target:
                        missed.append(f"{link} led to {link.readlink()}")
                except FileNotFoundError:
                    missed.append(f"{link} was gone")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not missed, missed[:3]


def check(rig: Rig, uuid: str) -> None:
    """Everything udev should say of a mirror with a file system of that uuid on it."""
    for path, role in [(rig.primary, "primary"), *((path, "secondary") for path in rig.secondaries.values())]:
        found = properties(path)
        assert (found["ID_FS_TYPE"], found["SYSTEMD_READY"], found["DMSOFT_ROLE"]) == ("dmsoft_member", "0", role)
        assert found["DMSOFT_MIRROR"] == NAME and len(found["DMSOFT_MEMBER_UUID"]) == 32
        assert links_to(path, "by-uuid") == links_to(path, "by-label") == set()
    inner = [name for name in ours() if name != NAME]
    assert len(inner) >= 3
    for name in inner:
        found = properties(f"/dev/mapper/{name}")
        assert found["DM_UDEV_DISABLE_OTHER_RULES_FLAG"] == "1" and "ID_FS_TYPE" not in found, found
        assert links_to(f"/dev/mapper/{name}") == set()
    top = properties(rig.top)
    assert top["ID_FS_UUID"] == uuid and top.get("SYSTEMD_READY", "1") != "0"
    assert {f"by-uuid/{uuid}", "by-label/precious", f"by-id/dm-name-{NAME}"} <= links_to(rig.top)
    assert Path(f"/dev/dmsoft/{NAME}").resolve() == Path(rig.top).resolve()


@pytest.mark.long
def test_one_file_system_visible_many_times(rig: Rig) -> None:
    """On the top, on the lower, on each leg: only the top may be found by its uuid, whatever event comes."""
    rig.create("--mode", "write-behind", one=rig.disks["s0"])
    sh("mkfs.ext4", "-q", "-E", "nodiscard", "-L", "precious", rig.top)
    rig.resync()
    settle()
    uuid = sh("blkid", "-p", "-s", "UUID", "-o", "value", rig.top).strip()
    assert sh("blkid", "-p", "-s", "UUID", "-o", "value", "/dev/mapper/m-one").strip() == uuid
    check(rig, uuid)
    for action in ("change", "add"):  # as somebody's close, and as a boot's coldplug
        sh("udevadm", "trigger", f"--action={action}", "--subsystem-match=block", "--settle")
        check(rig, uuid)
    # Barriers and swaps of the lower; the link is never gone meanwhile, or systemd would unmount.
    rig.write(50, 51)
    with watching(LINKS / "by-uuid" / uuid, Path(f"/dev/dmsoft/{NAME}")):
        rig.resync()
        settle()
    check(rig, uuid)

    ok("stop", NAME)
    settle()
    assert links_to(rig.primary, "by-uuid") == links_to(rig.secondaries["one"], "by-uuid") == set()
    assert not Path(f"/dev/dmsoft/{NAME}").exists() and not (LINKS / "by-uuid" / uuid).exists()
    ok("start", NAME)
    settle()
    check(rig, uuid)
    ok("stop", NAME)
    ok("destroy", NAME, "--yes")
    settle()
    sh("udevadm", "trigger", "--subsystem-match=block", "--settle")
    assert "DMSOFT_MEMBER" not in properties(rig.primary)


def test_a_disk_that_comes_back_is_known_at_once(rig: Rig) -> None:
    rig.create(one=rig.disks["s0"])
    rig.disks.unplug("s0")
    rig.disks.replug("s0")
    settle()
    found = properties(rig.disks["s0"])
    assert (found["ID_FS_TYPE"], found["DMSOFT_LABEL"]) == ("dmsoft_member", "one")
    assert properties(rig.disks["s1"]).get("ID_FS_TYPE") != "dmsoft_member"
