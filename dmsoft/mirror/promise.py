# SPDX-License-Identifier: GPL-2.0-or-later
"""What a secondary was promised to be, and whether it is: how far it may lag, how long it may be away. Pure.

Times are seconds; moments are seconds of the epoch.
"""

import datetime

from dmsoft.member.payload import MemberRecord
from dmsoft.mirror.bulletin import Held
from dmsoft.units import format_duration


def moment(stamp: str) -> float:
    """The seconds of the epoch of a time as headers have it."""
    return datetime.datetime.fromisoformat(stamp).timestamp()


def clean_until(as_of: str | None, token: str | None, held: Held | None) -> float | None:
    """Up to which moment the secondary has all that was written; None when nobody knows."""
    known = [] if as_of is None else [moment(as_of)]
    if held is not None and token is not None and held.token == token:
        known.append(held.until)
    return max(known, default=None)


def missed(record: MemberRecord, lag: float | None) -> str | None:
    """The sentence about a lag that is longer than promised, None for one that is not."""
    promised = record.interval_seconds
    if record.mode != "periodic" or not promised or lag is None or lag <= promised:
        return None
    return f"{record.label} lags {format_duration(lag)}, and {format_duration(promised)} was promised."


def overdue(record: MemberRecord, since: str | None, now: float) -> str | None:
    """The sentence about a disk that is not here longer than it was expected to be; ``since`` when it went, or the last
    moment it is a copy of."""
    expected = record.expect_seconds
    if expected is None or since is None or (gone := now - moment(since)) <= expected:
        return None
    return f"{record.label} is away for {format_duration(gone)}, and is expected every {format_duration(expected)}."
