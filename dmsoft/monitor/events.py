# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon tells: one JSON object an event, in the journal and to hooks."""

import msgspec

from dmsoft.mirror.times import now


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """``event`` is one of `EVENTS`; what does not belong to it is left out. Fields are only ever added."""

    event: str
    mirror: str | None = None
    label: str | None = None
    code: str | None = None
    summary: str | None = None
    kind: str | None = None
    bytes_copied: int | None = None
    seconds: float | None = None
    stall_ms: float | None = None
    consistent_as_of: str | None = None
    time: str = ""

    def stamped(self) -> "Event":
        return msgspec.structs.replace(self, time=now())

    def environment(self) -> dict[str, str]:
        """The same for a shell: what identifies the event."""
        said = {"EVENT": self.event, "MIRROR": self.mirror, "LABEL": self.label, "CODE": self.code}
        return {f"DMSOFT_{name}": value for name, value in said.items() if value is not None}


# Every event, and what it means: `dmsoft-internals`(7) has the same list.
EVENTS = {
    "monitor-started": "the daemon begins",
    "monitor-stopped": "it was told to end",
    "mirror-started": "a mirror runs, or ran when the daemon began",
    "mirror-stopped": "it does not any more",
    "disk-came": "the disk of a secondary is here",
    "disk-went": "it is gone, or may be unplugged",
    "caught-up": "a secondary was copied what it missed",
    "catch-up-failed": "that did not work out, and will be tried again",
    "leg-detached": "a coupled secondary failed and was uncoupled",
    "secondary-alone": "the primary was left out: what is written now only this secondary has, and it says so",
    "tracking-mended": "tracking was given up and begun anew",
    "hook-failed": "a hook failed, which hooks are not told of",
    "alert-raised": "something is wrong",
    "alert-cleared": "it is well again",
}
