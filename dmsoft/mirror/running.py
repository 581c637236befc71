# SPDX-License-Identifier: GPL-2.0-or-later
"""A mirror's live side: its top and lower in the kernel, its era metadata, its data regions as open descriptors."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dmsoft.dm.device import Device
from dmsoft.dm.targets import EraStatus
from dmsoft.era.reader import EraReader
from dmsoft.era.sizing import era_blocks
from dmsoft.errors import DeviceError, NotFoundError
from dmsoft.member import regions
from dmsoft.member.disk import open_for_read
from dmsoft.member.gate import GatedDevice, open_exclusive
from dmsoft.member.header import write_granted, write_withdrawn
from dmsoft.member.payload import Metadata, Primary, Region
from dmsoft.mirror.guard import Guard
from dmsoft.mirror.locate import Assembly
from dmsoft.mirror.lock import locked
from dmsoft.mirror.names import Names, Node
from dmsoft.mirror.plan import Placed, lower_linear, names_of
from dmsoft.resync.copy import Side

# How long the kernel may take to digest the eras that fill the metadata.
_DIGEST_SECONDS = 30.0
_DIGEST_POLL_SECONDS = 0.1


class NoRoomError(DeviceError):
    """The record of which blocks were written is full or has failed.

    The mirror was not suspended, because it could not go on afterwards; nothing was promised by this step. Stop the
    mirror and start it again: metadata that cannot be used any more is made anew then, and the secondaries are compared
    in full.
    """

    code = "no-room"


def device(node: Node) -> Device:
    return Device(node.name, node.uuid)


def is_active(names: Names) -> bool:
    info = device(names.top).info()
    return info is not None and info.live_table


def node_path(number: str) -> str:
    """A path that names the device of that ``MAJOR:MINOR`` whatever udev calls it; `NotFoundError` if it is gone."""
    try:
        link = os.readlink(f"/sys/dev/block/{number}")
    except OSError as err:
        raise NotFoundError(f"The device {number} is gone.", hint="It was unplugged just now; plug it in.") from err
    return f"/dev/{os.path.basename(link).replace('!', '/')}"


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
        number, _ = metadata_place(self.assembly.primary, self.assembly.metadata)
        major, minor = map(int, number.split(":"))
        if (major, minor) not in device(self.names.metadata).deps():
            raise DeviceError(
                f"The mirror {self.names.name} still stands on a disk that was unplugged.",
                hint="It is back, or its metadata device is: unmount the mirror, stop it and start it again.",
            )

    def era_status(self, *, lock_timeout: float = 30) -> EraStatus:
        """Status of the top under the kernel lock: asked of a suspended era device it would never return."""
        with locked(self.names.mirror_uuid, "kernel", timeout=lock_timeout, name=self.names.name):
            (line,) = device(self.names.top).status()
        return EraStatus.parse(line.text)

    def await_room(self) -> None:
        """Wait until the era metadata has room for one more era.

        Without it the resume would fail, and the mirror stay suspended. Raises `NoRoomError`, also when the metadata
        has failed.
        """
        blocks = regions.nr_blocks(self.data.length, self.block_bytes)
        deadline = time.monotonic() + _DIGEST_SECONDS
        while True:
            status = self.era_status()
            if not status.failed and status.total - status.used >= era_blocks(blocks):
                return
            if status.failed or time.monotonic() >= deadline:
                what = "has failed" if status.failed else f"is full ({status.used} of {status.total} blocks)"
                raise NoRoomError(
                    f"The era metadata of {self.names.name} {what}, so no new era can begin.",
                    hint="Unmount it, stop the mirror and start it again.",
                )
            time.sleep(_DIGEST_POLL_SECONDS)

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
        payload = self.payload
        with open_exclusive(
            node_path(self.assembly.primary.number),
            purpose="member",
            expect=payload.identity,
            member_uuid=payload.member_uuid,
            own_uuid_prefix=self.names.prefix,
        ) as gated:
            self.gate = gated
            try:
                yield
            finally:
                self.gate = None

    def grant(self, payload: Primary) -> None:
        """Write the primary's header: more is promised than before. Raises `DeviceError`."""
        write_granted(self.primary, payload, self.assembly.key)
        self._now(payload)

    def withdraw(self, payload: Primary) -> None:
        """Write the primary's header: less is promised than before. Raises `DeviceError`."""
        write_withdrawn(self.primary, payload, self.assembly.key)
        self._now(payload)

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


def flush(disk: GatedDevice, what: str) -> None:
    """Make what was written durable on the device itself; raises `DeviceError` when the device says no."""
    try:
        disk.flush()
    except OSError as err:
        raise DeviceError(
            f"{what} failed to flush its write cache: {err.strerror}.",
            hint="Nothing was promised; look at the disk's health and its cable, then run the command again.",
        ) from err


def guard_of(running: Running, *, coupled: bool) -> Guard:
    """A guard for the mirror's top and lower, not started yet; ``coupled`` if the lower may be swapped."""
    names = running.names
    lower = Device(names.lower.name, names.lower.uuid, inner=True)
    fallback = lower_linear(running.assembly.primary).table
    return Guard(names.mirror_uuid, device(names.top), lower, fallback, coupled)


def metadata_place(primary: Placed[Primary], metadata: Placed[Metadata] | None) -> tuple[str, Region]:
    """Where the era metadata lies: device number and region."""
    if metadata is None:
        return primary.number, primary.payload.regions["metadata"]
    return metadata.number, metadata.payload.regions["metadata"]
