# SPDX-License-Identifier: GPL-2.0-or-later
"""How much a secondary needs, and why: full, incremental or compare. Pure.

Law: an empty stale set is never the answer to doubt. S counts only together with the tracker life it was counted in and
with a token that both sides know; whatever does not fit makes the answer "compare every block".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dmsoft.era.blocks import BlockSet
from dmsoft.member.payload import MemberRecord, Partial, Primary, Secondary, Sync

Kind = Literal["none", "incremental", "compare", "full"]
KINDS: tuple[Kind, ...] = ("none", "incremental", "compare", "full")  # ascending by what they cost


@dataclass(frozen=True, slots=True)
class Decision:
    """What a resync of one secondary has to do. ``since`` is S for an incremental one, else None; ``partial`` what a
    run that was cut off has done already."""

    kind: Kind
    reason: str
    since: int | None = None
    partial: Partial | None = None

    def owed(self, written_since: Callable[[int], BlockSet], nr_blocks: int) -> BlockSet:
        """The blocks to be copied; ``written_since`` reads W of an era at this moment."""
        owed = BlockSet.full(nr_blocks) if self.since is None else written_since(self.since)
        if self.partial is None:
            return owed
        below = min(self.partial.below, nr_blocks)
        rest = BlockSet.from_extents(nr_blocks, [(below, nr_blocks - below)])
        return (owed & rest) | written_since(self.partial.until)


def decide(primary: Primary, record: MemberRecord, secondary: Secondary, current_era: int | None) -> Decision:
    """``current_era`` of the running mirror; None when it is not known, which no incremental answer survives."""
    # A doubt noted by the primary is older than a header that carries the token of a run begun since.
    resumed = record.token_pending is not None and secondary.sync.token == record.token_pending
    doubt = secondary.sync.doubt
    if doubt is None and not resumed:
        doubt = record.sync.doubt
    if doubt is not None:
        return _doubted(primary, record, secondary.sync, current_era, doubt)
    era, partial = secondary.sync.era, secondary.sync.partial
    if era is None and partial is None:
        return Decision("full", "it was never copied")
    mismatch = _untracked(primary) or _mismatch(primary, record, secondary.sync, current_era)
    if era is None:
        if mismatch is not None:
            return Decision("full", "it was never copied to the end")
        return Decision("full", "its first copy was cut off, and goes on there", None, partial)
    if mismatch is not None:
        return Decision("compare", mismatch)
    more = "" if partial is None else ", and part of the rest from a run that was cut off"
    return Decision("incremental", f"it holds everything written before era {era}{more}", era, partial)


def _doubted(primary: Primary, record: MemberRecord, sync: Sync, current_era: int | None, doubt: str) -> Decision:
    """A compare; how far one came counts for the doubt that asked for it, which the header has beside it."""
    reason = f"nothing is known of it for sure: {doubt}"
    if sync.partial is None or sync.era is not None or doubt != sync.doubt:
        return Decision("compare", reason)
    if _untracked(primary) is not None or _mismatch(primary, record, sync, current_era) is not None:
        return Decision("compare", reason)
    return Decision("compare", f"{reason}; the compare that was cut off goes on", None, sync.partial)


def go_on(
    primary: Primary, record: MemberRecord, secondary: Secondary, staged: Sync, current_era: int | None
) -> Decision | None:
    """What is left to do with what a run that was cut off left in the journal; None when that counts for nothing."""
    found = decide(primary, record, secondary.replace(sync=staged), current_era)
    if found.kind != "incremental":
        return None
    return Decision(found.kind, f"{found.reason}, in its journal", found.since, found.partial)


def from_record(primary: Primary, record: MemberRecord) -> Decision:
    """The same for a secondary that is away, from what the primary remembers of it."""
    sync = record.sync
    if sync.doubt is not None:
        return Decision("compare", f"nothing is known of it for sure: {sync.doubt}")
    if sync.era is None:
        return Decision("full", "it was never copied")
    mismatch = _untracked(primary)
    if mismatch is None and sync.tracker != primary.tracker.id:
        mismatch = "tracking began anew since its last resync"
    if mismatch is not None:
        return Decision("compare", mismatch)
    return Decision("incremental", f"it holds everything written before era {sync.era}", sync.era)


def _untracked(primary: Primary) -> str | None:
    doubt = primary.tracker.doubt
    return None if doubt is None else f"the mirror runs without tracking: {doubt}"


def _mismatch(primary: Primary, record: MemberRecord, sync: Sync, current_era: int | None) -> str | None:
    if sync.tracker != primary.tracker.id:
        return "tracking began anew since its last resync"
    if sync.token is None or sync.token not in (record.token_pending, record.token_confirmed):
        return "its last resync is not the one that the primary remembers: one of them was put back from an older copy"
    if current_era is None:
        return "the current era is not known"
    return ahead(record, sync, current_era)


def ahead(record: MemberRecord, sync: Sync, current_era: int | None) -> str | None:
    """Why a secondary of the same tracker life has something that the primary has not, None if it has not."""
    latest = max(sync.era or 0, sync.partial.until if sync.partial else 0)
    if sync.token == record.token_pending and latest > _most(record):
        return "its last resync ended after the state that the primary was put back to"
    if current_era is not None and latest > current_era:
        return f"it was synced up to era {latest}, which the primary has not reached"
    return None


def _most(record: MemberRecord) -> float:
    return math.inf if record.pending_most is None else record.pending_most
