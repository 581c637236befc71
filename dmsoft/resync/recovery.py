# SPDX-License-Identifier: GPL-2.0-or-later
"""What a journal that was cut off means at the next open of its disk: a committed one is applied, any other is nothing.

It takes the disk and the key, and no primary.
"""

import threading
from collections.abc import Callable

from dmsoft.errors import DeviceError
from dmsoft.member import header as headers
from dmsoft.member import record as records
from dmsoft.member.header import Header
from dmsoft.member.payload import Secondary
from dmsoft.member.record import Record
from dmsoft.resync import segments
from dmsoft.resync.journal import Journal, OpenDisk
from dmsoft.resync.segments import JournalDamagedError
from dmsoft.resync.steps import step


def found(disk: OpenDisk, header: Header, key: bytes) -> Record | None:
    """The record that counts under this header, committed or not. Raises `JournalDamagedError` if it cannot be read."""
    try:
        return records.read(disk, header, key)
    except OSError as err:
        raise segments.unreadable(err) from err


def recover(
    disk: OpenDisk, header: Header, key: bytes, *, cancelled: threading.Event | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Header:  # fmt: skip
    """Apply a committed journal, if there is one; returns the header as it stands afterwards.

    Call it on every open for writing, before anything else is believed or written. A committed journal that cannot be
    read whole leaves a disk that is a mix: that is written to its header. Raises `DeviceError` when the disk fails, and
    the journal counts on, and `CancelledError`.
    """
    payload = header.payload
    if not isinstance(payload, Secondary):
        return header
    record = None
    try:
        record = found(disk, header, key)
        if record is None or not record.committed:
            return header
        journal = Journal.of(record, disk, payload.regions["journal"], payload.regions["data"], key)
        apply(journal, cancelled=cancelled, on_progress=on_progress)
    except JournalDamagedError as err:
        token = None if record is None else record.sync.token
        return withdraw_damaged(disk, payload, key, err, token)
    except OSError as err:
        raise DeviceError(
            f"The journal of {disk.name} could not be applied: {err.strerror}.", hint="Look at the disk's health."
        ) from err
    with step("super-write"):
        return headers.write_granted(disk, payload.replace(sync=record.sync), key)


def apply(
    journal: Journal, *, cancelled: threading.Event | None = None, on_progress: Callable[[int], None] = lambda _: None
) -> None:
    """DATA_WRITE and DATA_FLUSH. Raises OSError, `JournalDamagedError`, `CancelledError`."""
    journal.apply(cancelled=cancelled, on_progress=on_progress)
    with step("data-flush"):
        journal.disk.flush()


def withdraw_damaged(
    disk: OpenDisk, payload: Secondary, key: bytes, err: JournalDamagedError, token: str | None
) -> Header:
    """Both copies of the header say that the disk may be a mix, and doubtful if it did not say itself what it lost.

    ``token`` is that of the run whose journal it is, None if nobody can tell: a primary put back from an image of
    before that run lacks the marks of what was applied, and must not know it. A disk in doubt keeps its own, so that
    nobody but a person has it copied onto."""
    doubt = err.message[:200] if err.doubtful else payload.sync.doubt
    sync = payload.sync.replace(
        token=payload.sync.token if err.doubtful else token,
        consistent=False,
        consistent_as_of=None,
        doubt=doubt,
        partial=None,
    )
    return headers.write_withdrawn(disk, payload.replace(sync=sync), key)
