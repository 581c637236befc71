# SPDX-License-Identifier: GPL-2.0-or-later
"""What the gate decides without a device: identity, sameness, its guards and its codes."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.errors import DeviceError, MetadataError, RefusedError
from dmsoft.inventory.sysfs import BlockDevice, NotBlockError, Sysfs
from dmsoft.inventory.udev import Udev
from dmsoft.member import refusal
from dmsoft.member.distinct import distinct, overlap
from dmsoft.member.gate import _doubt_is_no, open_exclusive
from dmsoft.member.identity import identity_of, matches
from dmsoft.member.payload import Identity
from dmsoft.member.refusal import GateHeldError, GateUnknownError, SameDeviceError
from dmsoft.units import MIB
from tests.unit.test_inventory import Tree

PREFIX = "DMSOFT-" + "a" * 32 + "-"
REFUSALS = [each for each in vars(refusal).values() if isinstance(each, type) and issubclass(each, RefusedError)]

names = st.frozensets(st.sampled_from(["ata-A", "wwn-1", "usb-X-0:0", "usb-X-0:1"]))


@given(st.integers(0, 1 << 40), names, st.integers(0, 1 << 40), names)
def test_matches(size: int, recorded: frozenset[str], now: int, seen: frozenset[str]) -> None:
    why = matches(Identity(size, tuple(sorted(recorded))), Identity(now, tuple(sorted(seen))))
    same = size == now and (not recorded or bool(recorded & seen))
    assert (why is None) == same
    assert why is None or why.endswith(".")


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (Identity(MIB, ("ata-B",)), "now it is ata-B"),
        (Identity(MIB), "now it has no such name"),
        (Identity(MIB + 512, ("ata-A",)), "1048576 (1 MiB) are recorded"),
    ],
)
def test_what_differs_is_said(seen: Identity, said: str) -> None:
    why = matches(Identity(MIB, ("ata-A",)), seen)
    assert why is not None and said in why


class Named(Udev):
    """A udev that knows certain names."""

    def __init__(self, *known: str) -> None:
        super().__init__(control=Path("/nonexistent"))
        self._known = known

    def by_id(self, device: BlockDevice) -> list[str]:
        return sorted(self._known)


def test_identity_leaves_out_names_that_pass() -> None:
    """The name of a physical volume goes with its signature; one that no header can hold is not recorded."""
    device = BlockDevice("sda", "/dev/sda", 8, 0, MIB, "disk")
    udev = Named("wwn-1", "lvm-pv-uuid-x", "ata-A", "y" * 256, "dm-uuid-z")
    assert identity_of(device, udev) == Identity(MIB, ("ata-A", "dm-uuid-z", "wwn-1"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A disk with two partitions, an LVM volume on each, md over a second disk; loop devices, and two paths to one."""
    made = Tree(tmp_path / "sys")
    made.add("sda", "8:0", device__wwid="naa.1")
    made.add("sda1", "8:1", "devices/virtual/block/sda", partition=1)
    made.add("sda2", "8:2", "devices/virtual/block/sda", partition=2)
    made.add("dm-0", "253:0", dm__name="a", dm__uuid="LVM-a")
    made.add("dm-1", "253:1", dm__name="b", dm__uuid="LVM-b")
    made.add("sdb", "8:16", device__wwid="naa.2")
    made.add("md0", "9:0", md__level="raid1")
    made.add("sdc", "8:32", device__wwid="naa.2")
    made.add("sdd", "8:48", device__wwid="t10.ATA     cheap dock")
    made.add("sde", "8:64", device__wwid="t10.ATA     cheap dock")
    made.hold("sda1", "dm-0")
    made.hold("sda2", "dm-1")
    made.hold("sdb", "md0")
    image = tmp_path / "image"
    image.touch()
    (tmp_path / "other").symlink_to(image)
    made.add("loop0", "7:0", loop__backing_file=image)
    made.add("loop1", "7:1", loop__backing_file=tmp_path / "other")
    made.add("loop2", "7:2", loop__backing_file=f"{tmp_path}/gone (deleted)")
    made.add("loop3", "7:3", loop__backing_file=f"{tmp_path}/gone (deleted)")
    return made


OVERLAPS = {
    frozenset(pair): said
    for pair, said in {
        ("sda", "sda1"): "partition of the other",
        ("sda", "sda2"): "partition of the other",
        ("sda", "dm-0"): "built on the other",
        ("sda", "dm-1"): "built on the other",
        ("sda1", "dm-0"): "built on the other",
        ("sda2", "dm-1"): "built on the other",
        ("sdb", "md0"): "built on the other",
        ("sdb", "sdc"): "two paths",
        ("loop0", "loop1"): "same file",
        ("loop2", "loop3"): "same file",
    }.items()
}


def test_overlap_of_every_two(tree: Tree) -> None:
    devices = tree.sysfs.devices()
    for one, two in itertools.product(devices, repeat=2):
        why = overlap(one, two, tree.sysfs)
        said = "the same device" if one == two else OVERLAPS.get(frozenset((one.name, two.name)))
        assert (said in why) if said and why else (said is None and why is None), (one.name, two.name, why)


def test_distinct_resolves_names(tmp_path: Path) -> None:
    """The paths are looked up as devices, each with the errors of that."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotBlockError):
        distinct([str(file)])
    assert distinct([]) == []
    assert SameDeviceError.code == "same-device"


def test_overlap_that_cannot_be_told_is_refused(tree: Tree) -> None:
    one, two = tree.sysfs.device("dm-0"), tree.sysfs.device("sdb")
    (tree.root / "class/block/sda1").unlink()
    with pytest.raises(GateUnknownError):
        overlap(one, two, tree.sysfs)


def test_codes_are_stable_and_explained() -> None:
    codes = {each.code for each in REFUSALS if each is not RefusedError}
    assert codes == {
        "gate-mounted", "gate-swap", "gate-held", "gate-signature", "gate-member", "gate-readonly", "gate-identity",
        "gate-too-small", "gate-unknown", "same-device",
    }  # fmt: skip
    assert all(each.exit_code == 4 and each.__doc__ for each in REFUSALS)
    assert (NotBlockError.code, NotBlockError.exit_code) == ("not-block", 4)


@pytest.mark.parametrize(
    "err", [DeviceError("The disk is gone."), OSError(5, "Input/output error"), ValueError("x"), MetadataError("Bad.")]
)
def test_doubt_is_no(err: Exception) -> None:
    with pytest.raises(GateUnknownError) as caught, _doubt_is_no("/dev/x"):
        raise err
    assert caught.value.hint and caught.value.message.startswith("/dev/x cannot be checked")
    assert caught.value.__cause__ is err


def test_refusal_keeps_its_code() -> None:
    with pytest.raises(GateHeldError), _doubt_is_no("/dev/x"):
        raise GateHeldError("held")


@pytest.mark.parametrize("prefix", ["", "DMSOFT-", "DMSOFT-" + "a" * 32, "LVM-" + "a" * 35 + "-", PREFIX + "top"])
def test_prefix_that_would_disarm_the_gate(prefix: str) -> None:
    """A caller's mistake is not an answer to a check: it is raised as what it is."""
    with pytest.raises(ValueError, match="prefix"), open_exclusive("/", purpose="new", own_uuid_prefix=prefix):
        pass


def test_member_needs_something_to_be_checked_against() -> None:
    with pytest.raises(ValueError, match="identity"), open_exclusive("/", purpose="member"):
        pass
    with (
        pytest.raises(NotBlockError),
        open_exclusive("/", purpose="member", member_uuid="a" * 32, own_uuid_prefix=PREFIX),
    ):
        pass


def test_sysfs_that_is_not_there_is_no_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        Sysfs(tmp_path).names()
