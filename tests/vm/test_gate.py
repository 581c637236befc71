# SPDX-License-Identifier: GPL-2.0-or-later
"""The gate on real devices: each refusal has its code, and no byte of the device changes."""

import os
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dmsoft.errors import DmsoftError, MetadataError, NotFoundError, RefusedError
from dmsoft.inventory import signatures
from dmsoft.inventory.sysfs import NotBlockError, block_device
from dmsoft.inventory.udev import Udev
from dmsoft.member import gate, header
from dmsoft.member.disk import open_for_read
from dmsoft.member.distinct import distinct
from dmsoft.member.gate import GatedDevice, open_exclusive, open_readonly
from dmsoft.member.identity import identify
from dmsoft.member.payload import Identity, Metadata, Region
from dmsoft.units import KIB, MIB
from tests.harness.guestkit import settle

SIZE = 18 * MIB
MIRROR = "0" * 31 + "1"
OTHER = "0" * 31 + "2"
MEMBER = "0" * 31 + "a"
PREFIX = f"DMSOFT-{MIRROR}-"

MakeLoop = Callable[..., str]


def sh(*argv: str | Path, data: bytes | None = None) -> str:
    done = subprocess.run([str(word) for word in argv], input=data, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.stdout.decode()} {done.stderr.decode()}"
    return done.stdout.decode()


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    for name in ("loop", "dm-mod", "raid1"):
        sh("modprobe", name)


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[MakeLoop]:
    """Loop devices on sparse files; ``file`` reuses the file of an earlier one."""
    with ExitStack() as stack:

        def make(*options: str, size: int = SIZE, file: Path | None = None) -> str:
            path = file or tmp_path / f"disk{len(list(tmp_path.iterdir()))}"
            if file is None:
                with path.open("wb") as new:
                    new.truncate(size)
            device = sh("losetup", "--find", "--show", *options, path).strip()
            stack.callback(settle)
            stack.callback(sh, "losetup", "--detach", device)
            # What --setro did outlives the detach, and whoever gets the device next cannot write.
            stack.callback(sh, "blockdev", "--setrw", device)
            return device

        yield make


@contextmanager
def mapped(name: str, table: str, uuid: str | None = None) -> Iterator[str]:
    sh("dmsetup", "create", name, *(("--uuid", uuid) if uuid else ()), data=table.encode())
    try:
        yield f"/dev/mapper/{name}"
    finally:
        settle()
        sh("dmsetup", "remove", "--retry", name)


def linear(path: str, start: int = 0, length: int = SIZE // 512) -> str:
    return f"0 {length} linear {path} {start}\n"


def contents(path: str) -> bytes:
    """Every byte of the device, read past the page cache."""
    with open_readonly(path) as disk:
        return disk.pread(block_device(path).size_bytes, 0)


def unchanged(path: str, before: bytes) -> bool:
    return contents(path) == before


def refused(path: str, code: str, force: Sequence[bool] = (False, True), **options: object) -> str:
    """Assert that the gate refuses with that code and leaves every byte as it is; returns the message."""
    settle()
    before = contents(path)
    options.setdefault("purpose", "new")
    for forcing in force:
        with (
            pytest.raises(DmsoftError) as caught,
            open_exclusive(path, **options, force=forcing),  # type: ignore[arg-type]
        ):
            pass
        assert (caught.value.code, caught.value.exit_code) == (code, 4), caught.value.message
        assert caught.value.message and caught.value.hint
    assert unchanged(path, before)
    return caught.value.message


def forced(path: str) -> None:
    """Assert that ``force`` opens the gate, that passing it writes nothing, and that `clear` leaves nothing."""
    before = contents(path)
    with open_exclusive(path, purpose="new", force=True) as gated:
        assert gated.overridden
        assert unchanged(path, before)
        gated.clear()
    with open_exclusive(path, purpose="new") as gated:
        assert not gated.overridden


def write(path: str, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)
    settle()


def gpt(size: int, first: int = 2048, count: int = 8192) -> tuple[bytes, bytes]:
    """The first 34 and the last 33 sectors of a GPT disk of ``size`` bytes with one partition (UEFI 2.10, 5.3)."""
    last = size // 512 - 1
    entry = struct.pack(
        "<16s16sQQQ72s", b"\xaf" * 16, b"\x11" * 16, first, first + count - 1, 0, "one".encode("utf-16le")
    )
    entries = entry.ljust(128 * 128, b"\0")

    def head(own: int, backup: int, table: int) -> bytes:
        def fields(crc: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, own, backup, 34, last - 33,
                b"\x22" * 16, table, 128, 128, zlib.crc32(entries),
            )  # fmt: skip

        return fields(zlib.crc32(fields(0))).ljust(512, b"\0")

    protective = (bytes(446) + struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0xEE, 255, 255, 255, 1, last)).ljust(510, b"\0")
    front = protective + b"\x55\xaa" + head(1, last, 2) + entries
    return front, entries + head(last, 1, last - 32)


def make_gpt(path: str) -> None:
    size = block_device(path).size_bytes
    front, back = gpt(size)
    write(path, 0, front)
    write(path, size - len(back), back)


def make_luks(path: str) -> None:
    """What identifies LUKS1: magic, version and a uuid; cryptsetup need not be there."""
    write(path, 0, b"LUKS\xba\xbe\x00\x01".ljust(168, b"\0") + b"0e1f5a0e-3f0c-4b0e-9d4f-4d5f1c7f7a11\0")


def make_md(path: str) -> None:
    array = "/dev/md/gatesig"
    sh("mdadm", "--create", array, "--run", "--level=1", "--raid-devices=2", "--metadata=1.2", path, "missing")
    settle()
    sh("mdadm", "--stop", array)


SIGNATURES: dict[str, Callable[[str], object]] = {
    "ext4": lambda path: sh("mkfs.ext4", "-q", "-L", "photos", path),
    "xfs": lambda path: sh("mkfs.xfs", "-q", "--unsupported", path),
    "LVM2_member": lambda path: sh("pvcreate", "-q", path),
    "linux_raid_member": make_md,
    "crypto_LUKS": make_luks,
    "partition table gpt": make_gpt,
    "swap": lambda path: sh("mkswap", path),
}


@pytest.mark.parametrize("what", SIGNATURES)
def test_signature(loops: MakeLoop, what: str) -> None:
    path = loops()
    SIGNATURES[what](path)
    assert what in refused(path, "gate-signature", (False,))
    forced(path)


def test_label_is_said(loops: MakeLoop) -> None:
    path = loops()
    SIGNATURES["ext4"](path)
    assert 'ext4 "photos"' in refused(path, "gate-signature", (False,))


def test_backup_gpt_alone(loops: MakeLoop) -> None:
    """A disk whose beginning was zeroed still has its table at the end."""
    path = loops()
    make_gpt(path)
    write(path, 0, bytes(MIB))
    refused(path, "gate-signature", (False,))
    forced(path)


def test_mounted(loops: MakeLoop, tmp_path: Path) -> None:
    path = loops()
    sh("mkfs.ext4", "-q", path)
    where = tmp_path / "a mount"
    where.mkdir()
    sh("mount", "-o", "ro", path, where)
    try:
        assert str(where) in refused(path, "gate-mounted")
    finally:
        sh("umount", where)


def test_mounted_elsewhere(loops: MakeLoop, tmp_path: Path) -> None:
    """A mount in another namespace shows in no file here; the exclusive open finds it."""
    path = loops()
    sh("mkfs.ext4", "-q", path)
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"mount -o ro {path} {tmp_path} && echo ready && read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        refused(path, "gate-held")
        process.communicate(b"\n")


@pytest.mark.smoke
def test_mounted_partition(loops: MakeLoop, tmp_path: Path) -> None:
    path = loops("--partscan")
    make_gpt(path)
    sh("blockdev", "--rereadpt", path)
    settle()
    part = f"{path}p1"
    sh("mkfs.ext4", "-q", "-E", "nodiscard", part)  # of a part of a loop device 5.10 warns
    where = tmp_path / "mount"
    where.mkdir()
    sh("mount", "-o", "ro", part, where)
    try:
        assert f"its partition {Path(part).name} is mounted" in refused(path, "gate-mounted")
        refused(part, "gate-mounted")
    finally:
        sh("umount", where)
    with pytest.raises(RefusedError, match="one is a partition of the other") as caught:
        distinct([part, path])
    assert caught.value.code == "same-device"
    forced(path)
    assert not Path(f"/sys/class/block/{Path(part).name}").exists()


def test_swap(loops: MakeLoop) -> None:
    path = loops()
    sh("mkswap", path)
    sh("swapon", path)
    try:
        refused(path, "gate-swap")
    finally:
        sh("swapoff", path)


def test_held_by_dm(loops: MakeLoop) -> None:
    path = loops()
    with mapped("gate-foreign", linear(path), "CRYPT-PLAIN-x") as upper:
        assert "(gate-foreign)" in refused(path, "gate-held")
        refused(path, "gate-held", own_uuid_prefix=PREFIX)
        with pytest.raises(RefusedError, match="built on the other"):
            distinct([path, upper])


def test_held_by_lvm(loops: MakeLoop) -> None:
    path = loops()
    sh("vgcreate", "-q", "gatevg", path)
    sh("lvcreate", "-q", "-an", "-Zn", "-L", "4M", "-n", "data", "gatevg")
    sh("vgchange", "-ay", "gatevg")
    try:
        assert "gatevg-data" in refused(path, "gate-held")
    finally:
        settle()
        sh("vgchange", "-an", "gatevg")
        sh("vgremove", "-ff", "-y", "gatevg")


def test_held_by_md(loops: MakeLoop) -> None:
    path = loops()
    sh("mdadm", "--create", "/dev/md/gate", "--run", "--level=1", "--raid-devices=2", path, "missing")
    try:
        settle()
        assert "held by md" in refused(path, "gate-held")
    finally:
        settle()
        sh("mdadm", "--stop", "/dev/md/gate")


def test_held_by_loop(loops: MakeLoop) -> None:
    """A loop device claims nothing exclusively, and its backing device lists no holder."""
    path = loops()
    upper = loops(file=Path(path))
    assert f"held by {Path(upper).name}" in refused(path, "gate-held")


def test_held_by_a_program(loops: MakeLoop) -> None:
    path = loops()
    fd = os.open(path, os.O_RDONLY | os.O_EXCL)
    try:
        refused(path, "gate-held")
    finally:
        os.close(fd)


def test_read_only(loops: MakeLoop) -> None:
    path = loops()
    sh("blockdev", "--setro", path)
    refused(path, "gate-readonly")


def test_too_small(loops: MakeLoop) -> None:
    refused(loops(size=512 * KIB), "gate-too-small")
    refused(loops(), "gate-too-small", minimum_bytes=SIZE + 512)


def test_unreadable_end(loops: MakeLoop) -> None:
    """The probes take a read error for nothing; the gate takes it for no."""
    path = loops()
    half = SIZE // 1024
    with mapped("gate-bad", f"0 {half} linear {path} 0\n{half} {half} error\n") as bad:
        with (
            pytest.raises(RefusedError) as caught,
            open_exclusive(bad, purpose="new"),
        ):
            pass
        assert caught.value.code == "gate-unknown"


def test_udev_that_has_not_looked_at_it(loops: MakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its names a member's size would be all that it is known by."""
    monkeypatch.setattr(Udev, "wait", lambda *_: False)
    assert "udev has not finished" in refused(loops(), "gate-unknown")


def test_suspended(loops: MakeLoop) -> None:
    """A read would wait for somebody to resume it; so would one of what stands on it."""
    path = loops()
    with mapped("gate-slow", linear(path)) as lower, mapped("gate-above", linear(lower)) as upper:
        sh("dmsetup", "suspend", "gate-slow")
        try:
            for each in (lower, upper):
                with (
                    pytest.raises(RefusedError, match="is suspended") as caught,
                    open_exclusive(each, purpose="new"),
                ):
                    pass
                assert caught.value.code == "gate-unknown"
        finally:
            sh("dmsetup", "resume", "gate-slow")


def test_what_a_mirror_is_made_of(loops: MakeLoop) -> None:
    path = loops()
    for layer in ("top", "leg-s1"):
        with mapped("gate-inner", linear(path), f"{PREFIX}{layer}") as inner:
            refused(inner, "gate-member")


@pytest.mark.parametrize("program", ["wipefs", "blkid"])
def test_probe_that_cannot_run(loops: MakeLoop, program: str) -> None:
    path = loops()
    real = sh("sh", "-c", f"PATH=/usr/sbin:/usr/bin command -v {program}").strip()
    sh("mount", "--bind", "/bin/false", real)
    try:
        assert program in refused(path, "gate-unknown")
    finally:
        sh("umount", real)


def test_not_a_device(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(SIZE))
    for path in (file, tmp_path, Path("/dev/null")):
        with pytest.raises(NotBlockError) as caught, open_exclusive(str(path), purpose="new"):
            pass
        assert (caught.value.code, caught.value.exit_code) == ("not-block", 4)
    with pytest.raises(NotFoundError), open_exclusive(str(tmp_path / "none"), purpose="new"):
        pass


def metadata(mirror: str = MIRROR, member: str = MEMBER, identity: Identity | None = None) -> Metadata:
    return Metadata(
        mirror_uuid=mirror,
        mirror_name="photos",
        member_uuid=member,
        identity=identity or Identity(size_bytes=SIZE),
        regions={"header": Region(0, MIB), "metadata": Region(MIB, 8 * MIB)},
        created="2026-01-01T00:00:00Z",
    )


def make_member(path: str, mirror: str = MIRROR) -> Identity:
    with open_exclusive(path, purpose="new") as gated:
        header.write_first(gated, metadata(mirror, identity=gated.identity), None)
        return gated.identity


def test_member_of_a_mirror(loops: MakeLoop) -> None:
    path = loops()
    make_member(path, OTHER)
    message = refused(path, "gate-member")
    assert "'photos'" in message and "metadata" in message
    refused(path, "gate-member", replaces=MIRROR)
    with open_exclusive(path, purpose="new", replaces=OTHER) as gated:
        assert gated.scan is not None and gated.scan.header is not None


def test_damaged_member(loops: MakeLoop) -> None:
    """Both copies bad: still somebody's member, until a person has looked."""
    path = loops()
    make_member(path)
    for copy in (0, header.SLOT_BYTES):
        write(path, copy + 4096, b"garbage")
    assert "cannot be used" in refused(path, "gate-member", replaces=MIRROR)
    before = contents(path)
    with pytest.raises(MetadataError), open_exclusive(path, purpose="member", member_uuid=MEMBER):
        pass
    assert unchanged(path, before)


def test_member_on_a_partition(loops: MakeLoop) -> None:
    path = loops("--partscan")
    make_gpt(path)
    sh("blockdev", "--rereadpt", path)
    settle()
    with open_exclusive(f"{path}p1", purpose="new") as gated:
        header.write_first(gated, metadata(OTHER, identity=gated.identity), None)
    assert "p1 is the metadata of" in refused(path, "gate-member")


def test_member_is_let_through(loops: MakeLoop) -> None:
    path = loops()
    identity = make_member(path)
    with open_exclusive(path, purpose="member", expect=identity, member_uuid=MEMBER) as gated:
        assert gated.exclusive and gated.size_bytes == SIZE
        gated.pwrite(b"\x5a" * 4096, 16 * MIB)
        gated.flush()
    with open_readonly(path) as disk:
        assert disk.pread(4096, 16 * MIB) == b"\x5a" * 4096


def test_another_member(loops: MakeLoop) -> None:
    path = loops()
    identity = make_member(path)
    options: dict[str, object] = {"purpose": "member"}
    refused(path, "gate-identity", **options, expect=identity, member_uuid="f" * 32)
    refused(path, "gate-identity", **options, expect=Identity(size_bytes=SIZE - 512))
    refused(path, "gate-identity", **options, expect=Identity(size_bytes=SIZE, by_id=("usb-gone",)))
    refused(loops(), "gate-identity", **options, member_uuid=MEMBER)


def test_member_that_was_formatted(loops: MakeLoop) -> None:
    """A file system begun over the header is foreign, even where the other copy of the header is whole."""
    path = loops()
    make_member(path)
    superblock = bytearray(KIB)
    superblock[56:58] = b"\x53\xef"  # all that blkid asks of an ext2
    write(path, KIB, bytes(superblock))
    member: dict[str, object] = {"purpose": "member", "member_uuid": MEMBER}
    assert "ext2" in refused(path, "gate-signature", (False,), **member)
    before = contents(path)
    with open_exclusive(path, **member, force=True) as gated:  # type: ignore[arg-type]
        gated.clear()
    assert unchanged(path, before)


def test_what_is_written_beside_the_header_later_is_foreign(loops: MakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is probed a second time as long as what is there stays the same."""
    path = loops()
    make_member(path)
    member: dict[str, object] = {"purpose": "member", "member_uuid": MEMBER}
    asked: list[str] = []

    def probe(where: str) -> list[signatures.Signature]:
        asked.append(where)
        return signatures_of(where)

    signatures_of = signatures.signatures
    monkeypatch.setattr(signatures, "signatures", probe)
    monkeypatch.setattr(gate, "_empty", {})  # a device of this number may have been here before
    for _ in range(2):
        with open_exclusive(path, **member):  # type: ignore[arg-type]
            pass
    assert len(asked) == 1
    write(path, 32 * KIB, b"\x01CD001\x01")
    for _ in range(2):
        assert "iso9660" in refused(path, "gate-signature", (False,), **member)
    write(path, 32 * KIB, bytes(7))
    with open_exclusive(path, **member):  # type: ignore[arg-type]
        pass
    assert len(asked) == 3


def test_a_bad_place_between_the_copies_of_a_header(loops: MakeLoop) -> None:
    """Nothing of ours is there, so what is whole goes on being used."""
    path = loops()
    make_member(path)
    bad, rest = 300 * KIB // 512, SIZE // 512 - 300 * KIB // 512 - 8
    table = f"0 {bad} linear {path} 0\n{bad} 8 error\n{bad + 8} {rest} linear {path} {bad + 8}\n"
    with mapped("gate-bad", table) as member:
        for _ in range(2):
            with open_exclusive(member, purpose="member", member_uuid=MEMBER) as gated:
                assert gated.scan.header is not None


def test_what_a_member_holds_is_not_foreign(loops: MakeLoop) -> None:
    """A mirror with a partition table has its backup where the disk ends, and it is data."""
    path = loops()
    make_member(path)
    _, back = gpt(SIZE)
    write(path, SIZE - len(back), back)
    with open_exclusive(path, purpose="member", member_uuid=MEMBER) as gated:
        assert not gated.overridden
    refused(path, "gate-member")


def test_refusal_wakes_nobody(loops: MakeLoop) -> None:
    """A write-open would make udev look again and assemble what it finds; a refused device sees none."""
    path = loops()
    SIGNATURES["ext4"](path)
    settle()
    before = Path("/sys/kernel/uevent_seqnum").read_text()
    refused(path, "gate-signature", (False,))
    settle()
    assert Path("/sys/kernel/uevent_seqnum").read_text() == before


@pytest.mark.smoke
def test_own_devices_may_hold_it(loops: MakeLoop) -> None:
    path = loops()
    identity = make_member(path)
    member: dict[str, object] = {"purpose": "member", "expect": identity, "member_uuid": MEMBER}
    with mapped("gate-own", linear(path), f"{PREFIX}lower") as own:
        refused(path, "gate-held", **member)
        refused(path, "gate-held", **member, own_uuid_prefix=f"DMSOFT-{OTHER}-")
        with open_exclusive(path, **member, own_uuid_prefix=PREFIX) as gated:  # type: ignore[arg-type]
            assert not gated.exclusive
            gated.pwrite(b"\x77" * 4096, 8 * MIB)
            gated.flush()
        with open_readonly(own) as disk:
            assert disk.pread(4096, 8 * MIB) == b"\x77" * 4096
        with mapped("gate-beside", linear(path, length=2048), "mpath-x"):
            assert "(gate-beside)" in refused(path, "gate-held", **member, own_uuid_prefix=PREFIX)
    with open_exclusive(path, **member, own_uuid_prefix=PREFIX) as gated:  # type: ignore[arg-type]
        assert gated.exclusive


@pytest.mark.smoke
def test_nothing_can_take_it_while_it_is_open(loops: MakeLoop, tmp_path: Path) -> None:
    path = loops()
    with open_exclusive(path, purpose="new"):
        assert subprocess.run(["mount", path, tmp_path], capture_output=True, check=False).returncode
        table = linear(path).encode()
        create = ["dmsetup", "create", "--noudevsync", "gate-late"]
        assert subprocess.run(create, input=table, capture_output=True, check=False).returncode
        refused(path, "gate-held")


def test_device_swapped_while_opening(loops: MakeLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name leads elsewhere between the examination and the open: the other device is not touched."""
    first, second = loops(), loops()
    link = tmp_path / "link"
    link.symlink_to(first)
    real_open = os.open

    def switch(path: str, flags: int, *args: int) -> int:
        if path == str(link):
            link.unlink()
            link.symlink_to(second)
        return real_open(path, flags, *args)

    before = contents(second)
    monkeypatch.setattr(os, "open", switch)
    with pytest.raises(RefusedError, match="another device") as caught, open_exclusive(str(link), purpose="new"):
        pass
    assert caught.value.code == "gate-identity"
    monkeypatch.undo()
    assert unchanged(second, before)


def test_same_device_through_names(loops: MakeLoop, tmp_path: Path) -> None:
    path, other = loops(), loops()
    link = tmp_path / "link"
    link.symlink_to(path)
    node = tmp_path / "node"
    os.mknod(node, 0o600 | 0o60000, os.stat(path).st_rdev)
    again = loops(file=Path(block_device(path).backing_file or ""))
    for name in (path, str(link), str(node), again):
        with pytest.raises(RefusedError) as caught:
            distinct([path, other, name])
        assert (caught.value.code, caught.value.exit_code) == ("same-device", 4)
    assert [device.path for device in distinct([str(link), other])] == [path, other]


def test_two_volumes_on_one_disk_are_distinct(loops: MakeLoop) -> None:
    path = loops()
    half = SIZE // 1024
    with (
        mapped("gate-one", linear(path, length=half)) as one,
        mapped("gate-two", linear(path, start=half, length=half)) as two,
    ):
        assert len(distinct([one, two])) == 2
        with open_exclusive(one, purpose="new") as first, open_exclusive(two, purpose="new") as second:
            assert isinstance(first, GatedDevice) and second.exclusive


def test_identity_of_a_named_device() -> None:
    disk = next(iter(sorted(Path("/dev/disk/by-id").glob("virtio-*"))), None)
    assert disk is not None, "run this in a VM with --disk"
    identity = identify(str(disk))
    assert identity.by_id == (disk.name,)
    assert identity.size_bytes == block_device(str(disk)).size_bytes > 0


def test_identity_of_a_dm_device(loops: MakeLoop) -> None:
    with mapped("gate-id", linear(loops()), "gate-uuid-1") as path:
        settle()
        assert identify(path).by_id == ("dm-name-gate-id", "dm-uuid-gate-uuid-1")


def test_open_readonly_of_a_used_device(loops: MakeLoop) -> None:
    path = loops()
    with mapped("gate-used", linear(path)), open_readonly(path) as disk:
        assert disk.pread(4096, 0) == bytes(4096)
    fd = open_for_read(path)
    os.close(fd)
    assert re.fullmatch(r"/dev/loop\d+", path)
