# SPDX-License-Identifier: GPL-2.0-or-later
"""A mirror's live side: its top and lower in the kernel, its era metadata, its data regions as open descriptors."""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dmsoft.dm.device import Device
from dmsoft.dm.targets import EraStatus
from dmsoft.era.reader import EraReader
from dmsoft.era.sizing import has_room, writeset_blocks
from dmsoft.errors import DeviceError, NotFoundError
from dmsoft.member import regions
from dmsoft.member.disk import open_for_read
from dmsoft.member.gate import GatedDevice, open_exclusive
from dmsoft.member.header import Header, read, require, write_granted, write_withdrawn
from dmsoft.member.payload import Primary, Region
from dmsoft.mirror import loss, lower
from dmsoft.mirror.guard import Guard
from dmsoft.mirror.locate import Assembly
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names, Node
from dmsoft.mirror.plan import Placed, lower_linear, metadata_place, names_of, untracked_top
from dmsoft.mirror.wayout import TrackingLostError, WayOut
from dmsoft.resync.copy import Side
from dmsoft.resync.pace import Limit
from dmsoft.resync.throttle import Counters, Throttle

# How long the kernel may take to digest the eras that fill the metadata.
_DIGEST_SECONDS = 30.0
_DIGEST_POLL_SECONDS = 0.1


class NoRoomError(DeviceError):
    """The record of which blocks were written is full or has failed.

    The mirror was not suspended, because it could not go on afterwards; nothing was promised by this step. Run `dmsoft
    start` on the running mirror, at best at once, since writes may fail: it takes the tracking off and begins it anew,
    and the next resync compares every block.
    """

    code = "no-room"


def device(node: Node) -> Device:
    return Device(node.name, node.uuid)


def is_active(names: Names) -> bool:
    info = device(names.top).info()
    return info is not None and info.live_table


def is_tracked(names: Names) -> bool:
    """Whether the live top is an era device."""
    return any(line.kind == "era" for line in device(names.top).table())


def is_plain(names: Names) -> bool:
    """Whether the live top is linear: it neither tracks, nor does it fail whatever comes."""
    return all(line.kind == "linear" for line in device(names.top).table())


def is_shielded(names: Names) -> bool:
    """Whether the shield against discards stands between the top and the lower."""
    return device(names.shield).info() is not None


def node_path(number: str) -> str:
    """A path that names the device of that ``MAJOR:MINOR`` whatever udev calls it; `NotFoundError` if it is gone."""
    try:
        link = os.readlink(f"/sys/dev/block/{number}")
    except OSError as err:
        raise NotFoundError(f"The device {number} is gone.", hint="It was unplugged just now; plug it in.") from err
    return f"/dev/{os.path.basename(link).replace('!', '/')}"


def _written_by_others(names: Names, doubt: str) -> DeviceError:
    return DeviceError(
        f"Somebody else wrote to the primary of {names.name}. {doubt.rstrip('.')}.",
        hint=f"Run `dmsoft start {names.name}` first: it has every secondary compared.",
    )


@dataclass(slots=True)
class Running:
    """An assembled mirror and its live devices. ``payload`` is the primary's header as last written."""

    assembly: Assembly
    names: Names
    gate: GatedDevice | None = None

    @classmethod
    def of(cls, assembly: Assembly) -> "Running":
        return cls(assembly, names_of(assembly.primary.payload))

    @property
    def payload(self) -> Primary:
        return self.assembly.primary.payload

    @property
    def data(self) -> Region:
        return self.payload.regions["data"]

    @property
    def block_bytes(self) -> int:
        return self.payload.block_bytes

    def require_active(self) -> None:
        if not is_active(self.names):
            raise NotFoundError(
                f"The mirror {self.names.name} is not running.",
                hint=f"Start it with `dmsoft start {self.names.name}`.",
            )
        if not self.stands_on(self.assembly.primary.number):
            raise DeviceError(
                f"The mirror {self.names.name} still stands on a disk that was unplugged.",
                hint="It is back: unmount the mirror, stop it and start it again.",
            )

    def require_undoubted(self) -> None:
        """Raise `DeviceError` while a copy of the primary's header is somebody else's work: whatever is written there
        next would hide it. A start of the mirror, running or not, and a resync deal with it."""
        if self.assembly.doubt is not None:
            raise _written_by_others(self.names, self.assembly.doubt)

    def throttle(self, limit: Limit, cancelled: threading.Event) -> Throttle:
        """For reads of the primary beside whoever uses the top. All that goes through the top is theirs: dmsoft itself
        reads and writes the disks below it."""
        info = device(self.names.top).require()
        return Throttle(limit, functools.partial(Counters.of, info.number), cancelled)

    def stands_on(self, number: str) -> bool:
        """Whether the kernel has the data of the mirror on that disk."""
        major, minor = map(int, number.split(":"))
        standing = [device(node) for node in (self.names.lower, self.names.primary)]
        return any((major, minor) in each.deps() for each in standing if each.info() is not None)

    def era_status(self, *, lock_timeout: float = 30) -> EraStatus:
        """Status of the top under the kernel lock: asked of a suspended era device it would never return.

        A top that tracks nothing counts as failed, and so does one whose record failed for a moment. If its disk was
        unplugged that is no question: dm-era would write to it, and where nobody writes nothing is lost.
        """
        with locked(self.names.mirror_uuid, "kernel", timeout=lock_timeout, name=self.names.name):
            lower.require_awake(self.names)
            if not loss.can_be_asked(self.names):
                return EraStatus(failed=True)
            (line,) = device(self.names.top).status()
            failed = line.kind != "era" or loss.suspected(self.names)
        return EraStatus(failed=True) if failed else EraStatus.parse(line.text)

    def current_era(self) -> int | None:
        """The era now, None while nothing is tracked or the tracking fails."""
        status = self.era_status()
        return None if status.failed else status.era

    def await_room(self) -> None:
        """Wait until the era metadata has room for one more era, for as long as the kernel digests what fills it.

        Without it the resume would fail. Raises `NoRoomError`, also when the metadata has failed or nothing is tracked.
        """
        blocks = regions.nr_blocks(self.data.length, self.block_bytes)
        least, deadline = None, 0.0
        while True:
            status = self.era_status()
            if status.failed:
                raise self._no_room("has failed")
            free, waiting = status.total - status.used, self._undigested_blocks()
            if has_room(free=free, waiting=waiting, nr_blocks=blocks):
                return
            if least is None or waiting < least:
                least, deadline = waiting, time.monotonic() + _DIGEST_SECONDS
            elif time.monotonic() >= deadline:
                raise self._no_room(f"is full ({status.used} of {status.total} blocks)")
            time.sleep(_DIGEST_POLL_SECONDS)

    def require_tracking(self) -> None:
        """Raise `NoRoomError` if the metadata has failed."""
        if self.era_status().failed:
            raise self._no_room("has failed")

    def _undigested_blocks(self) -> int:
        with self.era_reader() as reader:
            return sum(map(writeset_blocks, reader.undigested()))

    def _no_room(self, what: str) -> NoRoomError:
        return NoRoomError(
            f"The era metadata of {self.names.name} {what}, so no new era can begin.",
            hint=f"Run `dmsoft start {self.names.name}`: it mends the tracking while the mirror is in use.",
        )

    @contextlib.contextmanager
    def era_reader(self) -> Iterator[EraReader]:
        """The era metadata, read from the disk it lies on, live or not."""
        number, region = metadata_place(self.assembly.primary, self.assembly.metadata)
        with EraReader(node_path(number), offset_bytes=region.offset, length_bytes=region.length) as reader:
            yield reader

    @contextlib.contextmanager
    def primary_side(self) -> Iterator[Side]:
        """The primary's data region for reading."""
        fd = open_for_read(node_path(self.assembly.primary.number))
        try:
            yield Side(fd, self.data.offset)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the primary open through the gate, for `grant`, `withdraw` and `flush_primary`: its header is all that
        is ever written. While no top is active this is an exclusive claim: leave it before tables are loaded."""
        with self.primary_disk() as gated:
            self.gate = gated
            try:
                yield
            finally:
                self.gate = None

    @contextlib.contextmanager
    def primary_disk(self) -> Iterator[GatedDevice]:
        """The primary's disk, open for writing through the gate."""
        payload = self.payload
        with open_exclusive(
            node_path(self.assembly.primary.number),
            purpose="member",
            expect=payload.identity,
            member_uuid=payload.member_uuid,
            own_uuid_prefix=self.names.prefix,
        ) as gated:
            yield gated

    def grant(self, payload: Primary) -> None:
        """Write the primary's header: more is promised than before.

        Raises `DeviceError`, also if others wrote to it, and `TrackingLostError` if a guard has taken the way out since
        the header was read: neither must be overwritten.
        """
        scan = read(self.primary, key=self.assembly.key)
        if scan.doubt is not None:  # this would write over it, and nobody would know
            raise _written_by_others(self.names, scan.doubt)
        self._require_tracker_of(require(self.primary, key=self.assembly.key))
        write_granted(self.primary, payload, self.assembly.key)
        self._now(payload)

    def withdraw(self, payload: Primary) -> None:
        """Write the primary's header: less is promised than before.

        Raises `DeviceError`, and `TrackingLostError` as `grant` does, unless the tracker is revoked here as well.
        """
        found = read(self.primary, key=self.assembly.key).header
        if found is not None and payload.tracker.id == self.payload.tracker.id:
            self._require_tracker_of(found)
        write_withdrawn(self.primary, payload, self.assembly.key)
        self._now(payload)

    def _require_tracker_of(self, found: Header) -> None:
        if not isinstance(found.payload, Primary) or found.payload.tracker.id != self.payload.tracker.id:
            raise TrackingLostError(
                f"The mirror {self.names.name} was resumed without tracking meanwhile, so nothing new is promised.",
                hint="Run `dmsoft resync`: it begins tracking anew and compares every block.",
            )

    def flush_primary(self) -> None:
        """Make durable on the primary what was drained to it; raises `DeviceError`."""
        flush(self.primary, "The primary")

    @property
    def primary(self) -> GatedDevice:
        """The primary's disk, open for writing: only inside `writing`."""
        if self.gate is None:
            raise RuntimeError("the primary is not open for writing")
        return self.gate

    def _now(self, payload: Primary) -> None:
        self.assembly = replace(self.assembly, primary=Placed(payload, self.assembly.primary.number))


def write(disk: GatedDevice, data: bytes, offset: int, what: str) -> None:
    """Write and flush; raises `DeviceError`."""
    try:
        disk.pwrite(data, offset)
    except OSError as err:
        raise DeviceError(
            f"{what} cannot be written: {err.strerror}.", hint="Look at the disk's health and its cable."
        ) from err
    flush(disk, what)


def flush(disk: GatedDevice, what: str) -> None:
    """Make what was written durable on the device itself; raises `DeviceError` when the device says no."""
    try:
        disk.flush()
    except OSError as err:
        raise DeviceError(
            f"{what} failed to flush its write cache: {err.strerror}.",
            hint="Nothing was promised; look at the disk's health and its cable, then run the command again.",
        ) from err


@contextlib.contextmanager
def guard_of(running: Running, *, coupled: bool) -> Iterator[Guard]:
    """A guard for the running mirror's top and lower; ``coupled`` if the lower may be swapped."""
    names = running.names
    lower = Device(names.lower.name, names.lower.uuid, inner=True)
    fallback = lower_linear(running.assembly.primary).table
    with contextlib.ExitStack() as stack:
        way_out = stack.enter_context(way_out_of(running))
        legs = tuple(device(names.leg(each.label)) for each in running.payload.members if coupled)
        yield stack.enter_context(Guard(names.mirror_uuid, way_out.top, lower, fallback, coupled, way_out, legs))


@contextlib.contextmanager
def way_out_of(running: Running) -> Iterator[WayOut]:
    """The way out for a top that cannot be resumed."""
    with running.primary_disk() as disk:
        plain = untracked_top(running.payload, shielded=is_shielded(running.names)).table
        yield WayOut(disk, running.assembly.key, device(running.names.top), plain)
