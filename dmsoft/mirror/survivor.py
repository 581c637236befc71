# SPDX-License-Identifier: GPL-2.0-or-later
"""A secondary by itself, for the day its primary is lost: which point in time it is, made whole where its journal can
do that. It takes the disk and the key, and nothing else of the mirror.
"""

import threading

import msgspec

from dmsoft.errors import DeviceError, NotFoundError
from dmsoft.inventory.sysfs import block_device
from dmsoft.member import header, keys
from dmsoft.member.gate import GatedDevice, open_exclusive
from dmsoft.member.header import Header
from dmsoft.member.identity import identity_of
from dmsoft.member.payload import Secondary
from dmsoft.member.record import Record
from dmsoft.mirror.arrival import Sight, genuine
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names
from dmsoft.mirror.progress import Progress, Reporter
from dmsoft.resync import recovery
from dmsoft.resync.segments import JournalDamagedError
from dmsoft.units import SECTOR


class NoWholeCopyError(DeviceError):
    """What the secondary holds is not known to be the mirror as it was at one moment.

    It was never copied to the end, a copy that goes straight to its place was cut off, it was written behind when the
    mirror ended, or somebody else wrote to the disk. Most of it may well be good. Take another secondary if there is
    one; else map it read-only, look into it with the file system's check (fsck -n), and save what you need before
    anything is written to it.
    """

    code = "no-whole-copy"


class Survivor(msgspec.Struct, frozen=True):
    """What a secondary holds by itself. ``consistent_as_of``: the point in time that it is as a whole, null if it is
    none; ``doubt``: why that is not to be relied on; ``bytes_applied``: from its journal, in a dry run what there is to
    apply; ``table``: a device-mapper table for its data."""

    device: str
    name: str
    label: str
    mirror_uuid: str
    consistent_as_of: str | None
    doubt: str | None
    bytes_applied: int
    data_offset_bytes: int
    data_bytes: int
    table: str


def recover(
    path: str, reporter: Reporter, cancelled: threading.Event, *, dry_run: bool = False
) -> tuple[Survivor, NoWholeCopyError | None]:
    """Apply a journal that was committed on the secondary at ``path``, and say what the disk holds.

    The second value says so when that is no point in time. Raises `NotFoundError` for what is no secondary, and what
    gate and header have to say; a run that is cut off goes on the next time.
    """
    found = _look(path)
    names = Names(found.mirror_name, found.mirror_uuid)
    with locked(names.mirror_uuid, "operation", name=names.name, verb="recover"):
        key = keys.load(names.mirror_uuid)
        opened = open_exclusive(
            path, purpose="member", expect=found.identity, member_uuid=found.member_uuid, own_uuid_prefix=names.prefix
        )
        with opened as disk, Progress(names.mirror_uuid, reporter) as progress:
            scan = header.read(disk, key=key)
            before = scan.header
            if key is None or before is None or not before.verified:
                raise DeviceError(f"{path} changed while it was looked at.", hint="Try again.")
            staged = _committed(disk, before, key)
            after = before
            if not dry_run and scan.doubt is None:
                progress.phase("apply", staged.length if staged else 0)
                after = recovery.recover(disk, before, key, cancelled=cancelled, on_progress=progress.advance)
    payload = after.payload
    if not isinstance(payload, Secondary):
        raise TypeError("the gate lets only this secondary through")
    sync = staged.sync if staged is not None and dry_run and scan.doubt is None else payload.sync
    applied = staged.length if staged is not None and sync == staged.sync else 0
    data = payload.regions["data"]
    survivor = Survivor(
        path, names.name, payload.label, names.mirror_uuid, sync.consistent_as_of if sync.consistent else None,
        scan.doubt or sync.doubt, applied, data.offset, data.length,
        f"0 {data.length // SECTOR} linear {path} {data.offset // SECTOR}",
    )  # fmt: skip
    if survivor.consistent_as_of is None or survivor.doubt is not None:
        return survivor, NoWholeCopyError(
            f"The secondary {payload.label} on {path} is not known to be a whole copy of {names.name}.",
            hint="Take another secondary; if there is none, see `dmsoft explain no-whole-copy`.",
        )
    return survivor, None


def _look(path: str) -> Secondary:
    device = block_device(path)
    found = header.require(path, key=keys.load)
    genuine(Sight(path, identity_of(device), header.read(path, key=keys.load), found))
    if not isinstance(found.payload, Secondary):
        raise NotFoundError(
            f"{path} is not a secondary but the {found.payload.role} of {found.payload.mirror_name}.",
            hint="Name the disk of a secondary; `dmsoft devices` lists them.",
        )
    return found.payload


def _committed(disk: GatedDevice, found: Header, key: bytes) -> Record | None:
    try:
        record = recovery.found(disk, found, key)
    except JournalDamagedError:
        return None  # which its header is about to say
    return record if record is not None and record.committed else None
