# SPDX-License-Identifier: GPL-2.0-or-later
"""What is to be done with a disk that appeared: nothing, unless it is proven to be a member of a mirror of this host.

Pure. Two judgements, each of which raises what speaks against the disk: of the disk alone (`genuine`), which needs no
other disk to be looked at, and of its place in its mirror (`judge`). Where both have no objection, `Welcome` says what
to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dmsoft.errors import RefusedError
from dmsoft.member import regions
from dmsoft.member.header import Header, Scan
from dmsoft.member.identity import matches
from dmsoft.member.payload import AnyPayload, Cache, Identity, MemberRecord, Metadata, Primary, Secondary
from dmsoft.mirror.generation import require_older
from dmsoft.mirror.locate import DuplicateError, UnsignedError, WrongDeviceError
from dmsoft.mirror.trust import objection

Action = Literal["none", "start", "restart", "catch-up"]
Fine = Literal["caught-up", "started", "already", "waiting", "ejected", "stopped"]


class ForeignMirrorError(RefusedError):
    """The disk belongs to a mirror that this machine has no key for.

    It comes from another machine, or the key file of its mirror in /etc/dmsoft/keys is lost. Nothing is copied from or
    to it. To use its mirror here, bring the key file over from the machine that made it.
    """

    code = "foreign-mirror"


class NotRegisteredError(RefusedError):
    """The disk says that it is a member of a mirror, and the mirror's primary does not know it.

    It was removed from the mirror while it was not here. Nothing is copied onto it. `dmsoft add` takes it in anew when
    its first MiB was zeroed.
    """

    code = "not-registered"


@dataclass(frozen=True, slots=True)
class Sight:
    """A disk that appeared: what its header region holds, verified with this host's key for its mirror, and what the
    disk is. ``header`` is that of ``scan``."""

    path: str
    identity: Identity
    scan: Scan
    header: Header

    @property
    def payload(self) -> AnyPayload:
        return self.header.payload


@dataclass(frozen=True, slots=True)
class Home:
    """What is true of the disk's mirror at this moment.

    ``primary``: its genuine primary, None if that is not here; ``active``: it runs; ``era``: the current one, None if
    not known; ``rivals``: the other disks that carry this member's header, signed, by path; ``in_place``: the kernel
    uses this disk for the mirror already; ``let_go``: this disk was ejected (a primary: its mirror was stopped) by a
    person and not unplugged since; ``secondaries``: labels of those that are here.
    """

    primary: Primary | None = None
    active: bool = False
    era: int | None = None
    rivals: Sequence[tuple[str, Identity]] = ()
    in_place: bool = False
    let_go: bool = False
    secondaries: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """What to do with a disk that is ours. ``verdict`` is what it comes to when that has succeeded; ``label`` is the
    secondary to be caught up."""

    action: Action
    verdict: Fine
    reason: str
    label: str | None = None


def genuine(sight: Sight) -> None:
    """Raise unless the header fits the disk, is signed with this host's key, and was written for this very disk."""
    payload = sight.payload
    regions.check(payload, sight.identity.size_bytes)
    if sight.header.verified is None:
        raise ForeignMirrorError(
            f"{sight.path} belongs to a mirror of another host: this one has no key for '{payload.mirror_name}'.",
            hint="To use that mirror here, bring its key file over from /etc/dmsoft/keys of that host.",
        )
    if not sight.header.verified:
        raise UnsignedError(
            f"The header on {sight.path} is not signed with this host's key, so it may be forged.",
            hint=f"Nothing is copied onto it; look at it with `dmsoft examine {sight.path}`.",
        )
    _require_identity(sight, payload.identity)


def judge(sight: Sight, home: Home) -> Welcome:
    """What to do with a `genuine` disk; raises what speaks against it."""
    payload, primary = sight.payload, home.primary
    if isinstance(payload, Primary):
        _require_alone(sight, home, payload.identity)
        return _primary(home)
    if primary is None:
        return Welcome("none", "waiting", "its primary is not here")
    if isinstance(payload, Metadata):
        return _metadata(sight, home, primary)
    if isinstance(payload, Cache):
        return _cache(sight, home, primary)
    return _secondary(sight, home, primary, payload)


def _primary(home: Home) -> Welcome:
    if home.in_place:
        return Welcome("none", "already", "the mirror runs on it")
    if home.active:
        return Welcome("restart", "started", "the mirror stands on a disk that is gone, and this is its primary")
    if home.let_go:
        return Welcome("none", "stopped", "its mirror was stopped, and the disk was not unplugged since")
    return Welcome("start", "started", "it is the primary")


def _metadata(sight: Sight, home: Home, primary: Primary) -> Welcome:
    record = primary.metadata
    if record is None or record.member_uuid != sight.payload.member_uuid:
        raise _not_registered(sight)
    _require_identity(sight, record.identity)
    _require_alone(sight, home, record.identity)
    if home.active:
        return Welcome("none", "already", "its mirror runs")
    if home.let_go:
        return Welcome("none", "stopped", "its mirror was stopped")
    return Welcome("start", "started", "it keeps the record of written blocks, and the primary is here")


def _cache(sight: Sight, home: Home, primary: Primary) -> Welcome:
    record = next((r for r in primary.members if r.via.cache_uuid == sight.payload.member_uuid), None)
    if record is None or record.via.cache_identity is None:
        raise _not_registered(sight)
    _require_identity(sight, record.via.cache_identity)
    _require_alone(sight, home, record.via.cache_identity)
    if home.active and record.label not in home.secondaries:
        return Welcome("none", "waiting", f"it serves {record.label}, which is not here")
    return _catch_up(home, record, f"it serves {record.label}")


def _secondary(sight: Sight, home: Home, primary: Primary, payload: Secondary) -> Welcome:
    record = next((r for r in primary.members if r.member_uuid == payload.member_uuid), None)
    if record is None:
        raise _not_registered(sight)
    _require_identity(sight, record.identity)
    _require_alone(sight, home, record.identity)
    require_older(primary, payload)
    why = objection(primary, record, sight.header, sight.scan, home.era)
    if why is not None:
        raise why
    return _catch_up(home, record, "it is a secondary")


def _catch_up(home: Home, record: MemberRecord, reason: str) -> Welcome:
    if not home.active:
        return Welcome("none", "waiting", "its mirror does not run", record.label)
    if home.let_go:
        return Welcome("none", "ejected", "it was ejected and not unplugged since", record.label)
    if home.in_place:
        return Welcome("none", "already", "it is coupled to the primary", record.label)
    return Welcome("catch-up", "caught-up", reason, record.label)


def _require_identity(sight: Sight, recorded: Identity) -> None:
    differs = matches(recorded, sight.identity)
    if differs is not None:
        raise WrongDeviceError(
            f"The header on {sight.path} was written for another disk. {differs}",
            hint="It is a copy, or the disk sits in another enclosure; nothing is copied onto it.",
        )


def _require_alone(sight: Sight, home: Home, recorded: Identity) -> None:
    """A copy on a disk that is not the one recorded is no rival: it is known to be the copy."""
    others = [path for path, identity in home.rivals if matches(recorded, identity) is None]
    if others:
        raise DuplicateError(
            f"{sight.path} and {others[0]} carry the same member header, so one is a copy of the other.",
            hint="Unplug the copy, or wipe its first MiB.",
        )


def _not_registered(sight: Sight) -> NotRegisteredError:
    payload = sight.payload
    return NotRegisteredError(
        f"The mirror {payload.mirror_name} does not know the {payload.role} on {sight.path}.",
        hint="It was removed while it was away. If it is not needed, zero its first MiB.",
    )
