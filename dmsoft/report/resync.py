# SPDX-License-Identifier: GPL-2.0-or-later
"""What came of a resync, in a few lines."""

from dmsoft.mirror.sync import Outcome, SecondaryOutcome
from dmsoft.report.output import say, time_text
from dmsoft.report.progress import way
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
    as_of = None if part.consistent_as_of is None else time_text(part.consistent_as_of)
    if part.error is not None:
        return f"not done. {part.error}" + (f" The disk is whole, as of {as_of}." if as_of else "")
    if dry_run:
        return _intent(part)
    if not converged and as_of is not None:
        return f"{_deed(part)}, into its journal; the disk is whole, as of {as_of}."
    if as_of is not None:
        return f"{_deed(part)}; current as of {as_of}."
    if converged:
        # Only a disk that is coupled in the kernel is never at rest.
        return f"{_deed(part)}; attached, so writes follow at once."
    return f"{_deed(part)}, but it is no whole point in time yet."


def _intent(part: SecondaryOutcome) -> str:
    stale = format_size(part.bytes_stale)
    if part.attached and part.kind != "none":
        return f"would compare {stale} while it stays attached, because {part.reason}."
    intents = {
        "none": "nothing to copy",
        "incremental": f"would copy {stale}",
        "compare": f"would compare all {stale} and copy what differs",
        "full": f"would copy all {stale}",
    }
    if part.kind == "none":
        return f"{intents['none']}, because {part.reason}."
    about = "" if part.seconds_estimate is None else f" in about {format_duration(part.seconds_estimate)}"
    return f"{intents[part.kind]}{about}, because {part.reason}. {way(part.journal, part.direct_reason)}"


def _deed(part: SecondaryOutcome) -> str:
    stale, copied = format_size(part.bytes_stale), format_size(part.bytes_copied)
    if part.attached and part.kind != "none":
        return f"{stale} written since compared, all of it there"
    deeds = {
        "none": "missed nothing",
        "incremental": f"missed {stale}, {copied} copied",
        "compare": f"all {stale} compared, {copied} differed and copied",
        "full": f"first copy, {copied}",
    }
    return deeds[part.kind]
