# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done with a disk that appears: each way to be ours, and each way not to be."""

from typing import Any

import pytest

from dmsoft.errors import DmsoftError, MetadataError
from dmsoft.member.header import Copy, Header, Scan
from dmsoft.member.payload import AnyPayload, Identity, MemberRecord, Primary, Region, Sync
from dmsoft.mirror.arrival import Home, Sight, Welcome, genuine, judge
from dmsoft.units import MIB
from tests import mirror_model
from tests.mirror_model import SIZE, TOKEN, TRACKER

HERE = Identity(SIZE, ("ata-ours",))
ELSEWHERE = Identity(SIZE, ("usb-theirs",))
OTHER = "8" * 32
SYNCED = Sync(era=5, tracker=TRACKER, token=TOKEN, consistent=True)
ERA = 7


def noted(**changes: Any) -> MemberRecord:
    fields = {"identity": HERE, "sync": SYNCED, "token_confirmed": TOKEN, "sequence": 10}
    return mirror_model.record("s1").replace(**fields | changes)


def payload_of(role: str, primary: Primary, **changes: Any) -> AnyPayload:
    made: AnyPayload = primary
    if role == "secondary":
        made = mirror_model.secondary(primary, "s1", sync=SYNCED)
    elif role == "cache":
        made = mirror_model.cache("s1", "8:16", SIZE).payload
    elif role == "metadata":
        made = mirror_model.metadata("8:16", blocks=100).payload
    return made.replace(identity=HERE, **changes)


def sight(
    payload: AnyPayload, *, verified: bool | None = True, identity: Identity = HERE, sequence: int = 10,
    torn: bool = False, doubt: str | None = None,
) -> Sight:  # fmt: skip
    header = Header(sequence, payload, verified)
    copies = (Copy(0, "ok", sequence), Copy(1, "torn" if torn else "ok", sequence - 1))
    return Sight("/dev/sdx", identity, Scan(header, copies, True, doubt), header)


def home(*members: MemberRecord, **changes: Any) -> Home:
    primary = mirror_model.primary(*(members or (noted(),))).replace(identity=HERE)
    fields: dict[str, Any] = {"primary": primary, "active": True, "era": ERA, "secondaries": ("s1",)}
    return Home(**fields | changes)


def secondary_of(place: Home, **changes: Any) -> AnyPayload:
    assert place.primary is not None
    return payload_of("secondary", place.primary, **changes)


def refusal(payload: AnyPayload, place: Home, **changes: Any) -> str:
    """The code of what speaks against the disk."""
    seen = sight(payload, **changes)
    with pytest.raises(DmsoftError) as raised:
        genuine(seen)
        judge(seen, place)
    assert raised.value.hint
    return raised.value.code


def welcome(payload: AnyPayload, place: Home, **changes: Any) -> Welcome:
    seen = sight(payload, **changes)
    genuine(seen)
    return judge(seen, place)


def test_a_secondary_that_is_as_it_was_is_caught_up() -> None:
    place = home()
    found = welcome(secondary_of(place), place)
    assert (found.action, found.verdict, found.label) == ("catch-up", "caught-up", "s1")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"primary": None}, "waiting"),
        ({"active": False}, "waiting"),
        ({"let_go": True}, "ejected"),
        ({"in_place": True}, "already"),
    ],
)
def test_a_secondary_that_needs_nothing(changes: dict[str, Any], verdict: str) -> None:
    found = welcome(secondary_of(home()), home(**changes))
    assert (found.action, found.verdict) == ("none", verdict)


@pytest.mark.parametrize("role", ["primary", "secondary", "cache", "metadata"])
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"verified": None}, "foreign-mirror"),
        ({"verified": False}, "not-authentic"),
        ({"identity": ELSEWHERE}, "wrong-device"),
        ({"identity": Identity(SIZE)}, "wrong-device"),
        ({"identity": Identity(SIZE + MIB, HERE.by_id)}, "wrong-device"),
    ],
)
def test_a_header_that_is_not_ours_or_not_of_this_disk(role: str, changes: dict[str, Any], code: str) -> None:
    """Neither has a look at the mirror to be taken first."""
    seen = sight(payload_of(role, mirror_model.primary(noted())), **changes)
    with pytest.raises(DmsoftError) as raised:
        genuine(seen)
    assert raised.value.code == code


@pytest.mark.parametrize(
    "region",
    [Region(1 << 62, 1 << 62), Region(0, 4096), Region(8 * MIB, 1 << 60), Region(8 * MIB + 1, MIB), Region(SIZE, MIB)],
)
def test_absurd_regions(region: Region) -> None:
    """Even with a signature."""
    place = home()
    payload = secondary_of(place)
    with pytest.raises(MetadataError):
        genuine(sight(payload.replace(regions={**payload.regions, "data": region})))


@pytest.mark.parametrize("role", ["primary", "secondary", "cache", "metadata"])
def test_two_disks_with_one_uuid(role: str) -> None:
    via = mirror_model.via_cache("s1").replace(cache_identity=HERE)
    primary = mirror_model.primary(noted(via=via), separate=True).replace(identity=HERE)
    assert primary.metadata is not None
    primary = primary.replace(metadata=primary.metadata.replace(identity=HERE))
    place = Home(primary, True, ERA, [("/dev/sdy", HERE)])
    payload = payload_of(role, primary)
    assert refusal(payload, place) == "duplicate-member"
    # The copy of its header on another disk does not keep the real one out.
    assert welcome(payload, Home(primary, rivals=[("/dev/sdy", ELSEWHERE)])).verdict


def test_a_disk_that_was_removed_from_its_mirror() -> None:
    place = home(mirror_model.record("s2"))
    for role in ("secondary", "cache", "metadata"):
        assert place.primary is not None
        assert refusal(payload_of(role, place.primary), place) == "not-registered"


def test_a_disk_that_was_recorded_otherwise_than_its_header_says() -> None:
    place = home(noted(identity=ELSEWHERE))
    assert refusal(secondary_of(place), place) == "wrong-device"


def test_an_older_copy_by_its_number() -> None:
    place = home()
    assert refusal(secondary_of(place), place, sequence=9) == "old-copy"
    # The number before the one that a torn write would have had is no older copy.
    assert welcome(secondary_of(place), place, sequence=9, torn=True).action == "catch-up"
    assert welcome(secondary_of(place), place, sequence=12).action == "catch-up"


def test_an_older_copy_by_its_token() -> None:
    place = home(noted(token_confirmed=OTHER, sync=SYNCED.replace(token=OTHER)))
    assert refusal(secondary_of(place), place, sequence=11) == "old-copy"
    assert welcome(secondary_of(home(noted(token_pending=TOKEN))), place, sequence=10).action == "catch-up"
    never = secondary_of(place, sync=Sync())
    assert refusal(never, place, sequence=11) == "old-copy"
    fresh = home(noted(token_confirmed=None, token_pending=OTHER, sync=Sync(), sequence=None))
    assert welcome(never, fresh).action == "catch-up"


def test_an_older_primary_never_wins() -> None:
    """It was put back from an image, and the disk has what came after."""
    fresh = home(noted(token_confirmed=None, sync=Sync(), sequence=2))
    assert refusal(secondary_of(fresh), fresh) == "old-copy"
    cut_off = home(noted(token_confirmed=OTHER, token_pending=TOKEN, pending_most=4, sequence=2))
    assert refusal(secondary_of(cut_off), cut_off) == "old-copy"
    behind = home(noted(sequence=2), era=4)
    assert refusal(secondary_of(behind), behind) == "old-copy"


def test_tracking_that_began_anew_is_no_fault_of_the_disk() -> None:
    place = home(noted(token_confirmed=None, sync=SYNCED.replace(doubt="tracking began anew")))
    assert place.primary is not None
    place = home(*place.primary.members, primary=place.primary.replace(tracker=place.primary.tracker.replace(id=OTHER)))
    assert welcome(secondary_of(place), place, sequence=11).action == "catch-up"


def test_a_disk_in_doubt_waits_for_a_person() -> None:
    place = home()
    doubtful = secondary_of(place, sync=SYNCED.replace(doubt="a block differs"))
    assert refusal(doubtful, place, sequence=12) == "changed-elsewhere"
    assert refusal(secondary_of(place), place, sequence=12, doubt="Copy 1 was overwritten.") == "changed-elsewhere"
    assert refusal(secondary_of(place), home(noted(suspect="a block differs"))) == "changed-elsewhere"
    # The number of the copy that was left alone says nothing.
    assert (
        refusal(secondary_of(place), home(noted(sequence=12)), sequence=12, doubt="Overwritten.") == "changed-elsewhere"
    )
    assert refusal(secondary_of(place), home(noted(token_pending=TOKEN)), doubt="Overwritten.") == "changed-elsewhere"
    # A run that somebody asked for, and that was cut off, goes on.
    asked = home(noted(token_pending=TOKEN))
    assert welcome(doubtful, asked, sequence=12).action == "catch-up"
    assert welcome(doubtful, home(noted(sequence=12)), sequence=12).action == "catch-up"


@pytest.mark.parametrize("theirs", [("e" * 32,), (*mirror_model.GENERATION, "e" * 32)])
def test_a_disk_that_was_written_on_its_own(theirs: tuple[str, ...]) -> None:
    place = home()
    assert refusal(secondary_of(place, generation=theirs), place) == "diverged"


@pytest.mark.parametrize(
    ("changes", "action", "verdict"),
    [
        ({"active": False}, "start", "started"),
        ({"active": False, "let_go": True}, "none", "stopped"),
        ({"in_place": True}, "none", "already"),
        ({}, "restart", "started"),
    ],
)
def test_a_primary(changes: dict[str, Any], action: str, verdict: str) -> None:
    place = home(**changes)
    assert place.primary is not None
    found = welcome(place.primary, place)
    assert (found.action, found.verdict) == (action, verdict)


@pytest.mark.parametrize(
    ("changes", "action", "verdict"),
    [
        ({}, "catch-up", "caught-up"),
        ({"secondaries": ()}, "none", "waiting"),
        ({"active": False}, "none", "waiting"),
        ({"in_place": True}, "none", "already"),
        ({"primary": None}, "none", "waiting"),
    ],
)
def test_a_cache(changes: dict[str, Any], action: str, verdict: str) -> None:
    via = mirror_model.via_cache("s1").replace(cache_identity=HERE)
    place = home(noted(via=via), **changes)
    found = welcome(payload_of("cache", mirror_model.primary()), place)
    assert (found.action, found.verdict) == (action, verdict)


def test_a_device_of_metadata() -> None:
    primary = mirror_model.primary(separate=True)
    assert primary.metadata is not None
    primary = primary.replace(metadata=primary.metadata.replace(identity=HERE))
    payload = payload_of("metadata", primary)
    assert welcome(payload, home(primary=primary)).verdict == "already"
    assert welcome(payload, home(primary=primary, active=False)).action == "start"
    assert welcome(payload, home(primary=primary, active=False, let_go=True)).verdict == "stopped"
    assert welcome(payload, home(primary=None)).verdict == "waiting"
