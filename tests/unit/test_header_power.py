# SPDX-License-Identifier: GPL-2.0-or-later
"""What a power cut, or a killed writer, can leave of each way to write a header."""

import random
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmsoft.member import header
from dmsoft.member.header import HEADER_BYTES, SLOT_BYTES
from tests.header_model import KEY, MEMBER, ModelDisk, PowerCutError, crashes, member, number_of, secondary


def test_order_of_writes() -> None:
    disk = member(1)
    disk.log.clear()
    header.write_granted(disk, secondary(2), KEY)
    assert [entry[:2] for entry in disk.log] == [("flush", 0), ("write", 0), ("flush", 0)]
    disk.log.clear()
    header.write_withdrawn(disk, secondary(3), KEY)
    order = [("flush", 0), ("write", SLOT_BYTES), ("flush", 0), ("write", 0), ("flush", 0)]
    assert [entry[:2] for entry in disk.log] == order


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_power_cut_in_granted_and_withdrawn(seed: int, old_padding: int, new_padding: int, withdrawn: bool) -> None:
    before = member(1)
    header.write_granted(before, secondary(2, padding=old_padding), KEY)
    new = secondary(3, padding=new_padding)
    write = header.write_withdrawn if withdrawn else header.write_granted
    found = crashes(before, lambda disk: write(disk, new, KEY), seed)
    for disk in found:
        scan = header.read(disk, key=KEY)
        assert scan.header is not None and scan.header.verified and scan.doubt is None
        assert number_of(scan.header.payload) in (2, 3)
    assert number_of(header.require(found[-1]).payload) == 3
    assert number_of(header.require(found[0]).payload) == 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_after_a_withdrawal_neither_copy_has_the_old_promise(seed: int, padding: int) -> None:
    disk = member(1)
    header.write_granted(disk, secondary(2), KEY)
    header.write_withdrawn(disk, secondary(3, padding=padding), KEY)
    for slot in (0, 1):
        spoiled = disk.cut(lambda _: False)
        spoiled.medium[slot * SLOT_BYTES + 32] ^= 1
        assert number_of(header.require(spoiled).payload) == 3
    # A later grant that is cut, and then the other copy lost too, still never goes back behind the withdrawal.
    for crashed in crashes(disk, lambda d: header.write_granted(d, secondary(4), KEY), seed):
        for slot in (0, 1):
            spoiled = crashed.cut(lambda _: False)
            spoiled.medium[slot * SLOT_BYTES + 32] ^= 1
            found = header.read(spoiled).header
            assert found is None or number_of(found.payload) in (3, 4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_power_cut_in_first(seed: int, over_a_member: bool) -> None:
    before = ModelDisk(random.Random(seed).randbytes(HEADER_BYTES))
    if over_a_member:
        header.write_first(before, secondary(1, member_uuid="e" * 32), KEY)
        header.write_granted(before, secondary(2, member_uuid="e" * 32), KEY)
    seen = set()
    for disk in crashes(before, lambda d: header.write_first(d, secondary(9), KEY), seed):
        scan = header.read(disk, key=KEY)
        seen.add(None if scan.header is None else number_of(scan.header.payload))
        assert (scan.header is not None) == scan.is_member
        if scan.header is not None and scan.header.payload.member_uuid == MEMBER:
            assert scan.header.verified and scan.doubt is None
            image = bytearray(disk.medium)
            for copy in scan.copies:
                at = copy.slot * SLOT_BYTES
                length = struct.unpack_from("<I", image, at + 28)[0]
                image[at : at + 4096] = bytes(4096)
                image[at + 4096 : at + 8192] = bytes(4096)
                assert length < 4096
            assert not any(image), "something of what was there before is left in a member's header region"
    assert seen == ({2, None, 9} if over_a_member else {None, 9})


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_power_cut_in_wipe(seed: int, odd: bool) -> None:
    before = member(1)
    header.write_granted(before, secondary(2), KEY)
    if odd:
        header.write_granted(before, secondary(2), KEY)
    seen = set()
    for disk in crashes(before, header.wipe, seed):
        scan = header.read(disk)
        seen.add(None if scan.header is None else number_of(scan.header.payload))
        assert (scan.header is not None) == scan.is_member
    assert seen == {2, None}  # never 1, the older copy


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_power_cut_in_wipe_after_a_writer_was_killed(seed: int) -> None:
    before = member(1)
    header.write_granted(before, secondary(2), KEY)
    before.budget = 2  # it dies before the flush of what it wrote
    with pytest.raises(PowerCutError):
        header.write_granted(before, secondary(3), KEY)
    for disk in crashes(before, header.wipe, seed):
        found = header.read(disk).header
        assert found is None or number_of(found.payload) in (2, 3)


def test_wipe_works_where_nothing_can_be_used() -> None:
    disk = member(1)
    for slot in (0, 1):
        disk.medium[slot * SLOT_BYTES + 40] ^= 1
    header.wipe(disk)
    assert not header.read(disk).is_member


Step = tuple[str, int | None, int, bool]
steps = st.tuples(
    st.sampled_from(["granted", "withdrawn"]),
    st.one_of(st.none(), st.integers(0, 6)),  # the operation at which it dies
    st.integers(0, 2**32),
    st.booleans(),  # it takes the power with it, or the process alone dies and the disk's cache lives on
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=12))
@example([("granted", 2, 3, False), ("granted", 2, 5, True)])
@example([("withdrawn", 2, 3, False), ("withdrawn", 2, 5, True)])
def test_any_history_of_writes_kills_and_power_cuts(history: list[Step]) -> None:
    """There is always a header, and it is never older than the last write that returned.

    After a withdrawal that returned, that also holds for each copy alone.
    """
    disk = member(0)
    returned = withdrawn = 0
    for number, (kind, dies_at, seed, power) in enumerate(history, 1):
        rng = random.Random(seed)
        disk.budget, disk.reach = dies_at, rng.randrange(1, 20)
        payload = secondary(number, padding=rng.randrange(8))
        try:
            (header.write_granted if kind == "granted" else header.write_withdrawn)(disk, payload, KEY)
        except PowerCutError:
            if power:
                some = rng.random()
                disk = disk.cut(lambda _, some=some, rng=rng: rng.random() < some)
        else:
            returned = number
            withdrawn = number if kind == "withdrawn" else withdrawn
        disk.budget = None
        after = disk.cut(lambda _, rng=rng: rng.random() < 0.5)
        for seen in (disk, after):
            assert returned <= number_of(header.require(seen, key=KEY).payload) <= number
        for slot in (0, 1):
            after.medium[slot * SLOT_BYTES + 40] ^= 1
            left = header.read(after).header
            assert left is None or number_of(left.payload) >= withdrawn
            after.medium[slot * SLOT_BYTES + 40] ^= 1
