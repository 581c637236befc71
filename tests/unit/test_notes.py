# SPDX-License-Identifier: GPL-2.0-or-later
"""What the primary's header is told before a copy begins."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dmsoft.member.payload import Primary, Sync
from dmsoft.mirror import notes, plug
from dmsoft.mirror.decision import Decision, Kind, from_record
from tests import mirror_model
from tests.mirror_model import TOKEN, TRACKER


@pytest.mark.parametrize("kind", ["incremental", "compare"])
def test_an_s_that_is_not_believed_counts_no_more_while_the_disk_is_away(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A primary that was put back from an image, and a compare that was cut off as it began."""
    monkeypatch.setattr(plug, "forget", lambda *_: None)
    sync = Sync(era=7, tracker=TRACKER, token=TOKEN, consistent=True)
    job = SimpleNamespace(
        label="one", decision=Decision(kind, "put back", 7 if kind == "incremental" else None), token="8" * 32,
        payload=SimpleNamespace(sync=sync), header=SimpleNamespace(sequence=5),
    )  # fmt: skip
    found: list[Primary] = []
    primary = mirror_model.primary(mirror_model.record("one", sync=sync.replace(era=4)))
    running = SimpleNamespace(payload=primary, names=None, grant=found.append)
    notes.pending(cast(Any, running), [cast(Any, job)])
    (record,) = found[0].members
    assert record.token_pending == job.token
    assert from_record(found[0], record).kind == kind
