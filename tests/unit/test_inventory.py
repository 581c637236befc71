# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts from a made-up sysfs and /proc, what blivet's answer is worth, and the verdicts on devices."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dmsoft.errors import DeviceError, NotFoundError
from dmsoft.inventory import blivet, signatures
from dmsoft.inventory.candidates import ROLES, Candidate, Facts, Reason, Role, judge
from dmsoft.inventory.signatures import ProbeError, Signature
from dmsoft.inventory.sysfs import BlockDevice, NotBlockError, Sysfs, block_device
from dmsoft.inventory.udev import Udev
from dmsoft.inventory.usage import Usage, Use, parse_mountinfo, parse_swaps, users
from dmsoft.member.regions import TooSmallError, cache_layout
from dmsoft.member.survey import CACHE_BYTES, Survey
from dmsoft.report import devices as report
from dmsoft.report.devices import because, can_be
from dmsoft.units import GIB, MIB

MINIMUM: dict[Role, int] = {"primary": 16 * MIB, "secondary": 16 * MIB, "cache": 9 * MIB}


class Tree:
    """A sysfs with the devices that are added to it, laid out as the kernel does: class and dev are symlinks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("class/block", "dev/block"):
            (root / name).mkdir(parents=True)

    def add(self, name: str, number: str, path: str = "devices/virtual/block", **attributes: object) -> Path:
        directory = self.root / path / name
        (directory / "holders").mkdir(parents=True)
        for key, value in {"dev": number, "size": 2048, "ro": 0, **attributes}.items():
            file = directory / key.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
        (self.root / "class/block" / name).symlink_to(directory)
        (self.root / "dev/block" / number).symlink_to(directory)
        return directory

    def hold(self, lower: str, upper: str) -> None:
        below, above = ((self.root / "class/block" / name).resolve() for name in (lower, upper))
        (below / "holders" / upper).symlink_to(above)
        (above / "slaves").mkdir(exist_ok=True)
        (above / "slaves" / lower).symlink_to(below)

    @property
    def sysfs(self) -> Sysfs:
        return Sysfs(self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A USB disk with two partitions, the first of which carries an LVM volume and a mirror."""
    made = Tree(tmp_path / "sys")
    usb = "devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block"
    queue = {"queue__rotational": 1, "queue__logical_block_size": 512, "queue__physical_block_size": 4096}
    made.add(
        "sdb", "8:16", usb, size=4096, removable=1, diskseq=7, device__model="Elements  25A2 ",
        device__wwid="naa.50014ee2b5e7a1c4", **queue,
    )  # fmt: skip
    made.add("sdb1", "8:17", f"{usb}/sdb", size=1024, partition=1)
    made.add("sdb10", "8:26", f"{usb}/sdb", size=512, partition=10)
    made.add("dm-0", "253:0", dm__name="vg-data", dm__uuid="LVM-abc", dm__suspended=0)
    made.add("dm-1", "253:1", dm__name="photos-lower", dm__uuid="DMSOFT-x-lower", dm__suspended=1)
    made.hold("sdb1", "dm-0")
    made.hold("dm-0", "dm-1")
    return made


def usage(tree: Tree, tmp_path: Path, mountinfo: str = "", swaps: str = "") -> Usage:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text(mountinfo)
    (proc / "swaps").write_text("Filename Type Size Used Priority\n" + swaps)
    return Usage.read(tree.sysfs, proc)


def test_disk(tree: Tree) -> None:
    disk = tree.sysfs.device("sdb")
    assert (disk.path, disk.number, disk.size_bytes, disk.kind) == ("/dev/sdb", (8, 16), 2 * MIB, "disk")
    assert (disk.removable, disk.rotational, disk.read_only, disk.bus) == (True, True, False, "usb")
    assert (disk.logical_block_bytes, disk.physical_block_bytes) == (512, 4096)
    assert (disk.model, disk.wwid, disk.sequence) == ("Elements 25A2", "naa.50014ee2b5e7a1c4", 7)
    assert disk.partitions == ("sdb1", "sdb10") and disk.parent is None


def test_partition_has_what_its_disk_has(tree: Tree) -> None:
    part = tree.sysfs.device("sdb1")
    assert (part.kind, part.parent, part.partitions, part.holders) == ("partition", "sdb", (), ("dm-0",))
    assert part.removable and part.rotational and part.physical_block_bytes == 4096 and part.sequence == 7


def test_device_mapper(tree: Tree) -> None:
    lower = tree.sysfs.device("dm-1")
    assert (lower.kind, lower.dm_name, lower.dm_uuid, lower.suspended) == ("dm", "photos-lower", "DMSOFT-x-lower", True)
    assert lower.slaves == ("dm-0",) and lower.bus is None and not tree.sysfs.device("dm-0").suspended
    assert [each.name for each in tree.sysfs.below(lower)] == ["dm-0", "sdb1", "sdb"]


@pytest.mark.parametrize(
    ("name", "number", "attributes", "kind"),
    [
        ("loop0", "7:0", {"loop__backing_file": "/a file"}, "loop"),
        ("sr0", "11:0", {}, "cdrom"),
        ("md127", "9:127", {"md__level": "raid1"}, "md"),
        ("zram0", "253:9", {}, "zram"),
        ("ram0", "1:0", {}, "ram"),
        ("nvme0n1", "259:0", {}, "disk"),
    ],
)
def test_kinds(tree: Tree, name: str, number: str, attributes: dict[str, object], kind: str) -> None:
    tree.add(name, number, **attributes)
    device = tree.sysfs.device(name)
    assert device.kind == kind
    assert device.backing_file == attributes.get("loop__backing_file")


def test_names_in_natural_order_and_without_hidden_ones(tree: Tree) -> None:
    hidden = tree.add("nvme0c0n1", "0:0")
    (hidden / "dev").unlink()
    assert tree.sysfs.names() == ["dm-0", "dm-1", "sdb", "sdb1", "sdb10"]


def test_slash_in_a_name(tree: Tree) -> None:
    tree.add("cciss!c0d0", "104:0")
    assert tree.sysfs.device("cciss!c0d0").path == "/dev/cciss/c0d0"


@pytest.mark.parametrize("name", ["", ".", "..", "../sdb", "/dev/sdb", "sdz"])
def test_no_such_device(tree: Tree, name: str) -> None:
    with pytest.raises(NotFoundError):
        tree.sysfs.device(name)


def test_device_that_went_away_is_left_out(tree: Tree) -> None:
    (tree.root / "class/block/sdc").symlink_to(tree.root / "devices/gone")
    (tree.root / "class/block/sdb/holders").rmdir()
    assert [device.name for device in tree.sysfs.devices()] == ["dm-0", "dm-1", "sdb1", "sdb10"]


@pytest.mark.parametrize(("attribute", "value"), [("size", "many"), ("dev", "8"), ("dev", "x:y")])
def test_nonsense_in_sysfs_is_an_error(tree: Tree, attribute: str, value: str) -> None:
    (tree.root / "class/block/sdb" / attribute).write_text(value)
    with pytest.raises(DeviceError):
        tree.sysfs.device("sdb")


def test_no_sysfs(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        Sysfs(tmp_path).devices()


def test_what_is_not_a_block_device(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, tmp_path, Path("/dev/null")):
        with pytest.raises(NotBlockError) as caught:
            block_device(path)
        assert caught.value.exit_code == 4
    for missing in (tmp_path / "none", file / "below", tmp_path / "dangling"):
        (tmp_path / "dangling").unlink(missing_ok=True)
        (tmp_path / "dangling").symlink_to("nowhere")
        with pytest.raises(NotFoundError):
            block_device(missing)


MOUNT = "36 1 8:17 / /mnt/my\\040disk rw,noatime shared:1 master:2 - ext4 /dev/sdb1 rw,errors=continue\n"
BTRFS = "37 1 0:44 / /srv rw - btrfs /dev/sdz rw\n"


def test_mounted_partition_uses_the_disk_and_not_its_sibling(tree: Tree, tmp_path: Path) -> None:
    seen = usage(tree, tmp_path, MOUNT)
    device = tree.sysfs.device
    assert users(device("sdb"), seen)[0] == "its partition sdb1 is mounted at /mnt/my disk"
    assert users(device("sdb1"), seen)[0] == "mounted at /mnt/my disk"
    assert users(device("sdb10"), seen) == []


def test_holders_are_named_with_what_uses_them(tree: Tree, tmp_path: Path) -> None:
    seen = usage(tree, tmp_path, "36 1 253:1 / /srv rw - ext4 /dev/mapper/photos rw\n")
    uses = seen.uses(tree.sysfs.device("sdb1"))
    assert [(use.kind, use.text) for use in uses] == [("held", "held by dm-0 (vg-data), mounted at /srv")]
    assert uses[0].holder is not None and uses[0].holder.dm_uuid == "LVM-abc"
    assert [use.device for use in seen.uses(tree.sysfs.device("sdb"))] == ["sdb1"]


def test_claim_of_the_whole_disk_holds_its_partitions(tree: Tree, tmp_path: Path) -> None:
    tree.add("md0", "9:0", md__level="raid1")
    tree.hold("sdb", "md0")
    assert users(tree.sysfs.device("sdb10"), usage(tree, tmp_path)) == ["its disk sdb is held by md0"]


def test_mounted_btrfs_holds_all_its_devices(tree: Tree, tmp_path: Path) -> None:
    devices = tree.root / "fs/btrfs/0e1f/devices"
    devices.mkdir(parents=True)
    (devices / "sdb10").symlink_to("..")
    assert users(tree.sysfs.device("sdb10"), usage(tree, tmp_path, BTRFS)) == ["part of a mounted btrfs"]


def test_swap(tree: Tree, tmp_path: Path) -> None:
    """The node need not be there: the kernel's name is enough."""
    seen = usage(tree, tmp_path, swaps="/dev/sdb10\\040(deleted) partition 256 0 -2\n/swap\\040file file 1 0 -3\n")
    assert users(tree.sysfs.device("sdb10"), seen) == ["in use as swap"]
    assert users(tree.sysfs.device("sdb1"), seen) == ["held by dm-0 (vg-data)"]


@pytest.mark.parametrize(
    ("mountinfo", "swaps"),
    [
        ("36 1 8:17 /\n", ""),
        ("36 1 x:17 / /a rw - ext4 a rw\n", ""),
        ("", "garbage\n"),
        ("", "/dev/gone partition 1 0 -2\n"),
    ],
)
def test_what_is_not_understood_is_an_error(tree: Tree, tmp_path: Path, mountinfo: str, swaps: str) -> None:
    with pytest.raises(DeviceError):
        usage(tree, tmp_path, mountinfo, swaps)


def test_no_proc_is_an_error_and_no_swap_is_none(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        Usage.read(tree.sysfs, tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").touch()
    assert Usage.read(tree.sysfs, tmp_path).swaps == frozenset()


def test_holder_that_cannot_be_looked_at_is_an_error(tree: Tree, tmp_path: Path) -> None:
    seen = usage(tree, tmp_path)
    device = tree.sysfs.device("sdb1")
    (tree.root / "class/block/dm-0").unlink()
    with pytest.raises(NotFoundError):
        seen.uses(device)


@given(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1))
def test_mountpoints_come_back_as_they_were(name: str) -> None:
    """The kernel escapes these and no other characters (fs/proc_namespace.c); none of the others ends a line."""
    escaped = "".join(f"\\{ord(char):03o}" if char in " \t\n\\#" else char for char in name)
    mounts = parse_mountinfo(f"36 1 8:17 / /{escaped} rw - ext4 /dev/sdb1 rw\n" * 2)
    assert [mount.mountpoint for mount in mounts] == [f"/{name}"] * 2


def test_escape_sequences_of_a_disk_reach_no_terminal(image: Path, tree: Tree, tmp_path: Path) -> None:
    superblock = bytearray(1024)
    superblock[56:58] = b"\x53\xef"
    superblock[120:129] = b"\x1b[2Jphoto"
    put(image, 1024, bytes(superblock))
    (found,) = signatures.signatures(str(image))
    assert "\x1b" not in str(found) and "photo" in str(found)
    (tree.root / "class/block/sdb/device/model").write_text("A\x1b[31mB\n")
    assert tree.sysfs.device("sdb").model == "A?[31mB"
    seen = usage(tree, tmp_path, "36 1 8:26 / /mnt/\x1b[2J rw - ext4 /dev/sdb10 rw\n")
    assert users(tree.sysfs.device("sdb10"), seen) == ["mounted at /mnt/?[2J"]


@given(st.text())
def test_swaps_never_fail_otherwise(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_swaps(text)


def test_udev_without_a_daemon(tmp_path: Path) -> None:
    udev = Udev(by_id=tmp_path / "by-id", control=tmp_path / "control")
    device = BlockDevice("nothing", "/dev/nothing", 4095, 4095, MIB, "disk")
    assert not udev.running and udev.by_id(device) == [] and udev.properties(device) == {}
    assert udev.wait(device, seconds=60)


def test_names_that_udev_would_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of a disk goes into headers and onto terminals."""
    links = (
        "/dev/disk/by-id/usb-Ä /dev/disk/by-id/a/b /dev/disk/by-id/.. /dev/disk/by-id/x\x1b[2J /dev/disk/by-id/\udcff"
    )
    monkeypatch.setattr(Udev, "properties", lambda *_: {"DEVLINKS": links})
    udev = Udev(by_id=tmp_path / "none")
    assert udev.by_id(BlockDevice("nothing", "/dev/nothing", 4095, 4095, MIB, "disk")) == ["usb-Ä"]


def test_udev_gives_up_waiting(tmp_path: Path) -> None:
    (tmp_path / "control").touch()
    udev = Udev(by_id=tmp_path, control=tmp_path / "control")
    assert not udev.wait(BlockDevice("nothing", "/dev/nothing", 4095, 4095, MIB, "disk"), seconds=0.1)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file is probed as a device is."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    return path


def put(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_nothing_is_found_on_zeros(image: Path) -> None:
    assert signatures.signatures(str(image)) == []
    signatures.readable(str(image))


def test_signatures_and_wiping_them(image: Path) -> None:
    put(image, 0, b"LUKS\xba\xbe\x00\x01".ljust(168, b"\0") + b"0e1f5a0e-3f0c-4b0e-9d4f-4d5f1c7f7a11\0")
    put(image, 65600, b"_BHRfS_M")
    assert "crypto_LUKS" in {one.type for one in signatures.signatures(str(image))}
    signatures.wipe(str(image))
    assert signatures.signatures(str(image)) == []


def test_probe_of_nothing_is_an_error(tmp_path: Path) -> None:
    for probe in (signatures.signatures, signatures.readable):
        with pytest.raises(ProbeError):
            probe(str(tmp_path / "none"))  # type: ignore[operator]


@pytest.mark.parametrize(
    "answer", [b"{", b'{"signatures": 3}', b'{"signatures": [{"type": "ext4", "offset": "x"}]}', b"\xff"]
)
def test_answer_that_is_not_understood_is_an_error(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, fake_run: Callable[..., object]
) -> None:
    monkeypatch.setattr(signatures, "run", fake_run(answer))
    with pytest.raises(ProbeError):
        signatures.signatures("/dev/x")


@pytest.fixture
def fake_run() -> Callable[..., object]:
    """A `run` that gives one answer to everything, as a version of a tool that nobody has seen would."""

    def make(answer: bytes, status: int = 0) -> object:
        import subprocess

        return lambda argv, **_options: subprocess.CompletedProcess(argv, status, answer, b"")

    return make


def test_blivet_is_asked_without_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    asked: list[list[str]] = []

    def run(argv: list[str], **_options: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(list(argv))
        return subprocess.CompletedProcess(argv, 0, b'{"reasons": {"sda": ["holds ext4"]}}', b"")

    monkeypatch.setattr(blivet, "run", run)
    assert blivet.advice().reasons == {"sda": ("it holds ext4",)}
    (argv,) = asked
    assert argv[0] == "setpriv" and "--reuid=nobody" in argv and "--no-new-privs" in argv
    assert all(f"--{kind}={blivet._ALONE}" in argv for kind in ("inh-caps", "ambient-caps", "bounding-set"))
    assert argv[-3:] == ["-I", "-m", "dmsoft.inventory.blivet_scan"]


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"reasons": 1}', b"\xff\xfe"])
def test_blivet_that_answers_nonsense_is_missing(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, fake_run: Callable[..., object]
) -> None:
    monkeypatch.setattr(blivet, "run", fake_run(answer))
    advice = blivet.advice()
    assert advice.reasons == {} and "blivet" in advice.missing[0]


def test_what_blivet_misses_is_said() -> None:
    absent = blivet.judge(blivet.Scan(failed="ModuleNotFoundError: No module named 'blivet'"), udev_running=False)
    assert absent.missing == ("blivet cannot be used: ModuleNotFoundError: No module named 'blivet'.",)
    blind = blivet.judge(blivet.Scan(unscanned={f"dm-{n}": "x" for n in range(6)}), udev_running=False)
    assert "formats" in blind.missing[0] and blind.missing[1].endswith("dm-0, dm-1, dm-2, dm-3 and 2 more.")
    assert blivet.judge(blivet.Scan(), udev_running=True).missing == ()


def device(**changes: object) -> BlockDevice:
    values: dict[str, object] = {"name": "sda", "path": "/dev/sda", "major": 8, "minor": 0, "size_bytes": GIB}
    return BlockDevice(**{**values, "kind": "disk", **changes})  # type: ignore[arg-type]


def verdict(facts: Facts) -> Candidate:
    return judge(facts, MINIMUM)


def codes(candidate: Candidate, role: Role = "primary") -> list[str]:
    return [reason.code for reason in candidate.roles[role].reasons]


def test_empty_disk_can_be_anything() -> None:
    found = verdict(Facts(device()))
    assert found.usable and all(found.roles[role].usable and not found.roles[role].warnings for role in ROLES)
    assert can_be(found).plain == "anything" and because(found) == []


@pytest.mark.parametrize(
    ("facts", "code", "text"),
    [
        (Facts(device(), uses=(Use("mounted", "sda", "mounted at /"),)), "gate-mounted", "mounted at /"),
        (Facts(device(), uses=(Use("swap", "sda", "in use as swap"),)), "gate-swap", "in use as swap"),
        (Facts(device(), uses=(Use("held", "sda", "held by md0"),)), "gate-held", "held by md0"),
        (Facts(device(read_only=True)), "gate-readonly", "read-only"),
        (Facts(device(kind="cdrom")), "gate-readonly", "a CD or DVD drive"),
        (Facts(device(size_bytes=0)), "gate-too-small", "no size (no medium)"),
        (Facts(device(size_bytes=0, kind="loop")), "gate-too-small", "no file behind it"),
        (Facts(device(size_bytes=9 * MIB - 512)), "gate-too-small", "too small (9 MiB needed)"),
        (Facts(device(), member="the secondary of the mirror a"), "gate-member", "the secondary of the mirror a"),
        (Facts(device(), doubt="cannot be checked: broken"), "gate-unknown", "cannot be checked: broken"),
        (Facts(device(), advice=("it is part of x",)), "blivet", "blivet says it is part of x"),
        (
            Facts(device(), other=(Reason("same-device", "is the primary itself"),)),
            "same-device",
            "is the primary itself",
        ),
    ],
)
def test_why_not(facts: Facts, code: str, text: str) -> None:
    found = verdict(facts)
    assert not found.usable
    for role in ROLES:
        assert codes(found, role) == [code]
        assert not found.roles[role].with_force
    assert because(found) == [text]
    assert can_be(found).plain == "-"


def test_signature_is_a_matter_of_force() -> None:
    found = verdict(Facts(device(partitions=("sda1", "sda2")), signatures=(Signature("gpt"),)))
    assert not found.usable and all(found.roles[role].with_force for role in ROLES)
    assert because(found) == ["holds a partition table gpt with 2 partitions"]
    assert can_be(found).plain == "--force"
    both = verdict(Facts(device(read_only=True), signatures=(Signature("ext4", "my disk"),)))
    assert not any(both.roles[role].with_force for role in ROLES)
    assert because(both) == ["read-only", 'holds ext4 "my disk"']


def test_blivet_only_adds_reasons() -> None:
    """Where the probes found something, what blivet says of it is no second reason, and --force still counts."""
    found = verdict(Facts(device(), signatures=(Signature("ext4"),), advice=("it holds ext4",)))
    assert codes(found) == ["gate-signature"] and found.roles["primary"].with_force
    assert found.blivet == ("it holds ext4",)


def test_size_decides_by_role() -> None:
    found = verdict(Facts(device(size_bytes=9 * MIB)))
    assert can_be(found).plain == "cache"
    assert because(found) == ["primary, secondary: too small (16 MiB needed)"]
    larger = judge(Facts(device(size_bytes=GIB)), {**MINIMUM, "secondary": GIB + 1})
    assert can_be(larger).plain == "primary, cache"


def test_removable_is_fine_for_a_secondary() -> None:
    for changes in ({"removable": True}, {"bus": "usb"}):
        found = verdict(Facts(device(**changes)))
        assert [bool(found.roles[role].warnings) for role in ROLES] == [True, False, True]
        assert found.usable and found.removable
        assert because(found) == ["primary, cache: removable, and the mirror needs it"]


def test_memory_is_volatile() -> None:
    found = verdict(Facts(device(kind="zram")))
    assert because(found) == ["memory: empty after a power cut"]


@given(st.integers(0, 64 * MIB), st.booleans(), st.sampled_from(["disk", "loop", "cdrom", "dm"]))
def test_usable_means_no_reason(size: int, read_only: bool, kind: str) -> None:
    found = verdict(Facts(device(size_bytes=size, read_only=read_only, kind=kind)))
    for role in ROLES:
        one = found.roles[role]
        assert one.usable == (not one.reasons) and not (one.usable and one.with_force)
        assert one.usable == (size >= MINIMUM[role] and not read_only and kind != "cdrom")


def test_least_cache_is_what_its_layout_takes() -> None:
    cache_layout(CACHE_BYTES)
    with pytest.raises(TooSmallError):
        cache_layout(CACHE_BYTES - 1)


LONG = "luks-3f1c7f7a-9d4f-4d5f-8f1c-1c7f7a11aa22"


def test_table_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No word is cut, a name that fits its column stays whole, and what is empty or dmsoft's own is only counted."""
    held = Use("held", "nvme0n1p2", f"its partition nvme0n1p2 is held by dm-0 ({LONG}), mounted at /")
    facts = [
        Facts(device(name="dm-0", kind="dm", dm_name=LONG, dm_uuid="CRYPT-LUKS2-x"), uses=(held,)),
        Facts(
            device(name="dm-1", kind="dm", dm_name="photos-lower", dm_uuid="DMSOFT-x-lower"),
            member="belongs to a mirror",
        ),
        Facts(device(name="loop0", kind="loop", size_bytes=0)),
        Facts(device(name="nvme0n1", path="/dev/nvme0n1", bus="nvme", model="Samsung SSD 980 PRO 1TB"), uses=(held,)),
        Facts(device(name="nvme0n1p1", path="/dev/nvme0n1p1", kind="partition", parent="nvme0n1", size_bytes=MIB)),
        Facts(device(bus="usb", model="Elements 25A2"), signatures=(Signature("ext4", "my photos"),)),
    ]
    written = io.StringIO()
    monkeypatch.setattr(report, "console", lambda: Console(width=80, file=written, highlight=False))
    report.show(Survey(tuple(verdict(each) for each in facts), ("udevd is not running.",)), everything=False)
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) == 80
    rows = {words[0]: words[1:] for line in lines if (words := line.split()) and line.startswith("/dev/")}
    assert list(rows) == ["/dev/nvme0n1", "/dev/nvme0n1p1", "/dev/sda", "/dev/mapper/luks-3f1c7f7a-"]
    assert rows["/dev/sda"][:5] == ["1", "GiB", "--force", "usb", "Elements"]
    text = " ".join(" ".join(lines).split())
    assert "partition: too small (9 MiB needed)" in text and 'holds ext4 "my' in text
    assert "2 empty or inner devices not shown; --all shows them." in lines
    assert lines[-1] == "Not seen: udevd is not running."
    for word in ["Samsung", "SSD", "980", "PRO", "1TB:", "nvme0n1p2", "mounted", "removable,", "encrypted:"]:
        assert word in text
    report.show(Survey(tuple(verdict(each) for each in facts), ()), everything=True)
    assert "/dev/mapper/photos-lower" in written.getvalue() and "belongs to a mirror" in written.getvalue()


def test_a_name_on_a_device_commands_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """blivet names what is built on a device as it is named there; the last words of a probe that failed quote it."""
    odd = "x\x1b[2J\x9b31m\nfake"
    facts = Facts(device(model=odd), advice=(f"it is part of {odd}",), doubt=f"cannot be checked: {odd}")
    written = io.StringIO()
    monkeypatch.setattr(report, "console", lambda: Console(width=80, file=written, highlight=False))
    report.show(Survey((verdict(facts),), (f"blivet cannot be used: {odd}.",)), everything=True)
    assert all(char.isprintable() or char == "\n" for char in written.getvalue())
    assert not [line for line in written.getvalue().splitlines() if line.startswith("fake")]
