# SPDX-License-Identifier: GPL-2.0-or-later
"""The status tables, made to be read at 80 columns."""

from rich.table import Table
from rich.text import Text

from dmsoft.mirror.at_work import RunView
from dmsoft.mirror.views import MirrorView, SecondaryView, StatusView, summary
from dmsoft.report.maps import line
from dmsoft.report.output import clean, console, count, echo, say, show_table, speaks_unicode, time_text
from dmsoft.units import format_duration, format_size

_STYLES = {
    "current": "green", "attached": "green", "stale": "yellow", "syncing": "cyan", "away": "dim", "missing": "dim",
    "failed": "bold red", "unknown": "red", "diverged": "bold red",
}  # fmt: skip

_JOURNAL = {
    "committed": "its journal was committed; the next start or resync applies it.",
    "staged": "its journal has part of what it misses; the next resync goes on there.",
}  # fmt: skip


def show(view: StatusView) -> None:
    if not view.mirrors:
        say("There is no mirror here. Make one with: dmsoft create NAME --primary DEV --secondary DEV")
    for index, mirror in enumerate(view.mirrors):
        if index:
            say("")
        _show_mirror(mirror)


def _show_mirror(mirror: MirrorView) -> None:
    out = console()
    out.print(Text.assemble((mirror.name, "bold"), f"  {_headline(mirror)}"))
    primary, era = mirror.primary, mirror.era
    line = " ".join(word for word in ("primary", primary.device or "", primary.state) if word)
    if era.current is not None:
        line += f", era {era.current}"
    if era.metadata_used is not None and era.metadata_total:
        line += f", metadata {100 * era.metadata_used // era.metadata_total} % full"
    say(f"  {line}", hang=2)
    if mirror.secondaries:
        show_table(_table(mirror.secondaries))
        _show_maps(mirror.secondaries)
    for secondary in mirror.secondaries:
        if secondary.journal is not None:
            say(f"  {secondary.label}: {_JOURNAL[secondary.journal]}", hang=2)
    for each in mirror.secondaries:
        if each.away_since is not None:
            say(f"  {each.label}: {_absence(each)}", hang=2)
    if mirror.run is not None:
        say(f"  {clean(_work(mirror.run))}", hang=2)
    for alert in mirror.alerts:
        say(f"  {alert.code}: {alert.summary}", hang=2)


def _work(run: RunView) -> str:
    """Who is at work and how far that is."""
    text = f"{run.verb or 'another command'} is at work, process {run.pid}, since {time_text(run.since)}"
    if run.phase is None or run.bytes_done is None or run.bytes_total is None:
        return f"{text}."
    text += f": {run.phase} of {', '.join(run.labels)}"
    if run.bytes_total:
        text += f", {format_size(run.bytes_done)} of {format_size(run.bytes_total)}"
    if run.bytes_per_second:
        text += f" at {format_size(run.bytes_per_second)}/s"
    if run.seconds_left is not None:
        text += f", {format_duration(run.seconds_left)} left"
    if run.requests_failed:
        text += f", {count(run.requests_failed, 'request')} failed"
    return f"{text}."


def _absence(view: SecondaryView) -> str:
    """Since when a disk is away, and what it would take to catch up."""
    text = f"away since {time_text(view.away_since or '')}"
    if view.stale_blocks:
        text += f"; misses {count(view.stale_blocks, 'block')} ({summary(view)})"
    if view.catch_up_seconds:
        text += f"; catching up takes about {format_duration(view.catch_up_seconds)}"
    if view.expect_seconds:
        text += f"; expected every {format_duration(view.expect_seconds)}"
    return f"{text}; {view.reason}." if view.device is not None else f"{text}."


def _headline(mirror: MirrorView) -> str:
    facts = ["running" if mirror.active else "stopped", mirror.mode or "mode not known"]
    if mirror.size_bytes is not None:
        facts.append(format_size(mirror.size_bytes))
    return f"{', '.join(facts)}  {mirror.device}"


def _table(secondaries: tuple[SecondaryView, ...]) -> Table:
    """Long labels and devices are folded; what the disk is like is never cut."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("secondary", overflow="fold")
    for name in ("state", "misses", "lag", "as of (UTC)"):
        table.add_column(name, no_wrap=True)
    table.add_column("device", overflow="fold")
    for secondary in secondaries:
        table.add_row(*_row(secondary))
    return table


def _show_maps(secondaries: tuple[SecondaryView, ...]) -> None:
    """Where the staleness lies, for each of which some is stale and some is not; at most 80 columns."""
    some = [view for view in secondaries if view.stale_map and max(view.stale_map) and min(view.stale_map) < 100]
    width = max((len(view.label) for view in some), default=0)
    for view in some:
        echo(f"  {view.label:{width}}  {line(view.stale_map or (), unicode=speaks_unicode())}")


def _row(view: SecondaryView) -> list[Text]:
    state: str = view.state
    if view.progress is not None:
        state += f" {100 * view.progress:.0f} %"
    lag = "-" if view.lag_seconds is None else format_duration(view.lag_seconds) if view.lag_seconds else "none"
    # To the minute: the lag says the rest.
    as_of = (view.consistent_as_of or "-").replace("T", " ")[:16]
    cells = [view.label, "", summary(view), lag, as_of, clean(view.device or "-")]
    row = [Text(cell) for cell in cells]
    row[1] = Text(state, _STYLES[view.state])
    return row
