# SPDX-License-Identifier: GPL-2.0-or-later
"""Which secondaries take part in a run."""

from collections.abc import Sequence

from dmsoft.errors import BusyError, NotFoundError
from dmsoft.member.payload import MemberRecord
from dmsoft.mirror import lower, plug
from dmsoft.mirror.generation import parted
from dmsoft.mirror.running import Running


def chosen(running: Running, labels: Sequence[str]) -> list[MemberRecord]:
    """The records meant: those named, else those that are here. Raises `NotFoundError`, or why none can be used."""
    known = {record.label: record for record in running.payload.members}
    for label in labels:
        if label not in known:
            raise NotFoundError(
                f"{running.names.name} has no secondary {label}.",
                hint=f"It has {', '.join(known) or 'none'}; add one with `dmsoft add`.",
            )
    if labels:
        return [known[label] for label in dict.fromkeys(labels)]
    here = [r for label, r in known.items() if label in running.assembly.secondaries and not _is_ejected(running, r)]
    if not here and running.assembly.problems:
        raise next(iter(running.assembly.problems.values()))
    if not here:
        raise NotFoundError(f"No secondary of {running.names.name} is here.", hint="Plug one in and try again.")
    return here


def _is_ejected(running: Running, record: MemberRecord) -> bool:
    """Whether its disk is here and waits to be unplugged."""
    placed = running.assembly.secondaries.get(record.label)
    return placed is not None and plug.waits(running.names, record.label, placed.number)


def without_ejected(running: Running, records: list[MemberRecord]) -> list[MemberRecord]:
    """Those that nobody has ejected since it was decided to copy; raises `BusyError` if that leaves none."""
    left = [record for record in records if not _is_ejected(running, record)]
    if not left:
        raise BusyError(
            f"{', '.join(record.label for record in records)} was ejected and waits to be unplugged.",
            hint="Unplug it, or run `dmsoft resync`.",
        )
    return left


def all_parted(running: Running, labels: Sequence[str]) -> bool:
    """Whether the primary may be copied onto none of these secondaries."""
    placed = [running.assembly.secondaries.get(label) for label in labels]
    return all(each is not None and parted(running.payload, each.payload) is not None for each in placed)


def with_coupled(running: Running, records: list[MemberRecord]) -> list[MemberRecord]:
    """The raid1 is made anew as a whole: whoever is coupled now takes part when a write-behind secondary does."""
    if all(record.mode == "periodic" for record in records):
        return records
    chosen = {record.label for record in records}
    others = [r for r in running.payload.members if r.label not in chosen and r.mode == "write-behind"]
    coupled = lower.attached_labels(running.names, [r.label for r in others])
    return records + [r for r in others if r.label in coupled and r.label in running.assembly.secondaries]
