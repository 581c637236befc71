# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a secondary may be copied onto without a person asking. Pure.

A signature proves that a header was written with this host's key, not that it is the last one written: whoever copied
a disk has a signed header too, and a disk that was written elsewhere still carries its own. The primary remembers what
each secondary was left with; a disk that is not that is left alone until a person runs ``dmsoft resync``.
"""

from typing import Final

from dmsoft.errors import RefusedError
from dmsoft.member.header import Header, Scan
from dmsoft.member.payload import MemberRecord, Primary, Secondary
from dmsoft.mirror.decision import ahead

DIFFERS: Final = "a block that should be equal differs from the primary"


class OldCopyError(RefusedError):
    """A disk is an older copy of a member of a mirror.

    Its header is signed, but the primary remembers a later one: the disk was put back from an image, it is a clone that
    was made a while ago, or the primary itself was put back. Nothing is copied onto it by itself. If it is the disk you
    mean, `dmsoft resync` compares every block and makes it a member as it was.
    """

    code = "old-copy"


class ChangedElsewhereError(RefusedError):
    """A disk does not hold what it held when it left.

    A block that nobody should have touched differs, or its header says that something is wrong with it: it was written
    on another machine, it is not the disk that it says it is, or it fails. Nothing is copied onto it by itself, since
    that would destroy what was written. Save from it what you need; then `dmsoft resync` compares every block and makes
    it a copy of the primary again.
    """

    code = "changed-elsewhere"


def objection(
    primary: Primary, record: MemberRecord, found: Header, scan: Scan, current_era: int | None, *, differs: bool = False
) -> RefusedError | None:
    """Why nobody but a person may have this disk copied onto, None if nothing speaks against it.

    ``found`` is its verified header as ``scan`` saw it or a later one; ``differs``: a block that should be equal is
    not. A header that a run has begun with already was accepted then.
    """
    payload = found.payload
    if not isinstance(payload, Secondary):
        raise TypeError("only secondaries are copied onto")
    if differs or record.suspect is not None or scan.doubt is not None:
        return _changed(record.label, (record.suspect or scan.doubt or DIFFERS).rstrip("."))
    if record.sequence is not None and found.sequence == record.sequence:
        return None
    # The copy that is whole beside a torn one is rightly older.
    whole = all(copy.status == "ok" for copy in scan.copies)
    if whole and record.sequence is not None and found.sequence < record.sequence:
        return _old(record.label, f"its header has number {found.sequence}, and it had {record.sequence} when it left")
    sync = payload.sync
    if sync.doubt is not None and (sync.token is None or sync.token != record.token_pending):
        return _changed(record.label, sync.doubt.rstrip("."))
    known = {record.token_pending, record.token_confirmed, record.sync.token}
    never = sync.token is None and record.sync.era is None
    if not never and (sync.token is None or sync.token not in known):
        return _old(record.label, "its last resync is not one that the primary remembers")
    why = ahead(record, sync, current_era) if sync.tracker == primary.tracker.id else None
    return None if why is None else _old(record.label, why)


def _old(label: str, why: str) -> OldCopyError:
    return OldCopyError(
        f"{label} is an older copy of itself, or the primary is: {why}.",
        hint="If it is the disk you mean, run `dmsoft resync`, which compares every block.",
    )


def _changed(label: str, why: str) -> ChangedElsewhereError:
    return ChangedElsewhereError(
        f"{label} is not as it was when it left: {why}.",
        hint="Save from it what you need; then run `dmsoft resync`, which compares every block.",
    )
