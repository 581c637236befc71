# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk appeared: look at it, and bring it back to its mirror if it is proven ours. Nobody asked for it, so whatever
is doubtful is left untouched and reported.

The disk is read by itself first: a hostile or foreign one is refused before anything else is looked at or locked.
What happens then is decided in `dmsoft.mirror.arrival`, and the run checks all of it again behind the gate.
"""

import dataclasses
import threading

import msgspec

from dmsoft.errors import DeviceError, DmsoftError, NotFoundError
from dmsoft.inventory.sysfs import HOST, BlockDevice, block_device
from dmsoft.member import header, keys
from dmsoft.member.claim import open_readonly
from dmsoft.member.header import HEADER_BYTES, NoHeaderError
from dmsoft.member.identity import identity_of
from dmsoft.member.payload import AnyPayload, Cache, Primary, Secondary
from dmsoft.member.refusal import GateHeldError, GateUnknownError
from dmsoft.mirror import locate, lower, plug, sync
from dmsoft.mirror.arrival import Home, Sight, Welcome, genuine, judge
from dmsoft.mirror.locate import Census
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import PREFIX, Names
from dmsoft.mirror.progress import Reporter
from dmsoft.mirror.running import Running, is_active
from dmsoft.mirror.start import start
from dmsoft.mirror.stop import stop
from dmsoft.mirror.sync import DEFAULT_MAX_STALL, Outcome, Request

DEFAULT_WAIT = 30.0
_NO_MEMBERS = ("cdrom", "floppy", "zram")


class Arrival(msgspec.Struct, frozen=True):
    """What came of a disk that appeared. ``verdict``: what it comes to, or the code of the error; ``action``: what was
    done, or would be; ``resync``: what was copied. The rest is what the header says, null where it is not signed."""

    device: str
    verdict: str
    reason: str
    action: str = "none"
    role: str | None = None
    name: str | None = None
    label: str | None = None
    mirror_uuid: str | None = None
    resync: Outcome | None = None


def arrived(
    path: str, reporter: Reporter, cancelled: threading.Event, *,
    max_stall: float = DEFAULT_MAX_STALL, wait: float = DEFAULT_WAIT, dry_run: bool = False,
) -> tuple[Arrival, DmsoftError | None]:  # fmt: skip
    """Bring the disk at ``path`` back to its mirror, or leave it alone; returns the verdict, and why not.

    ``wait``: seconds for which another command may hold the mirror. Raises nothing of its own.
    """
    known = Arrival(path, "", "")
    try:
        device, sight = _look(path)
        payload = sight.payload
        known = msgspec.structs.replace(
            known, role=payload.role, name=payload.mirror_name, mirror_uuid=payload.mirror_uuid,
            label=_label(payload),
        )  # fmt: skip
        names = Names(payload.mirror_name, payload.mirror_uuid)
        request = Request(names.name, (), max_stall, dry_run, unattended=True)
        welcome, outcome, error = _welcome(device, names, request, reporter, cancelled, wait)
    except DmsoftError as err:
        return _refused(known, err), err
    except OSError as err:
        failed = DeviceError(f"{path} failed: {err.strerror}.", hint="Look at the kernel log (journalctl -k).")
        return _refused(known, failed), failed
    known = msgspec.structs.replace(
        known, action=welcome.action, verdict=welcome.verdict, reason=welcome.reason, resync=outcome,
        label=welcome.label or known.label,
    )  # fmt: skip
    return (known, None) if error is None else (_refused(known, error), error)


def _refused(known: Arrival, err: DmsoftError) -> Arrival:
    return msgspec.structs.replace(known, verdict=err.code, reason=err.message.rstrip("."))


def _look(path: str) -> tuple[BlockDevice, Sight]:
    """Read the header, and nothing else; raises unless the disk is genuine."""
    device = block_device(path)
    path = device.path if path.startswith("/dev/block/") else path  # udev's, which nobody knows
    if (device.dm_uuid or "").startswith(PREFIX):
        raise NoHeaderError(f"{path} is a device of a mirror, and no disk.", hint="See `dmsoft devices`.")
    if device.kind in _NO_MEMBERS or device.size_bytes < HEADER_BYTES:
        raise NoHeaderError(f"{path} is not a member of a soft mirror.", hint="See `dmsoft devices`.")
    if HOST.is_asleep(device):
        raise GateUnknownError(
            f"{path} is suspended, so it cannot be read.", hint="Try again when it was resumed (see dmsetup info)."
        )
    with open_readonly(path) as disk:
        scan = header.read(disk, key=keys.load)
        found = scan.header or header.require(disk, key=keys.load)
    sight = Sight(path, identity_of(device), scan, found)
    genuine(sight)
    return device, sight


def _welcome(
    device: BlockDevice, names: Names, request: Request, reporter: Reporter, cancelled: threading.Event, wait: float
) -> tuple[Welcome, Outcome | None, DmsoftError | None]:
    """Judge the disk once more under the mirror's lock, and do what follows; the second is what was copied."""
    with locked(names.mirror_uuid, "operation", timeout=wait, name=names.name, verb="attach"):
        device, sight = _look(device.path)
        if (sight.payload.mirror_name, sight.payload.mirror_uuid) != (names.name, names.mirror_uuid):
            raise DeviceError(f"{device.path} changed while it was looked at.", hint="Try again.")
        home, running = _home(device, sight, names)
        welcome = judge(sight, home)
        if welcome.action == "catch-up" and running is not None and welcome.label is not None:
            running.require_active()
            wanted = dataclasses.replace(request, labels=(welcome.label,))
            outcome, error = sync.resynced(running, wanted, reporter, cancelled)
            return welcome, outcome, error
    # These take the lock themselves; what was judged is judged again by them.
    if not request.dry_run:
        _begin(welcome, names, wait)
    return welcome, None, None


def _begin(welcome: Welcome, names: Names, wait: float) -> None:
    if welcome.action == "restart":
        stop(names.name, timeout=wait)
    if welcome.action in ("start", "restart"):
        start(names.name, timeout=wait)


def _home(device: BlockDevice, sight: Sight, names: Names) -> tuple[Home, Running | None]:
    """What is true of the disk's mirror now, and the mirror itself if its primary is here."""
    seen, payload = locate.census(), sight.payload
    number = f"{device.major}:{device.minor}"
    if all(member.number != number for member in seen.members):
        raise GateHeldError(
            f"{device.path} is in use by {', '.join(device.holders) or 'something else'}.",
            hint="If the device on top of it is the one that is meant, name that.",
        )
    rivals = [
        (member.device.path, identity_of(member.device)) for member in seen.members
        if member.verified and member.payload.member_uuid == payload.member_uuid and member.number != number
    ]  # fmt: skip
    try:
        running = _mirror(names, seen)
    except NotFoundError:
        if isinstance(payload, Primary):
            raise
        return Home(rivals=rivals), None
    active = is_active(names)
    label = _label(payload)
    whose = number if label is not None else running.assembly.primary.number
    home = Home(
        running.payload, active, running.current_era() if active else None, rivals,
        active and _in_place(running, payload, number), plug.waits(names, label or plug.PRIMARY, whose),
        tuple(running.assembly.secondaries),
    )  # fmt: skip
    return home, running


def _mirror(names: Names, seen: Census) -> Running:
    running = Running.of(locate.assemble(names.name, seen))
    if running.names != names:
        raise NotFoundError(f"Another mirror is called {names.name} here.", hint="Destroy one of them.")
    return running


def _in_place(running: Running, payload: AnyPayload, number: str) -> bool:
    """Whether the kernel uses the disk for its mirror as it should; a secondary that is copied to from time to time is
    never in place, since it may miss something."""
    names, label = running.names, _label(payload)
    if label is None:
        return running.stands_on(number)
    if label not in lower.attached_labels(names, [label]) or lower.leg_health(names, names.leg(label)) == "D":
        return False
    node = names.leg_cache(label) if isinstance(payload, Cache) else names.leg_data(label)
    return lower.leads_to(node, number) or lower.leads_to(names.leg(label), number)


def _label(payload: AnyPayload) -> str | None:
    return payload.label if isinstance(payload, Secondary | Cache) else None
