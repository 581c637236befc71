# SPDX-License-Identifier: GPL-2.0-or-later
"""Names and uuids: within a mirror they never collide, and device-mapper and udev take every one of them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsoft.dm.device import Device
from dmsoft.errors import UsageError
from dmsoft.member import regions
from dmsoft.member.payload import Label, Name
from dmsoft.mirror.names import SLOTS_PER_SET, Names, Node, check_label, check_name, new_uuid

UUID = "0123456789abcdef" * 2
mirror_names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,47}", fullmatch=True).filter(
    lambda name: name != "control"
)
labels = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+]{0,31}", fullmatch=True)
tricky = st.sampled_from(["data", "cache", "top", "leg", "lower_", "slot", "slots0", "data+cache", "s1"])


def allowed(label: str) -> bool:
    try:
        return check_label(label) == label
    except UsageError:
        return False


def nodes(names: Names, of: list[str]) -> list[Node]:
    fixed = [names.top, names.lower, names.metadata, names.primary]
    slots = [names.slot(index) for index in range(2 * SLOTS_PER_SET)]
    legs = [node for label in of for node in (names.leg(label), names.leg_data(label), names.leg_cache(label))]
    return fixed + slots + legs


@given(mirror_names, st.sets((labels | tricky).filter(allowed), max_size=16))
def test_no_two_devices_of_a_mirror_share_a_name_or_a_uuid(name: str, chosen: set[str]) -> None:
    every = nodes(Names(name, UUID), sorted(chosen))
    assert len({node.name for node in every}) == len(every)
    assert len({node.uuid for node in every}) == len(every)


@given(mirror_names, st.sets((labels | tricky).filter(allowed), max_size=3))
def test_device_mapper_takes_every_name(name: str, chosen: set[str]) -> None:
    names = Names(check_name(name), UUID)
    for node in nodes(names, sorted(chosen)):
        Device(node.name, node.uuid)
        assert node.uuid.startswith(names.prefix) and len(node.uuid) <= 128 and len(node.name) <= 127
        assert node.path == f"/dev/mapper/{node.name}"


def test_the_longest_name_with_the_longest_label() -> None:
    names, label = Names(check_name("n" * 48), UUID), check_label("l" * 32)
    for node in nodes(names, [label]):
        Device(node.name, node.uuid)
    with pytest.raises(UsageError, match="cannot name"):
        check_name("n" * 49)
    with pytest.raises(UsageError, match="cannot label"):
        check_label("l" * 33)


@given(labels)
def test_two_mirrors_never_share_a_uuid(label: str) -> None:
    one, other = Names("m", UUID), Names("m", UUID[::-1])
    assert not {n.uuid for n in nodes(one, [label])} & {n.uuid for n in nodes(other, [label])}
    assert not any(node.uuid.startswith(other.prefix) for node in nodes(one, [label]))


@pytest.mark.parametrize("name", ["", "-a", ".a", "+a", "a b", "a/b", "a\n", "ä", "control", "a=b", "../a", "a:b"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert caught.value.hint


@pytest.mark.parametrize(
    "label",
    ["", "a-b", "-", "a b", "a/b", "a\n", "é", "a=b", "lower", "metadata", "primary", "slot0", "slot15", "control"],
)
def test_labels_that_are_refused(label: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_label(label)
    assert caught.value.hint


@given(st.text(max_size=60))
def test_whatever_is_taken_the_header_can_hold(text: str) -> None:
    """A name that the command line takes and the header does not would make a disk that nobody can read."""
    for check, kind in ((check_name, Name), (check_label, Label)):
        pattern = next(meta.pattern for meta in kind.__metadata__)
        try:
            check(text)
        except UsageError:
            continue
        assert re.search(pattern, text)


def test_slot_sets_are_as_large_as_their_room_on_the_disk() -> None:
    assert regions.SLOTS == 2 * SLOTS_PER_SET == 2 * regions.SLOTS_PER_SET


def test_new_uuids_are_random_and_fit_the_header() -> None:
    drawn = {new_uuid() for _ in range(100)}
    assert len(drawn) == 100
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in drawn)
