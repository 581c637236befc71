# SPDX-License-Identifier: GPL-2.0-or-later
"""What `status` makes of what the kernel tells about the record of written blocks."""

from types import SimpleNamespace

import pytest

from dmsoft.dm.targets import EraStatus
from dmsoft.mirror.observe import _Observer
from dmsoft.mirror.views import Alert, EraView
from tests import mirror_model


def live(status: EraStatus, doubt: str | None = None) -> tuple[EraView, int | None, list[Alert]]:
    tracker = mirror_model.primary().tracker.replace(doubt=doubt)
    running = SimpleNamespace(
        names=SimpleNamespace(name="m"), payload=SimpleNamespace(tracker=tracker), block_bytes=1 << 20
    )
    alerts: list[Alert] = []
    view, era = _Observer._live_era(SimpleNamespace(running=running), status, alerts)  # type: ignore[arg-type]
    return view, era, alerts


@pytest.mark.parametrize(("used", "warned"), [(1, False), (768, False), (769, True), (1024, True)])
def test_filling_metadata_are_told_of_long_before_they_are_full(used: int, warned: bool) -> None:
    view, era, alerts = live(EraStatus(used=used, total=1024, era=7))
    assert (view.metadata_used, view.metadata_total, view.current, era) == (used, 1024, 7, 7)
    assert [alert.code for alert in alerts] == ["metadata-filling"] * warned
    assert not warned or f"{100 * used // 1024} % full" in alerts[0].summary


@pytest.mark.parametrize("doubt", [None, "given up"])
def test_failed_metadata_are_told_of_once(doubt: str | None) -> None:
    """With a doubt in the header there is the alert for that."""
    view, era, alerts = live(EraStatus(failed=True), doubt)
    assert (view.current, era) == (None, None)
    assert [alert.code for alert in alerts] == ([] if doubt else ["tracking-failed"])
