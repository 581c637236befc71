# SPDX-License-Identifier: GPL-2.0-or-later
"""The status tables, made to be read at 80 columns."""

from rich.console import Console
from rich.table import Table

from dmsoft.mirror.observe import MirrorView, SecondaryView, StatusView, summary
from dmsoft.report.output import console
from dmsoft.units import format_duration, format_size

_STYLES = {
    "current": "green", "attached": "green", "stale": "yellow", "syncing": "cyan", "away": "dim", "missing": "dim",
    "failed": "bold red", "unknown": "red", "diverged": "bold red",
}  # fmt: skip


def show(view: StatusView) -> None:
    out = console()
    if not view.mirrors:
        out.print("There is no mirror here. Make one with: dmsoft create NAME --primary DEV --secondary DEV")
    for index, mirror in enumerate(view.mirrors):
        if index:
            out.print()
        _show_mirror(out, mirror)


def _show_mirror(out: Console, mirror: MirrorView) -> None:
    size = "" if mirror.size_bytes is None else f", {format_size(mirror.size_bytes)}"
    running = "running" if mirror.active else "stopped"
    out.print(f"[bold]{mirror.name}[/bold]  {running}{size}, {mirror.mode or 'mode not known'}  {mirror.device}")
    primary = mirror.primary
    era = mirror.era
    fill = ""
    if era.metadata_used is not None and era.metadata_total:
        fill = f", metadata {100 * era.metadata_used // era.metadata_total} % full"
    tracking = "" if era.current is None else f"  era {era.current}{fill}"
    out.print(f"  primary {primary.device or '-'} {primary.state}{tracking}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("  secondary", "device", "state", "misses", "lag", "as of"):
        table.add_column(name, no_wrap=True)
    for secondary in mirror.secondaries:
        table.add_row(*_row(secondary))
    out.print(table)
    for alert in mirror.alerts:
        out.print(f"  [red]{alert.code}[/red]: {alert.summary}")


def _row(view: SecondaryView) -> list[str]:
    state = f"[{_STYLES[view.state]}]{view.state}[/]"
    if view.progress is not None:
        state += f" {100 * view.progress:.0f} %"
    lag = "-" if view.lag_seconds is None else format_duration(view.lag_seconds) if view.lag_seconds else "none"
    as_of = (view.consistent_as_of or "-").replace("T", " ").removesuffix("Z")
    return [f"  {view.label}", view.device or "-", state, summary(view), lag, as_of]
