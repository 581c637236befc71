# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft add``."""

import click

from dmsoft.cli.consent import consent
from dmsoft.cli.options import (
    dry_run_option,
    expect_option,
    force_option,
    interval_option,
    journal_option,
    json_option,
    mode_option,
    secondaries,
    via_option,
    yes_option,
)
from dmsoft.member.payload import Mode
from dmsoft.report.output import emit, say, tables


@click.command()
@click.argument("name")
@click.argument("device", metavar="[LABEL=]DEV")
@mode_option
@via_option
@interval_option
@expect_option
@journal_option
@force_option
@dry_run_option
@yes_option
@json_option
def add(
    name: str, device: str, mode: Mode, vias: tuple[str, ...], interval: float, expects: tuple[str, ...],
    journal_size: int | None, force: bool, dry_run: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Add a secondary to the mirror NAME, running or not. What is on the device is lost."""
    from dmsoft.mirror.create import devices_of
    from dmsoft.mirror.members import add as attach
    from dmsoft.mirror.members import free_label

    word = device if "=" in device and device[:1] not in ("/", ".") else f"{free_label(name)}={device}"
    (spec,) = secondaries([word], vias, mode, interval, journal_size, expects)
    lines = attach(name, spec, force=force, dry_run=True)
    if not dry_run:
        with consent(devices_of([spec]), yes=yes):
            lines = attach(name, spec, force=force)
    if as_json:
        emit({"name": name, "label": spec.label, "tables": lines})
    elif dry_run:
        say(f"Would add {spec.label} to {name} with these tables:")
        tables(lines)
    else:
        say(f"{spec.label} belongs to {name} now. Make its first copy with: dmsoft resync {name} {spec.label}")
