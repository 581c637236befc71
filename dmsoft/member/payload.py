# SPDX-License-Identifier: GPL-2.0-or-later
"""The JSON payload of a member's header, as strict frozen types.

Decoding trusts nothing: unknown fields, wrong types, numbers out of range and strings that are too long are all
`MetadataError`. What the numbers mean together (regions inside the device, no overlap) is checked by
`dmsoft.member.regions`. Offsets and lengths are bytes; times are RFC 3339 UTC.
"""

from typing import Annotated, Literal, Self

import msgspec
from msgspec import Meta, Struct

from dmsoft.errors import MetadataError

MAX_BYTES = (1 << 63) - 1
MAX_SECONDARIES = 16
MAX_GENERATIONS = 256
MAX_BY_ID = 64
MAX_SECONDS = 1e9

Bytes = Annotated[int, Meta(ge=0, le=MAX_BYTES)]
Count = Annotated[int, Meta(ge=0, le=MAX_BYTES)]
EraNumber = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,47}\Z")]
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+]{0,31}\Z")]
Time = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z\Z")]
Reason = Annotated[str, Meta(max_length=200)]
# Generations, newest last.
History = Annotated[tuple[Uuid, ...], Meta(min_length=1, max_length=MAX_GENERATIONS)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
# A name in a folder, and nothing else: it is looked for under /dev/disk/by-id, also before a header is proven ours.
ById = Annotated[str, Meta(pattern=r"^(?!\.{1,2}\Z)[^/\x00-\x1f\x7f-\x9f]+\Z", max_length=255)]

Mode = Literal["periodic", "write-behind"]


class Value(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything in a payload: immutable, compared by value, nothing unknown let through."""

    def replace(self, **changes: object) -> Self:
        return msgspec.structs.replace(self, **changes)


class Region(Value, frozen=True):
    """A range of one device, in bytes."""

    offset: Bytes
    length: Bytes

    @property
    def end(self) -> int:
        return self.offset + self.length


class Identity(Value, frozen=True):
    """What a device was when it became a member: names under /dev/disk/by-id (may be none), and its size."""

    size_bytes: Bytes
    by_id: Annotated[tuple[ById, ...], Meta(max_length=MAX_BY_ID)] = ()


class Via(Value, frozen=True):
    """The way to one secondary's data region in write-behind mode."""

    type: Literal["direct", "writecache", "delay"] = "direct"
    delay_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 0
    cache_uuid: Uuid | None = None
    cache_identity: Identity | None = None


class Partial(Value, frozen=True):
    """How far a copy came before it was cut off: of the blocks that it owed, those before block ``below`` hold every
    write of an era < ``until``."""

    until: EraNumber
    below: Annotated[int, Meta(ge=0, le=MAX_BYTES)]


class Sync(Value, frozen=True):
    """What a secondary holds: every write of an era < ``era`` of the tracker life ``tracker``, on its own medium.

    ``era`` None: never copied, copy everything. ``token`` is of the last run that wrote to the data region.
    ``doubt``: why nothing is known any more, so that every block is compared; it never goes back to None except at the
    end of a resync. ``consistent`` False: a copy is or was under way straight into the data region, so the disk is no
    whole point in time. ``partial`` says what it got beyond ``era`` from a run that was cut off; beside a
    doubt, from the compare that just this doubt asks for.
    """

    era: EraNumber | None = None
    tracker: Uuid | None = None
    token: Uuid | None = None
    consistent: bool = False
    consistent_as_of: Time | None = None
    doubt: Reason | None = None
    partial: Partial | None = None

    def doubted(self, reason: str) -> Self:
        """The same for ``reason`` in doubt. How far a compare came that an earlier doubt asked for counts no more."""
        return self.replace(doubt=reason[:200], partial=None)


class Tracker(Value, frozen=True):
    """One unbroken life of the era metadata.

    ``era_floor`` is the highest era that was ever seen durable: a lower one later means that the metadata went
    back. ``clean_digest`` is the SHA-256 of era metadata block 0 taken at the last clean stop; None while the
    mirror runs and after a crash. ``formatted`` False: ``create`` has not finished, so the kernel may format.
    ``doubt``: why nothing is tracked, so that no incremental copy is possible before a new life begins.
    """

    id: Uuid
    formatted: bool = False
    era_floor: EraNumber = 0
    clean_digest: Digest | None = None
    doubt: Reason | None = None


class MemberRecord(Value, frozen=True):
    """What the primary knows of one secondary, to answer for it while it is away.

    ``pending_most``: the highest S that may stand beside ``token_pending``; None while the mirror runs on since that
    token was drawn. A primary put back from an image of its middle knows the token, but not what came after. ``rate``
    is what its last copy moved, in bytes a second. ``verify_next``: the block at which a verify goes on;
    ``verified_at``: when its last full round ended without a mismatch. ``expect_seconds``: how long it may be away.
    ``sequence`` is that of its header when a run last began or ended; a disk whose header has a lower one is an older
    copy. ``suspect``: why nothing is copied onto it before a person asks for it.
    """

    label: Label
    member_uuid: Uuid
    identity: Identity
    mode: Mode = "periodic"
    via: Via = Via()
    interval_seconds: Seconds = 300.0
    away_since: Time | None = None
    sync: Sync = Sync()
    token_pending: Uuid | None = None
    token_confirmed: Uuid | None = None
    pending_most: EraNumber | None = None
    rate: Bytes | None = None
    verify_next: Count = 0
    verified_at: Time | None = None
    expect_seconds: Seconds | None = None
    sequence: Count | None = None
    suspect: Reason | None = None


class MetadataRecord(Value, frozen=True):
    """The separate device that holds the era metadata."""

    member_uuid: Uuid
    identity: Identity


class Payload(Value, frozen=True, tag_field="role"):
    """What every role has."""

    mirror_uuid: Uuid
    mirror_name: Name
    member_uuid: Uuid
    identity: Identity
    regions: Annotated[dict[str, Region], Meta(max_length=16)]
    created: Time

    @property
    def role(self) -> str:
        """``primary``, ``secondary``, ``cache`` or ``metadata``."""
        return str(self.__struct_config__.tag)


class Primary(Payload, frozen=True, tag="primary"):
    """The primary's header; ``regions``: header, metadata (unless on another device), slots, data."""

    mode: Mode
    interval_seconds: Seconds
    block_bytes: Annotated[int, Meta(ge=4096, le=1 << 31, multiple_of=4096)]
    tracker: Tracker
    generation: History
    members: Annotated[tuple[MemberRecord, ...], Meta(max_length=MAX_SECONDARIES)] = ()
    metadata: MetadataRecord | None = None

    def member(self, label: str) -> MemberRecord | None:
        return next((record for record in self.members if record.label == label), None)

    def with_member(self, record: MemberRecord) -> Self:
        """The same header with the record of that label replaced, or added at the end."""
        kept = [record if old.label == record.label else old for old in self.members]
        if record.label not in {old.label for old in self.members}:
            kept.append(record)
        return self.replace(members=tuple(kept))

    def without_member(self, label: str) -> Self:
        return self.replace(members=tuple(old for old in self.members if old.label != label))


class Secondary(Payload, frozen=True, tag="secondary"):
    """A secondary's header; ``regions``: header, journal (unless it has none), data. S, token and tracker travel with
    the disk."""

    label: Label
    block_bytes: Annotated[int, Meta(ge=4096, le=1 << 31, multiple_of=4096)]
    generation: History
    sync: Sync = Sync()


class Cache(Payload, frozen=True, tag="cache"):
    """The header of a writecache device; it serves one secondary. ``regions``: header, data."""

    label: Label
    secondary_uuid: Uuid


class Metadata(Payload, frozen=True, tag="metadata"):
    """The header of a separate era metadata device. ``regions``: header, metadata."""


AnyPayload = Primary | Secondary | Cache | Metadata

_decoder: msgspec.json.Decoder[AnyPayload] = msgspec.json.Decoder(AnyPayload)
_encoder = msgspec.json.Encoder(order="deterministic")


def encode(payload: AnyPayload) -> bytes:
    """The payload as compact JSON, the same bytes for the same value."""
    return _encoder.encode(payload)


def decode(data: bytes) -> AnyPayload:
    """Parse a payload; raises `MetadataError` for anything that is not exactly one of the four roles."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError) as err:
        raise MetadataError(f"The header's payload is not valid: {err}.") from err
