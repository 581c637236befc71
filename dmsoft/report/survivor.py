# SPDX-License-Identifier: GPL-2.0-or-later
"""What a secondary holds by itself, and how to get at it."""

import shlex

from dmsoft.mirror.survivor import Survivor
from dmsoft.report.output import clean, echo, say, time_text
from dmsoft.units import format_size


def show(found: Survivor, *, dry_run: bool) -> None:
    who = f"{found.label} of {found.name}"
    if found.bytes_applied:
        amount = format_size(found.bytes_applied)
        if dry_run:
            as_of = time_text(found.consistent_as_of or "-")
            say(f"{who}: {amount} of its journal would be put in place; then it is a whole copy as of {as_of}.", hang=2)
            return
        say(f"{who}: {amount} from its journal were put in place.", hang=2)
    if found.consistent_as_of is not None:
        is_ = "is" if found.doubt is None else "says that it is"
        say(f"{who} {is_} a whole copy as of {time_text(found.consistent_as_of)}.", hang=2)
    else:
        say(f"{who} is no whole copy: what it holds is not of one moment.", hang=2)
    if found.doubt is not None:
        say(f"{who} is in doubt: {found.doubt.rstrip('.')}.", hang=2)
    say("To read its data, map them read-only and mount that read-only:")
    echo(clean(f"  dmsetup create recovered --readonly --table {shlex.quote(found.table)}"))
    echo("  mount -o ro,noload /dev/mapper/recovered /mnt  # xfs: ro,norecovery")
