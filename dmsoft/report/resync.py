# SPDX-License-Identifier: GPL-2.0-or-later
"""What came of a resync, in a few lines."""

from dmsoft.mirror.sync import Outcome, SecondaryOutcome
from dmsoft.report.output import say, time_text
from dmsoft.units import format_duration, format_size


def show(outcome: Outcome, *, dry_run: bool) -> None:
    for part in outcome.secondaries:
        say(f"{part.label}: {_line(part, dry_run=dry_run, converged=outcome.converged)}", hang=2)
    if not dry_run and outcome.passes:
        say(
            f"{format_size(outcome.bytes_copied)} copied in {format_duration(outcome.seconds)}; "
            f"longest barrier {outcome.stall_ms:.0f} ms."
        )


def _line(part: SecondaryOutcome, *, dry_run: bool, converged: bool) -> str:
    if part.error is not None:
        return f"not done. {part.error}"
    if dry_run:
        return f"{_intent(part)}, because {part.reason}."
    if part.consistent_as_of is not None:
        return f"{_deed(part)}; current as of {time_text(part.consistent_as_of)}."
    if converged:
        # Only a disk that is coupled in the kernel is never at rest.
        return f"{_deed(part)}; attached, so writes follow at once."
    return f"{_deed(part)}, but it is no whole point in time yet."


def _intent(part: SecondaryOutcome) -> str:
    stale = format_size(part.bytes_stale)
    intents = {
        "none": "nothing to copy",
        "incremental": f"would copy {stale}",
        "compare": f"would compare all {stale} and copy what differs",
        "full": f"would copy all {stale}",
    }
    return intents[part.kind]


def _deed(part: SecondaryOutcome) -> str:
    stale, copied = format_size(part.bytes_stale), format_size(part.bytes_copied)
    deeds = {
        "none": "missed nothing",
        "incremental": f"missed {stale}, {copied} copied",
        "compare": f"all {stale} compared, {copied} differed and copied",
        "full": f"first copy, {copied}",
    }
    return deeds[part.kind]
