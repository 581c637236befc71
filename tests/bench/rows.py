# SPDX-License-Identifier: GPL-2.0-or-later
"""One row of a benchmark's result, and how it is printed."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """``ours`` beside ``reference``, in the unit ``metric`` names. ``bar``: the highest ``ratio`` allowed, if any."""

    case: str
    metric: str
    ours: float
    reference: float | None = None
    reference_name: str | None = None
    bar: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.reference if self.reference else None

    @property
    def holds(self) -> bool | None:
        """None where there is no bar; a bar without anything to compare with does not hold."""
        if self.bar is None:
            return None
        return self.ratio is not None and self.ratio <= self.bar

    def as_dict(self) -> dict[str, object]:
        row = asdict(self)
        ratio = self.ratio
        return {
            **{name: row[name] for name in ("case", "metric", "ours", "reference", "reference_name")},
            "ratio": None if ratio is None else round(ratio, 4),
            "bar": self.bar,
            "holds": self.holds,
        }


def print_rows(rows: Iterable[Row], *, as_json: bool) -> bool:
    """Print each row as it comes. True if every bar holds."""
    good = True
    if not as_json:
        print(
            f"{'case':<14} {'metric':<34} {'ours':>10} {'reference':>10} {'ratio':>7} {'bar':>5}  against", flush=True
        )
    for row in rows:
        good &= row.holds is not False
        print(json.dumps(row.as_dict()) if as_json else _line(row), flush=True)
    return good


def _line(row: Row) -> str:
    ratio, bar = _number(row.ratio), _number(row.bar)
    mark = {None: "", True: "  holds", False: "  FAILS"}[row.holds]
    return (
        f"{row.case:<14} {row.metric:<34} {_number(row.ours):>10} {_number(row.reference):>10} "
        f"{ratio:>7} {bar:>5}  {row.reference_name or ''}{mark}"
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
