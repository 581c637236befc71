# SPDX-License-Identifier: GPL-2.0-or-later
"""Which disks of this machine are members of which mirror: every header is read, none is trusted.

A device under another one (a disk below a dm-delay, say) shows the same header as the device on it; the topmost one
is the member. A header on another device than the one it was written for is a copy, and is not taken.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from dmsoft.errors import DmsoftError, MetadataError, NotFoundError, RefusedError
from dmsoft.inventory.sysfs import HOST, BlockDevice, all_devices
from dmsoft.member import header, keys, regions
from dmsoft.member.header import HeaderBadError, Scan
from dmsoft.member.identity import identify, identity_of, matches
from dmsoft.member.keys import KeyFileError
from dmsoft.member.payload import AnyPayload, Cache, Identity, Metadata, Primary, Secondary
from dmsoft.mirror import hung, registry
from dmsoft.mirror.names import PREFIX
from dmsoft.mirror.patience import patiently
from dmsoft.mirror.plan import Placed

# Reading these could spin up a motor, hang or make no sense.
_NEVER = {"cdrom", "floppy", "zram"}
_ASLEEP_SECONDS = 1.0


class DuplicateError(RefusedError):
    """Two devices say that they are the same member.

    One is a copy of the other, made with dd or by a cheap enclosure, or a mirror of that name came from elsewhere.
    dmsoft does not guess. Unplug the one you do not mean, or zero its first MiB.
    """

    code = "duplicate-member"


class WrongDeviceError(RefusedError):
    """A dmsoft header stands on another device than it was written for.

    Its size or its names under /dev/disk/by-id differ from those recorded, so it is a copy, or the disk sits in another
    enclosure. Nothing is written to it. Use the original, or remove that member and add the disk anew.
    """

    code = "wrong-device"


class UnsignedError(RefusedError):
    """A header is not signed with this machine's key for its mirror.

    The disk comes from another machine, its key file in /etc/dmsoft/keys is lost, or somebody forged it. Nothing is
    copied onto it. Look at it with `dmsoft examine`; bring the key file over, or make the mirror anew.
    """

    code = "not-authentic"


@dataclass(frozen=True, slots=True)
class Member:
    """One device with a valid header. ``verified`` None: this host has no key for the mirror; ``doubt``: why nothing
    that it says of its data may be believed."""

    device: BlockDevice
    payload: AnyPayload
    verified: bool | None
    torn: bool = False
    doubt: str | None = None

    @property
    def number(self) -> str:
        return f"{self.device.major}:{self.device.minor}"

    def is_genuine(self) -> bool:
        """Whether the header is not known to be forged and is on the device that it was written for."""
        return self.verified is not False and matches(self.payload.identity, identity_of(self.device)) is None


@dataclass(frozen=True, slots=True)
class Census:
    """All members seen at one moment, and devices whose headers are both bad (path and what is wrong). ``asleep``: the
    paths of devices that were not read, because they, or what they stand on, are suspended."""

    members: tuple[Member, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()
    asleep: tuple[str, ...] = ()

    def find(self, member_uuid: str, recorded: Identity, key_required: bool = True) -> Member | None:
        """The device that is the member ``member_uuid``, None when it is not here.

        A header is easily copied, so the device's own identity decides between several with one uuid. Raises
        `RefusedError` when what is here is not the recorded device or not signed, `DuplicateError` when two are.
        """
        claims = [m for m in self.members if m.payload.member_uuid == member_uuid]
        signed = [m for m in claims if m.verified or not key_required]
        if claims and not signed:
            path = claims[0].device.path
            raise UnsignedError(
                f"The header on {path} is not signed with this host's key.",
                hint=f"Nothing is copied onto it; look at it with `dmsoft examine {path}`.",
            )
        verdicts = [(m, matches(recorded, identity_of(m.device))) for m in signed]
        same = [m for m, differs in verdicts if differs is None]
        if len(same) > 1:
            paths = " and ".join(m.device.path for m in same)
            raise DuplicateError(
                f"{paths} carry the same member header, so one is a copy of the other.",
                hint="Unplug the copy, or wipe its first MiB.",
            )
        if verdicts and not same:
            device, differs = verdicts[0][0].device, verdicts[0][1]
            raise WrongDeviceError(
                f"{device.path} is not the device that was recorded: {differs}",
                hint="Use the original disk, or remove that secondary and add this one anew.",
            )
        return same[0] if same else None

    def broken_at(self, recorded: Identity) -> tuple[str, str] | None:
        """The device of that identity whose header cannot be used, and why."""
        return next((each for each in self.broken if _is_same(each[0], recorded)), None)

    def primaries(self) -> list[Member]:
        return [m for m in self.members if isinstance(m.payload, Primary)]


def census(devices: Iterable[BlockDevice] | None = None) -> Census:
    """Read the header of every block device that could be a member, and wait for none that does not answer."""
    everything = list(all_devices() if devices is None else devices)
    by_name = {device.name: device for device in everything}
    members, broken = [], []
    candidates = [device for device in everything if _candidate(device, by_name)]
    asleep = _asleep(candidates, everything)
    wanted = [device for device in candidates if device not in asleep and not hung.has_thread(hung.disk_of(device))]
    for device, answer in zip(wanted, _scans(wanted), strict=True):
        scan, err = (None, None) if answer is None else answer
        if isinstance(err, MetadataError | KeyFileError):
            broken.append((device.path, err.message))
        elif err is not None and not isinstance(err, DmsoftError):
            raise err
        elif scan is None:
            continue  # a disk that cannot be read is no member that can be used; it shows as missing
        elif scan.header is not None:
            torn = any(copy.status != "ok" for copy in scan.copies)
            members.append(Member(device, scan.header.payload, scan.header.verified, torn, scan.doubt))
        elif scan.is_member:
            broken.append((device.path, "; ".join(copy.reason or copy.status for copy in scan.copies)))
    return Census(tuple(members), tuple(broken), tuple(device.path for device in asleep))


def _scans(wanted: list[BlockDevice]) -> list[tuple[Scan | None, BaseException | None] | None]:
    """None for a disk that does not answer, and for what else is on it."""
    silent: set[str] = set()

    def scan(device: BlockDevice) -> Scan | None:
        return None if hung.disk_of(device) in silent else _scan(device)

    def given_up_on(index: int, thread: int) -> None:
        disk = hung.disk_of(wanted[index])
        silent.add(disk)
        hung.note(disk, os.getpid(), thread)

    return patiently([partial(scan, device) for device in wanted], given_up_on=given_up_on)


def _asleep(candidates: list[BlockDevice], everything: Iterable[BlockDevice]) -> list[BlockDevice]:
    """Those that a read would wait for, maybe for ever. What is suspended for a moment only (a snapshot is made, say)
    is waited for."""
    if not any(device.suspended for device in everything):
        return []
    deadline, found = time.monotonic() + _ASLEEP_SECONDS, candidates
    while (found := [device for device in found if _sleeps(device)]) and time.monotonic() < deadline:
        time.sleep(_ASLEEP_SECONDS / 20)
    return found


def _sleeps(device: BlockDevice) -> bool:
    try:
        return HOST.is_asleep(HOST.device(device.name))
    except DmsoftError:
        return True  # it is going away


def _scan(device: BlockDevice) -> Scan:
    scan = header.read(device.path, key=keys.load)
    if scan.header is not None:
        regions.check(scan.header.payload, device.size_bytes)
    return scan


def _is_same(path: str, recorded: Identity) -> bool:
    try:
        return bool(recorded.by_id) and matches(recorded, identify(path)) is None
    except DmsoftError:
        return False


def _candidate(device: BlockDevice, by_name: dict[str, BlockDevice]) -> bool:
    if device.size_bytes == 0 or device.kind in _NEVER or (device.dm_uuid or "").startswith(PREFIX):
        return False
    holders = [by_name[name] for name in device.holders if name in by_name]
    return all((holder.dm_uuid or "").startswith(PREFIX) for holder in holders)


@dataclass(frozen=True, slots=True)
class Assembly:
    """A mirror's members as found: the primary, and whatever else of it is here. ``metadata`` None: on the primary, or
    not here (`dmsoft.mirror.plan.metadata_place` tells). ``problems`` by label: why a
    device that is here cannot be used; ``doubt`` why the primary's header is not to be believed about its data."""

    primary: Placed[Primary]
    primary_device: BlockDevice
    key: bytes
    metadata: Placed[Metadata] | None
    secondaries: dict[str, Placed[Secondary]]
    caches: dict[str, Placed[Cache]]
    devices: dict[str, BlockDevice]
    problems: dict[str, DmsoftError]
    doubt: str | None = None


def doubted(payload: Secondary, reason: str | None) -> Secondary:
    """The header as it has to be understood when ``reason`` casts doubt on it."""
    return payload if reason is None else payload.replace(sync=payload.sync.doubted(reason))


def primary_of(name: str, seen: Census) -> Member:
    """The primary of the mirror ``name``; raises `NotFoundError`, or `DuplicateError` for two mirrors of a name."""
    known = next((e for e in registry.entries() if e.name == name), None)
    found = [m for m in seen.primaries() if m.payload.mirror_name == name]
    # A disk with a forged header must not keep the mirror from its user; alone it is told what it is.
    found = [m for m in found if m.verified] or found
    if known is not None:
        found = [m for m in found if m.payload.mirror_uuid == known.mirror_uuid]
        bad = None if found else seen.broken_at(known.primary)
        if bad is not None:
            raise HeaderBadError(
                f"The primary of {name}, {bad[0]}, has a header that cannot be used: {bad[1]}",
                hint="Look at it with `dmsoft examine`; its data are still there, but nothing may act on them.",
            )
    if not found:
        what = f"The primary of the mirror {name} is not here." if known else f"There is no mirror named {name}."
        hint = "Plug in its primary; `dmsoft status` lists the mirrors that are known."
        if seen.asleep:
            hint = f"{' and '.join(seen.asleep)} could not be read, being suspended; see `dmsetup info`."
        raise NotFoundError(what, hint=hint)
    if len({m.payload.member_uuid for m in found}) > 1:
        paths = ", ".join(m.device.path for m in found)
        raise DuplicateError(f"{paths} are primaries of mirrors named {name}.", hint="Unplug the one you do not mean.")
    first = found[0]
    member = seen.find(first.payload.member_uuid, first.payload.identity, key_required=first.verified is True)
    if member is None:
        raise NotFoundError(f"There is no mirror named {name}.")
    return member


def assemble(name: str, seen: Census | None = None) -> Assembly:
    """Find the mirror's members and check each against the primary's record: signature, identity, mirror.

    Raises for a primary that is missing, doubled or not authentic; a secondary with a problem is only noted.
    """
    seen = census() if seen is None else seen
    member = primary_of(name, seen)
    payload = member.payload
    if not isinstance(payload, Primary):
        raise NotFoundError(f"There is no mirror named {name}.")
    key = _authentic(member)
    problems: dict[str, DmsoftError] = {}
    secondaries: dict[str, Placed[Secondary]] = {}
    caches: dict[str, Placed[Cache]] = {}
    devices: dict[str, BlockDevice] = {}
    for record in payload.members:
        try:
            found = _member(seen, record.member_uuid, record.identity, payload.mirror_uuid)
            if found is not None and isinstance(found.payload, Secondary):
                secondaries[record.label] = Placed(doubted(found.payload, found.doubt), found.number)
                devices[record.label] = found.device
            if record.via.cache_uuid is not None and record.via.cache_identity is not None:
                cache = _member(seen, record.via.cache_uuid, record.via.cache_identity, payload.mirror_uuid)
                if cache is not None and isinstance(cache.payload, Cache):
                    caches[record.label] = Placed(cache.payload, cache.number)
            bad = seen.broken_at(record.identity) if found is None else None
            if bad is not None:
                problems[record.label] = HeaderBadError(
                    f"The header of {record.label} on {bad[0]} cannot be used: {bad[1]}",
                    hint=f"Nothing is written to it; look at it with `dmsoft examine {bad[0]}`.",
                )
        except RefusedError as err:
            problems[record.label] = err
    return Assembly(
        Placed(payload, member.number), member.device, key, _metadata(seen, payload),
        secondaries, caches, devices, problems, member.doubt,
    )  # fmt: skip


def _authentic(member: Member) -> bytes:
    key = keys.load(member.payload.mirror_uuid)
    if key is None:
        raise UnsignedError(
            f"{member.device.path} belongs to a mirror of another host: this one has no key for it.",
            hint="Bring the key file over from /etc/dmsoft/keys of that host.",
        )
    if not member.verified:
        raise UnsignedError(
            f"The header on {member.device.path} is not signed with this host's key, so it may be forged.",
            hint="Look at it with `dmsoft examine`; restore the right key, or make the mirror anew.",
        )
    return key


def _member(seen: Census, member_uuid: str, recorded: Identity, mirror_uuid: str) -> Member | None:
    """The member of that uuid if it is here and what was recorded; raises `RefusedError` if it is not that."""
    member = seen.find(member_uuid, recorded)
    return member if member is not None and member.payload.mirror_uuid == mirror_uuid else None


def _metadata(seen: Census, primary: Primary) -> Placed[Metadata] | None:
    if primary.metadata is None:
        return None
    found = _member(seen, primary.metadata.member_uuid, primary.metadata.identity, primary.mirror_uuid)
    if found is None or not isinstance(found.payload, Metadata):
        return None
    return Placed(found.payload, found.number)
