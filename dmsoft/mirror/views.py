# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer of `dmsoft status` as types.

They are the JSON that scripts rely on: fields are only ever added. Sizes are bytes, times RFC 3339 UTC, and what is not
known is null.
"""

from typing import Literal

import msgspec

from dmsoft.mirror.at_work import RunView
from dmsoft.units import format_size

State = Literal["current", "attached", "stale", "syncing", "away", "missing", "failed", "unknown", "diverged"]
BAD: frozenset[State] = frozenset({"failed", "unknown", "diverged"})


class EraView(msgspec.Struct, frozen=True):
    """``metadata_used`` and ``metadata_total`` are metadata blocks of 4096 bytes."""

    current: int | None = None
    block_bytes: int | None = None
    metadata_used: int | None = None
    metadata_total: int | None = None


class PrimaryView(msgspec.Struct, frozen=True):
    device: str | None
    state: Literal["ok", "missing", "failed"]


class ViaView(msgspec.Struct, frozen=True):
    type: str


class SecondaryView(msgspec.Struct, frozen=True):
    """``stale_map``: how much of each of up to 40 equal parts of the device is stale, in percent. ``journal``: what a
    resync that was cut off left in it; a committed one counts, and ``consistent_as_of`` is its point in time, while
    ``synced_era`` and what is stale are of the data region as it lies there. ``catch_up_seconds``: how long a resync
    would take at the rate of the last one. ``interval_seconds`` and ``expect_seconds`` are what was promised of it: how
    far it may lag, and how long it may be away."""

    label: str
    uuid: str
    device: str | None
    state: State
    via: ViaView
    mode: str
    synced_era: int | None = None
    stale_blocks: int | None = None
    stale_bytes: int | None = None
    lag_seconds: float | None = None
    consistent_as_of: str | None = None
    reason: str | None = None
    progress: float | None = None
    stale_map: tuple[int, ...] | None = None
    journal: Literal["staged", "committed"] | None = None
    away_since: str | None = None
    catch_up_seconds: float | None = None
    verified_at: str | None = None
    interval_seconds: float | None = None
    expect_seconds: float | None = None


class Alert(msgspec.Struct, frozen=True):
    code: str
    summary: str


class MirrorView(msgspec.Struct, frozen=True):
    name: str
    uuid: str
    active: bool
    mode: str | None
    device: str
    size_bytes: int | None
    era: EraView
    primary: PrimaryView
    secondaries: tuple[SecondaryView, ...]
    alerts: tuple[Alert, ...]
    run: RunView | None = None

    @property
    def healthy(self) -> bool:
        """False when a promise is missed or a disk failed or is unknown; ordinary lag and absence are fine."""
        bad = any(each.state in BAD for each in self.secondaries) or self.primary.state != "ok"
        return not bad and not self.alerts


class StatusView(msgspec.Struct, frozen=True):
    mirrors: tuple[MirrorView, ...]
    schema: int = 1


def summary(view: SecondaryView) -> str:
    """What a secondary misses, in a few words."""
    if view.stale_bytes is None:
        return "not known"
    return "nothing" if not view.stale_bytes else format_size(view.stale_bytes)
