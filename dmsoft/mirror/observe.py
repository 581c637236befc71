# SPDX-License-Identifier: GPL-2.0-or-later
"""What is true of every mirror at this moment: the answer of `dmsoft status`. Changes nothing."""

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Literal

from dmsoft.dm.device import devices
from dmsoft.dm.failures import SuspendedError
from dmsoft.dm.targets import EraStatus
from dmsoft.era.blocks import BlockSet
from dmsoft.era.spread import spread
from dmsoft.errors import BusyError, DmsoftError, NotFoundError, NotRootError
from dmsoft.inventory.sysfs import block_device
from dmsoft.inventory.usage import users
from dmsoft.member import keys
from dmsoft.member.payload import MemberRecord, Secondary
from dmsoft.member.record import record_of
from dmsoft.mirror import bulletin, locate, lower, plug, promise, registry
from dmsoft.mirror.at_work import RunView, at_work
from dmsoft.mirror.bulletin import Word
from dmsoft.mirror.decision import Decision, decide, from_record
from dmsoft.mirror.generation import parted
from dmsoft.mirror.missing import StaleSets
from dmsoft.mirror.names import PREFIX, Names
from dmsoft.mirror.running import Running, is_active, node_path
from dmsoft.mirror.start import doubt_of
from dmsoft.mirror.untracked import lately_doubted
from dmsoft.mirror.views import BAD, Alert, EraView, MirrorView, PrimaryView, SecondaryView, State, StatusView, ViaView
from dmsoft.resync.extents import size_bytes

_LOCK_SECONDS = 5.0
_MAP_PARTS = 40
_FILL_WARNING = 0.75


def status(name: str | None = None) -> StatusView:
    """Every mirror that is here, running or known, by name; or only ``name``, which raises `NotFoundError`."""
    seen = locate.census()
    known = _known(seen)
    if name is not None and name not in known:
        raise NotFoundError(f"There is no mirror named {name}.", hint="`dmsoft status` lists the mirrors there are.")
    wanted = [name] if name is not None else sorted(known)
    word = bulletin.read()
    return StatusView(tuple(view_of(each, known[each], seen, word) for each in wanted))


def _known(seen: locate.Census) -> dict[str, str]:
    """Name to uuid of every mirror: by its disks, by the registry, by what stands in the kernel."""
    found = {m.payload.mirror_name: m.payload.mirror_uuid for m in seen.members}
    found |= {entry.name: entry.mirror_uuid for entry in registry.entries()}
    for info in devices(PREFIX):
        if info.uuid.endswith("-top"):
            found[info.name] = info.uuid.removeprefix(PREFIX).removesuffix("-top")
    return found


def view_of(name: str, uuid: str, seen: locate.Census, word: Word | None) -> MirrorView:
    """One mirror, from the disks ``seen`` and what a daemon has said of it."""
    names = Names(name, uuid)
    active = is_active(names)
    try:
        running = Running.of(locate.assemble(name, seen))
    except NotRootError:
        raise
    except DmsoftError as err:
        return _without_primary(names, active, seen, err)
    return _Observer(running, active, seen, word).view()


def _without_primary(names: Names, active: bool, seen: locate.Census, err: DmsoftError) -> MirrorView:
    parts = [m for m in seen.members if m.payload.mirror_uuid == names.mirror_uuid]
    secondaries = tuple(_alone(m, m.payload) for m in parts if isinstance(m.payload, Secondary))
    state: Literal["missing", "failed"] = "missing" if isinstance(err, NotFoundError) else "failed"
    alerts = [Alert(f"primary-{state}", err.message)]
    if active:
        with contextlib.suppress(DmsoftError):
            alerts += _left_out(names)
    return MirrorView(
        names.name, names.mirror_uuid, active, None, names.top.path, None, EraView(),
        PrimaryView(None, state), secondaries, tuple(alerts), at_work(names.mirror_uuid),
    )  # fmt: skip


def _left_out(names: Names) -> list[Alert]:
    """An alert if md goes on without the primary, whether its disk is here or not."""
    try:
        lower.require_primary(names)
    except lower.PrimaryDroppedError as err:
        return [Alert("primary-left-out", f"{err.message} {err.hint}")]
    return []


def _alone(member: locate.Member, payload: Secondary) -> SecondaryView:
    left = record_of(member.device.path, _key(payload.mirror_uuid))
    sync = left.sync if left is not None and left.committed else payload.sync
    return SecondaryView(
        payload.label, payload.member_uuid, member.device.path, "unknown", ViaView("direct"), "periodic",
        consistent_as_of=sync.consistent_as_of, reason="its primary is not here to compare with",
        journal=None if left is None else left.state,
    )  # fmt: skip


def _key(mirror_uuid: str) -> bytes | None:
    try:
        return keys.load(mirror_uuid)
    except DmsoftError:
        return None


@dataclass(slots=True)
class _Observer:
    """Collects one mirror's view; what cannot be found out becomes null and, where it matters, an alert."""

    running: Running
    active: bool
    seen: locate.Census
    word: Word | None = None
    doubt: str | None = None
    run: RunView | None = None

    def view(self) -> MirrorView:
        running, payload = self.running, self.running.payload
        alerts: list[Alert] = []
        self.run = at_work(payload.mirror_uuid)
        era, current = self._era(alerts)
        self._judge(alerts)
        stale = StaleSets(running)
        secondaries = tuple(self._secondary(record, current, stale, alerts) for record in payload.members)
        self._torn(alerts)
        self._said(alerts)
        primary = PrimaryView(running.assembly.primary_device.path, self._primary(alerts))
        return MirrorView(
            payload.mirror_name, payload.mirror_uuid, self.active, payload.mode, running.names.top.path,
            running.data.length, era, primary, secondaries, tuple(alerts), self.run,
        )  # fmt: skip

    def _era(self, alerts: list[Alert]) -> tuple[EraView, int | None]:
        running, name, doubt = self.running, self.running.names.name, self.running.payload.tracker.doubt
        if doubt is not None:
            what = f"`dmsoft {'resync' if self.active else 'start'} {name}` begins it anew if it can"
            alerts.append(Alert("tracking-off", f"Nothing is tracked: {doubt}. {what}, and every block is compared."))
        try:
            if self.active:
                return self._live_era(running.era_status(lock_timeout=_LOCK_SECONDS), alerts)
            if doubt is None:
                with running.era_reader() as reader:
                    current = None if reader.is_zero() else reader.superblock().current_era
                return EraView(current, running.block_bytes), current
        except SuspendedError:
            # The lock is free, so whoever suspended it is gone.
            alerts.append(Alert("left-suspended", f"All I/O to {name} waits; `dmsoft start` resumes it."))
        except BusyError:
            pass
        except NotFoundError as err:
            alerts.append(Alert("metadata-missing", err.message))
        except DmsoftError as err:
            alerts.append(Alert("tracking-doubt", f"{err.message} The next start begins tracking anew."))
        return EraView(block_bytes=running.block_bytes), None

    def _judge(self, alerts: list[Alert]) -> None:
        """Of a mirror that is stopped, ask what the next start will ask; of one that runs, a resync."""
        if self.active:
            self.doubt = lately_doubted(self.running)
        else:
            with contextlib.suppress(DmsoftError):
                self.doubt = doubt_of(self.running)
        told = {"tracking-doubt", "tracking-failed"} & {alert.code for alert in alerts}
        if self.doubt is not None and not told:
            what = f"{self.doubt[:1].upper()}{self.doubt[1:]}"
            alerts.append(
                Alert("tracking-doubt", f"{what.rstrip('.')}. The next start or resync begins tracking anew.")
            )

    def _live_era(self, status: EraStatus, alerts: list[Alert]) -> tuple[EraView, int | None]:
        name = self.running.names.name
        if status.failed:
            if self.running.payload.tracker.doubt is None:
                what = f"Run `dmsoft start {name}` now: it takes the tracking off while the mirror is in use."
                alerts.append(Alert("tracking-failed", f"The era metadata failed, and writes may fail with it. {what}"))
            return EraView(block_bytes=self.running.block_bytes), None
        if status.used > _FILL_WARNING * status.total:
            share = 100 * status.used // status.total
            alerts.append(Alert("metadata-filling", f"The era metadata is {share} % full; once full, writes fail."))
        return EraView(status.era, self.running.block_bytes, status.used, status.total), status.era

    def _primary(self, alerts: list[Alert]) -> Literal["ok", "failed"]:
        """A primary that md left out is here and readable, and still not the newest copy."""
        found = _left_out(self.running.names) if self.active else []
        alerts += found
        return "failed" if found else "ok"

    def _torn(self, alerts: list[Alert]) -> None:
        mine = [m for m in self.seen.members if m.payload.mirror_uuid == self.running.payload.mirror_uuid]
        for member in mine:
            if member.torn:
                alerts.append(
                    Alert(
                        "header-torn",
                        f"One of the two header copies on {member.device.path} is damaged; the other is used.",
                    )
                )

    def _said(self, alerts: list[Alert]) -> None:
        """What the daemon knows and the disks do not tell."""
        if self.word is None or not self.active:
            return
        alerts += [Alert(*each) for each in self.word.of(self.running.payload.mirror_uuid).alerts]
        if not self.word.alive:
            what = "The daemon ended without notice, so nothing keeps what is promised. Start it again"
            alerts.append(Alert("monitor-dead", f"{what} (`dmsoft monitor`), or remove {bulletin.PATH}."))

    def _promised(
        self, record: MemberRecord, state: State, as_of: str | None, lag: float | None, alerts: list[Alert]
    ) -> None:
        """A lag is promised while a daemon is there to keep it, and for a disk that is here."""
        if state in ("away", "missing"):
            since = record.away_since if state == "away" else as_of
            if (late := promise.overdue(record, since, time.time())) is not None:
                alerts.append(Alert("secondary-overdue", late))
            return
        kept = self.word is not None and self.active and state in ("current", "stale", "syncing")
        if kept and (late := promise.missed(record, lag)) is not None:
            alerts.append(Alert("lag-missed", late))

    def _secondary(
        self, record: MemberRecord, current: int | None, stale: "StaleSets", alerts: list[Alert]
    ) -> SecondaryView:
        running, label = self.running, record.label
        placed, left = running.assembly.secondaries.get(label), None
        if placed is not None:
            payload = placed.payload
            with contextlib.suppress(NotFoundError):  # it was unplugged just now
                left = record_of(node_path(placed.number), running.assembly.key)
            decision = decide(running.payload, record, payload, current)
            sync = payload.sync
            state, reason = self._present(record, payload, decision)
        else:
            decision, sync = from_record(running.payload, record), record.sync
            state, reason = self._absent(record)
        if self.doubt is not None and decision.kind == "incremental":
            decision = Decision("compare", self.doubt)
            state, reason = ("unknown", self.doubt) if state in ("stale", "current") else (state, reason)
        blocks = stale.get(decision)
        if decision.kind == "incremental" and state == "stale" and blocks is not None and not blocks:
            state = "current"
        device = running.assembly.devices.get(label)
        share = None
        if self.run is not None and self.run.copies and label in self.run.labels and placed is not None:
            state, share = "syncing", self.run.share
        if state in BAD:
            alerts.append(Alert(f"secondary-{state}", f"{label}: {reason or decision.reason}."))
        told = left.sync if left is not None and left.committed else sync
        as_of = told.consistent_as_of
        held = None if self.word is None else self.word.of(running.payload.mirror_uuid).held.get(label)
        lag = _lag(promise.clean_until(as_of, told.token, held), blocks, state)
        self._promised(record, state, as_of, lag, alerts)
        return SecondaryView(
            label, record.member_uuid, None if device is None else device.path, state, ViaView(record.via.type),
            record.mode, sync.era,
            None if blocks is None else blocks.count(),
            None if blocks is None else self._bytes(blocks),
            lag, as_of, reason or decision.reason, share,
            None if blocks is None else spread(blocks, _MAP_PARTS), None if left is None else left.state,
            record.away_since if state == "away" else None,
            None if blocks is None or not record.rate else round(self._bytes(blocks) / record.rate, 1),
            record.verified_at, record.interval_seconds, record.expect_seconds,
        )  # fmt: skip

    def _bytes(self, blocks: BlockSet) -> int:
        return size_bytes(blocks, block_bytes=self.running.block_bytes, data_bytes=self.running.data.length)

    def _present(self, record: MemberRecord, payload: Secondary, decision: Decision) -> tuple[State, str | None]:
        if (why := parted(self.running.payload, payload)) is not None:
            return "diverged", why
        doubt = self.running.payload.tracker.doubt or record.sync.doubt
        if self._coupled(record.label) and doubt is None:
            health = lower.leg_health(self.running.names, self.running.names.leg(record.label))
            return ("failed", "md dropped its leg after an I/O error") if health == "D" else ("attached", None)
        if decision.kind == "compare":
            return "unknown", None
        waits = plug.waits(self.running.names, record.label, self.running.assembly.secondaries[record.label].number)
        return ("away", "it was ejected and may be unplugged") if waits else ("stale", None)

    def _coupled(self, label: str) -> bool:
        """Whether the lower uses the leg and the leg the disk that is here, not one that was unplugged since."""
        names = self.running.names
        if not self.active or label not in lower.attached_labels(names, [label]):
            return False
        number = self.running.assembly.secondaries[label].number
        return lower.leads_to(names.leg(label), number) or lower.leads_to(names.leg_data(label), number)

    def _absent(self, record: MemberRecord) -> tuple[State, str | None]:
        problem = self.running.assembly.problems.get(record.label)
        if problem is not None:
            return "failed", problem.message.rstrip(".")
        for name in record.identity.by_id:
            if os.path.exists(path := f"/dev/disk/by-id/{name}"):
                return "failed", _why_unread(path)
        return ("away", None) if record.away_since is not None else ("missing", "its disk is not here")


def _why_unread(path: str) -> str:
    """What keeps a disk that is here from being found."""
    with contextlib.suppress(DmsoftError):
        if found := users(block_device(path)):
            return f"its disk cannot be used: {found[0]}"
    return "its disk is here, but its header cannot be read"


def _lag(clean_until: float | None, blocks: BlockSet | None, state: State) -> float | None:
    """Seconds between now and the last moment of which the disk has everything; 0 while it misses nothing."""
    if state == "attached":
        return None  # md does not tell how much it holds back
    if blocks is not None and not blocks:
        return 0.0
    return None if clean_until is None else max(0.0, round(time.time() - clean_until, 1))
