# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made of md's letters for a raid1 whose primary is the last leg."""

from types import SimpleNamespace
from typing import Any

import pytest

from dmsoft.dm.device import TargetLine
from dmsoft.errors import DeviceError
from dmsoft.mirror import health
from dmsoft.mirror import lower as lowers
from dmsoft.units import Sectors


def lower(*letters: str) -> Any:
    """A suspended raid1 that says these letters one after the other, the last of them for ever; none: linear."""
    said = list(letters)

    def status(*, asleep: bool) -> tuple[TargetLine]:
        assert asleep
        if not said:
            return (TargetLine(Sectors(0), Sectors(8), "linear", ""),)
        word = said.pop(0) if len(said) > 1 else said[0]
        return (TargetLine(Sectors(0), Sectors(8), "raid", f"raid1 {len(word)} {word} 8/8 frozen 0 0 -"),)

    return SimpleNamespace(info=lambda: SimpleNamespace(suspended=True, live_table=True), status=status)


@pytest.mark.parametrize(
    ("letters", "verdict"),
    [
        ((), "whole"),
        (("AA",), "whole"),
        (("DA",), "without-secondary"),
        (("Da",), "without-secondary"),
        (("AD",), "without-primary"),
        (("DAD",), "without-primary"),
        (("Aa",), "without-primary"),
        (("aa",), "not-known"),
        (("aa", "aa", "AD"), "without-primary"),
        (("aaa", "DAA"), "without-secondary"),
        (("Daa",), "not-known"),
        (("Daa", "DaD"), "without-primary"),
        (("Daa", "DAA"), "without-secondary"),
        (("aaa", "AAA"), "whole"),
    ],
)
def test_what_a_suspended_raid1_says(
    letters: tuple[str, ...], verdict: health.Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_ASK_SECONDS", 0.2)
    assert health.verdict(lower(*letters)) == verdict


@pytest.mark.parametrize("primary_is_here", [True, False])
def test_a_raid1_whose_primary_goes_too_while_it_is_suspended_stays(primary_is_here: bool) -> None:
    """The linear table cannot be loaded then; whatever happens, the lower has to be resumed."""
    done: list[str] = []

    def load(table: object) -> None:
        done.append(f"load {table}")
        if not primary_is_here:
            raise DeviceError("The device is gone.")

    target: Any = SimpleNamespace(load=load, clear=lambda: done.append("clear"))
    guard: Any = SimpleNamespace(fallback="linear")
    assert lowers._judged(target, guard, guard.fallback, "without-secondary") == "whole" and not done
    verdict = lowers._judged(target, guard, ("raid1",), "without-secondary")  # type: ignore[arg-type]
    assert (verdict, done) == (
        ("without-secondary", ["load linear"]) if primary_is_here else ("not-known", ["load linear", "clear"])
    )
