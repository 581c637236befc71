# SPDX-License-Identifier: GPL-2.0-or-later
"""Is the era metadata on the disk still the one we know? Pure verdicts; doubt is never answered by an empty set.

dm-era's metadata has no identity of its own, and the kernel formats a zeroed block 0 without a word. So the mirror
keeps a digest of block 0 from the last clean stop, and the highest era it ever saw durable.
"""

from dataclasses import dataclass

from dmsoft.era.superblock import Superblock
from dmsoft.member.payload import MemberRecord, Primary, Tracker
from dmsoft.mirror.names import new_uuid


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in the metadata region: ``superblock`` None with ``problem`` when it does not verify."""

    zero: bool
    digest: str
    superblock: Superblock | None
    problem: str | None = None


def doubt(  # noqa: PLR0911 - one return a reason
    tracker: Tracker, found: Found, *, block_sectors: int, nr_blocks: int
) -> str | None:
    """Why the metadata cannot be trusted to be ``tracker``'s; None when it can.

    ``create`` that was cut off before it noted ``formatted`` leaves either a zero block or a fresh one: both are fine,
    nothing was ever synced against it.
    """
    if tracker.doubt is not None:
        return tracker.doubt
    if found.zero:
        return None if not tracker.formatted else "the era metadata was zeroed"
    if found.superblock is None:
        return f"the era metadata does not verify ({found.problem})"
    if found.superblock.data_block_size != block_sectors:
        return "the era metadata has another block size"
    if found.superblock.nr_blocks not in (0, nr_blocks):
        return "the era metadata belongs to a device of another size"
    if tracker.clean_digest is not None and tracker.clean_digest != found.digest:
        return "the era metadata changed while the mirror was stopped"
    if tracker.formatted and found.superblock.current_era < tracker.era_floor:
        return f"the era went back from {tracker.era_floor} to {found.superblock.current_era}"
    return None


def revoked(primary: Primary, reason: str, *, tracked: bool) -> Primary:
    """The primary's header with a new tracker life and nothing known of any secondary, because of ``reason``.

    ``tracked`` False: nothing tracks in that life; it ends when tracking begins anew. The mirror is used without, so no
    create may take it for one that was cut short; in a life that is yet to begin it still may.
    """
    doubt = None if tracked else reason[:200]
    fresh = Tracker(id=new_uuid(), formatted=primary.tracker.formatted or not tracked, doubt=doubt)
    # A disk whose run is cut off by this carries the pending token: it is known as ours by that, which proves nothing
    # of what it holds, as the life is another one.
    members = (doubted(record, reason).replace(token_pending=record.token_pending) for record in primary.members)
    return primary.replace(tracker=fresh, members=tuple(members))


def doubted(record: MemberRecord, reason: str) -> MemberRecord:
    """The record of a secondary that is unknown now: no token counts. One never copied has nothing to doubt."""
    sync = record.sync if record.sync.era is None else record.sync.doubted(reason)
    return record.replace(sync=sync, token_pending=None, token_confirmed=None)


def bounded(record: MemberRecord, era: int) -> MemberRecord:
    """A run that was cut off promised no era above ``era``, the last one before this start; one that went on after the
    image was taken that the primary was put back from did."""
    unbounded = record.token_pending is not None and record.pending_most is None
    return record.replace(pending_most=era) if unbounded else record
