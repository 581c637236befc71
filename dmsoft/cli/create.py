# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft create``."""

import click

from dmsoft.cli.consent import consent
from dmsoft.cli.options import (
    SizeType,
    allow_discards_option,
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
from dmsoft.units import format_size


@click.command(short_help="Make the mirror NAME and start it; nothing is copied yet.")
@click.argument("name")
@click.option("--primary", required=True, metavar="DEV", help="The disk that is written directly.")
@click.option(
    "--secondary", "words", multiple=True, required=True, metavar="[LABEL=]DEV", help="A disk that lags; repeatable."
)
@mode_option
@via_option
@interval_option
@expect_option
@click.option(
    "--block-size", type=SizeType(), default=None, metavar="SIZE",
    help="Unit of tracking and copying. [default: 1M, more on disks above 16T]",
)  # fmt: skip
@click.option("--metadata", metavar="DEV", help="Keep the era metadata on this (fast) device instead of the primary.")
@journal_option
@allow_discards_option
@force_option
@dry_run_option
@yes_option
@json_option
def create(
    name: str, primary: str, words: tuple[str, ...], mode: Mode, vias: tuple[str, ...], interval: float,
    expects: tuple[str, ...], block_size: int | None, metadata: str | None, journal_size: int | None, force: bool,
    dry_run: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make the mirror NAME of a primary and its secondaries, and start it.

    What is on the devices is lost. Nothing is copied: the secondaries begin stale, and `dmsoft resync NAME` makes
    their first copy.
    """
    from dmsoft.mirror.create import MirrorSpec
    from dmsoft.mirror.create import create as make

    specs = secondaries(words, vias, mode, interval, journal_size, expects)
    spec = MirrorSpec(name, primary, specs, mode, interval, block_size, metadata, force)
    made = make(spec, dry_run=True)
    if not dry_run:
        with consent(spec.devices, yes=yes):
            made = make(spec)
    if as_json:
        emit(made)
    elif dry_run:
        say(f"Would make {made.device} ({format_size(made.size_bytes)}) of these tables:")
        tables(made.tables)
    else:
        say(f"{made.device} is ready: {format_size(made.size_bytes)}, blocks of {format_size(made.block_bytes)}.")
        if made.untracked:
            say(f"Nothing is tracked: {made.untracked}.")
        say(f"Nothing is copied yet; make the first copy with: dmsoft resync {name}")
