# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon knows of a mirror, and what can be done for it: values that pass between it and its workers.

Times are seconds, of a clock that only goes forward where they are moments.
"""

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from dmsoft.member.payload import Mode
from dmsoft.mirror.views import Alert, State

Tracking = Literal["ok", "filling", "failed", "suspended"]
Kind = Literal["look", "pulse", "mark", "shed", "mend", "catch-up"]
# Errors that another command, udev or we ourselves are the reason of.
_PASSING: Final = frozenset({"busy", "cancelled", "dm-busy", "suspended", "udev-timeout"})


class SecondaryFacts(msgspec.Struct, frozen=True):
    """``here``: this plug-in of its disk, None while it is not here or waits to be unplugged; ``token`` of its header;
    ``lag`` None if nobody knows."""

    label: str
    state: State
    mode: Mode
    interval: float
    here: str | None = None
    token: str | None = None
    lag: float | None = None
    copied: bool = False


class Facts(msgspec.Struct, frozen=True):
    """A full look at a running mirror, which reads the headers of the disks. ``tracked`` False: tracking was given
    up. ``assembled`` False: its primary was not found or could not be read, so nothing is known of the others."""

    active: bool
    tracked: bool
    secondaries: tuple[SecondaryFacts, ...] = ()
    alerts: tuple[Alert, ...] = ()
    assembled: bool = True


class Pulse(msgspec.Struct, frozen=True):
    """A quick look that reads no disk: how the tracking is, coupled secondaries that fail, and whether md goes on
    without the primary."""

    tracking: Tracking
    failing: tuple[str, ...] = ()
    left_out: bool = False


class Part(msgspec.Struct, frozen=True):
    """What came of one secondary in a catch-up; ``error`` None when it is done."""

    label: str
    kind: str
    bytes_copied: int = 0
    consistent_as_of: str | None = None
    error: str | None = None


class CaughtUp(msgspec.Struct, frozen=True):
    parts: tuple[Part, ...]
    seconds: float
    stall_ms: float
    converged: bool = True


class Shed(msgspec.Struct, frozen=True):
    """Secondaries that were uncoupled because they fail."""

    labels: tuple[str, ...] = ()


class Marked(msgspec.Struct, frozen=True):
    """Secondaries whose headers say that they go on without the primary; None if it was not seen to be left out."""

    labels: tuple[str, ...] | None = None


class Mended(msgspec.Struct, frozen=True):
    """``doubt``: why tracking began anew, None if there was nothing to mend; ``untracked``: why there is none."""

    doubt: str | None = None
    untracked: str | None = None


Result = Facts | Pulse | CaughtUp | Shed | Marked | Mended


class Failure(msgspec.Struct, frozen=True):
    """A worker's error: as a verb reports it."""

    code: str
    message: str
    exit_code: int = 1


def waits(result: Result | Failure) -> bool:
    """Whether nothing came of it because something else had to be waited for."""
    return isinstance(result, Failure) and result.code in _PASSING


@dataclass(frozen=True, slots=True)
class Action:
    """Something for a worker to do; ``labels`` for a catch-up."""

    kind: Kind
    labels: tuple[str, ...] = ()

    @property
    def looks_only(self) -> bool:
        return self.kind in ("look", "pulse")
