# SPDX-License-Identifier: GPL-2.0-or-later
"""Secondaries that go on without their primary: what is written from then on only they have, and their headers say so.

md leaves out a primary that fails a write or was unplugged, and goes on with the coupled secondaries. That is noted in
the raid slots, which lie on the primary (`dmsoft.mirror.dropped`): with the disk gone, nothing that outlives the
machine would tell which side is newer, and the primary would come back as the source. So the secondaries that md still
writes get a generation of their own in both copies of their headers, one for all as they hold the same. Nothing is
copied over them until a person chooses.

The primary cannot be asked then which disks they are. The kernel can: it is the disk under the leg, and no other is
touched; its header has to be signed, of this mirror and written for this very disk, and the gate has to let it pass.
Between the primary's failure and this mark a power cut can still lose what was written: so it is made at once.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from dmsoft.errors import DeviceError, DmsoftError, NotFoundError
from dmsoft.inventory.sysfs import HOST, BlockDevice
from dmsoft.member import header, keys
from dmsoft.member.files import read_small
from dmsoft.member.gate import open_exclusive
from dmsoft.member.payload import Secondary
from dmsoft.mirror import locate, lower
from dmsoft.mirror.execute import device
from dmsoft.mirror.generation import extended
from dmsoft.mirror.locate import Member, doubted
from dmsoft.mirror.lock import RUN_DIR
from dmsoft.mirror.lower import PrimaryDroppedError
from dmsoft.mirror.names import Names, new_uuid

_UUID = re.compile(rb"[0-9a-f]{32}")


def require_primary(names: Names, *, dry_run: bool = False) -> None:
    """`lower.require_primary`, and the secondaries' headers say what it found. Call it under the operation lock."""
    with marking(names, dry_run=dry_run):
        lower.require_primary(names)


@contextlib.contextmanager
def marking(names: Names, *, dry_run: bool = False) -> Iterator[None]:
    """The block, under the operation lock, may find that md goes on without the primary: the headers of the secondaries
    say so before that error goes on its way. ``dry_run``: nothing is written."""
    try:
        yield
    except PrimaryDroppedError as err:
        try:
            if not dry_run:
                _mark_all(names)  # without another look: a resume may have md try the primary again
        except DmsoftError as why:
            said = f"{err.message} Not all of their headers say so yet: {why.message}"
            raise PrimaryDroppedError(said, hint=err.hint) from why
        raise
    except (DmsoftError, OSError) as err:
        try:
            lower.require_primary(names)  # whatever failed may have failed of that
        except PrimaryDroppedError as dropped:
            with marking(names, dry_run=dry_run):
                raise dropped from err
        except DmsoftError:
            pass
        raise


def mark(names: Names) -> list[str] | None:
    """If md goes on without the primary, give the secondaries that it writes a generation of their own; returns the
    labels of those that have it now, whoever gave it, and None if it does not. A second call adds nothing.

    Call it under the operation lock. Each is tried; raises the first error, a `DmsoftError`, at the end.
    """
    return _mark_all(names) if lower.goes_without_primary(names) else None


def _mark_all(names: Names) -> list[str]:
    marked, first = [], None
    generation = _generation(names)
    for label in _written(names):
        try:
            if (disk := _disk(names, label)) is not None:
                _mark(names, label, disk, generation)
                marked.append(label)
        except DmsoftError as err:
            first = first or err
    if first is not None:
        raise first
    return marked


def forget(names: Names) -> None:
    """A new raid1 is made: should it ever lose its primary, that is another matter. Raises `DeviceError`."""
    try:
        _path(names).unlink(missing_ok=True)
    except OSError as err:
        raise DeviceError(f"{_path(names)} cannot be removed: {err.strerror}.", hint="See what blocks /run.") from err


def _written(names: Names) -> list[str]:
    """Labels of the coupled secondaries that md has in sync: one that it dropped lacks what was written since."""
    coupled = lower.attached_labels(names, lower.leg_labels(names))
    said = {label: lower.leg_health(names, names.leg(label), asleep=True) for label in coupled}
    in_sync = "A" if "A" in said.values() else "a"  # suspended, it may say so of none
    return sorted(label for label, letter in said.items() if letter == in_sync)


def _disk(names: Names, label: str) -> BlockDevice | None:
    """The disk that the leg stands on, None if it was unplugged."""
    nodes = (names.leg_data(label), names.leg(label))  # under a writecache, or the leg itself
    under = next(node for node in nodes if device(node).info() is not None)
    (number,) = device(under).deps()
    try:
        return HOST.by_number(*number)
    except NotFoundError:
        return None


def _mark(names: Names, label: str, on: BlockDevice, generation: str) -> None:
    member = next(iter(locate.census([on]).members), None)  # one that hangs is not waited for
    if member is None or not _is_its(names, label, member):
        raise DeviceError(
            f"What {label} of {names.name} stands on has no header that is signed and its own.",
            hint="Look at it with `dmsoft examine`; do not let a resync come near it.",
        )
    key = keys.load(names.mirror_uuid)
    with open_exclusive(
        member.device.path,
        purpose="member",
        expect=member.payload.identity,
        member_uuid=member.payload.member_uuid,
        own_uuid_prefix=names.prefix,
    ) as disk:
        scan = header.read(disk, key=key)
        found = None if scan.header is None or not scan.header.verified else scan.header.payload
        if disk.exclusive or not isinstance(found, Secondary):
            raise DeviceError(f"{disk.path} is not under a leg of {names.name} any more.", hint="Try again.")
        # Written anew, the header takes the place of both copies: what was in doubt has to stay so.
        wanted = doubted(found, scan.doubt).replace(generation=extended(found.generation, generation))
        if any(copy.payload != wanted for copy in scan.copies):
            header.write_withdrawn(disk, wanted, key)


def _is_its(names: Names, label: str, member: Member) -> bool:
    payload = member.payload
    whose = (payload.mirror_uuid, payload.label) if isinstance(payload, Secondary) else None
    return whose == (names.mirror_uuid, label) and member.verified is True and member.is_genuine()


def _generation(names: Names) -> str:
    """The one that the secondaries of this raid1 share. It is kept in /run, as the raid1 does not outlive the boot
    either; where it cannot be kept each call draws another, which is as safe."""
    with contextlib.suppress(OSError):
        if _UUID.fullmatch(known := read_small(_path(names))):
            return known.decode()
    fresh, path = new_uuid(), _path(names)
    with contextlib.suppress(OSError):
        beside = path.with_suffix(".tmp")
        beside.write_text(fresh)
        beside.replace(path)
    return fresh


def _path(names: Names) -> Path:
    return RUN_DIR / f"{names.mirror_uuid}.alone"
