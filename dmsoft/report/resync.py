# SPDX-License-Identifier: GPL-2.0-or-later
"""What came of a resync, in a few lines."""

from dmsoft.mirror.sync import Outcome, SecondaryOutcome
from dmsoft.report.output import say
from dmsoft.units import format_duration, format_size


def show(name: str, outcome: Outcome, *, dry_run: bool) -> None:
    for part in outcome.secondaries:
        say(_line(name, part, dry_run=dry_run))
    if not dry_run and outcome.passes:
        say(
            f"{format_size(outcome.bytes_copied)} copied in {format_duration(outcome.seconds)}; "
            f"longest barrier {outcome.stall_ms:.0f} ms."
        )


def _line(name: str, part: SecondaryOutcome, *, dry_run: bool) -> str:
    if part.error is not None:
        return f"{part.label}: not done. {part.error}"
    if dry_run:
        if part.kind == "none":
            return f"{part.label}: nothing to copy, {part.reason}."
        return f"{part.label}: would copy {format_size(part.bytes_stale)} ({part.kind}), because {part.reason}."
    if part.consistent_as_of is None:
        return f"{part.label}: has more of {name} than before, but is no whole point in time yet."
    share = f"{format_size(part.bytes_copied)} of {format_size(part.bytes_stale)} stale"
    return f"{part.label}: {part.kind}, {share} copied; it is {name} as of {part.consistent_as_of}."
