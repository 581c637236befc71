# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several verbs share, and how their values are read."""

import os
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from dmsoft.errors import UsageError
from dmsoft.member.payload import MAX_SECONDS, Mode
from dmsoft.mirror.names import check_label
from dmsoft.units import parse_duration, parse_size

if TYPE_CHECKING:
    from dmsoft.mirror.create import SecondarySpec

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Check everything, show what would be done, change nothing."
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
force_option = click.option("--force", is_flag=True, help="Erase what is on the devices (nothing else is overridden).")


class DiscardsError(UsageError):
    """Discards cannot be allowed on a mirror.

    dm-era, which records what was written, notes only the first block that a discard touches. The others would differ
    on the secondaries without anybody knowing, and no setting of the kernel prevents that: measured on 5.10 to 7.2,
    even discards limited to the size of one block cross the border between two, and one of them is not noted. So
    `fstrim` and the discard option of a file system do nothing on a mirror. Leave --allow-discards out. To free space
    of a thin or solid-state primary, write zeroes (`blkdiscard -z`), which are noted as any write is.
    """

    code = "discards"


def _refuse_discards(_context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        raise DiscardsError(
            "Discards cannot be allowed: the kernel would note only the first block of each as changed.",
            hint="Leave --allow-discards out; `dmsoft explain discards` says more.",
        )


class SizeType(click.ParamType[Any]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_size(value)


class DurationType(click.ParamType[Any]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return value if isinstance(value, float) else parse_duration(value)


class RateType(click.ParamType[Any]):
    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from dmsoft.resync.pace import Limit

        return value if isinstance(value, Limit) else Limit.parse(value)


mode_option = click.option(
    "--mode", type=click.Choice(["periodic", "write-behind"]), default="periodic", show_default=True,
    help="periodic: copied from time to time, never in the write path. write-behind: coupled in the kernel.",
)  # fmt: skip
via_option = click.option(
    "--via", "vias", multiple=True, metavar="[LABEL=]WAY",
    help="How a write-behind secondary is reached: direct (default), writecache:DEV or delay:MS.",
)  # fmt: skip
max_stall_option = click.option(
    "--max-stall", type=DurationType(), default=0.2, metavar="TIME",
    help="How long copying inside the final barrier may hold up writers. [default: 200ms]",
)  # fmt: skip
rate_option = click.option(
    "--rate", type=RateType(), default="adaptive", show_default=True, metavar="RATE",
    help="How fast beside others: bytes a second such as 50M, a share such as 50%, adaptive or max.",
)  # fmt: skip
interval_option = click.option(
    "--interval", type=DurationType(), default="5m", show_default=True, metavar="TIME",
    help="How far a periodic secondary may lag, such as 30s, 5m or 1d.",
)  # fmt: skip
expect_option = click.option(
    "--expect-every", "expects", multiple=True, metavar="[LABEL=]TIME",
    help="How long a disk may be away before that is an alert, such as 7d; for all secondaries, or the one named.",
)  # fmt: skip
allow_discards_option = click.option(
    "--allow-discards", is_flag=True, is_eager=True, expose_value=False, callback=_refuse_discards,
    help="Refused: discards would leave secondaries stale without a record.",
)  # fmt: skip
journal_option = click.option(
    "--journal-size", type=SizeType(), default=None, metavar="SIZE",
    help="Room for the resync journal on a secondary, 0 for none; chosen by the disk's size if not given.",
)  # fmt: skip


def secondaries(
    words: Sequence[str],
    vias: Sequence[str],
    mode: Mode,
    interval: float,
    journal: int | None,
    expects: Sequence[str] = (),
) -> "tuple[SecondarySpec, ...]":
    """The ``[LABEL=]DEV`` and ``[LABEL=]WAY`` arguments as specs. Labels not given are s1, s2 and so on."""
    from dmsoft.mirror.create import SecondarySpec  # other verbs than create and add need nothing of it

    pairs = [_labelled(word) for word in words]
    taken = {label for label, _ in pairs if label}
    spare = (f"s{n}" for n in range(1, 1000) if f"s{n}" not in taken)
    named = [(next(spare) if label is None else label, device) for label, device in pairs]
    ways = _ways(vias, [label for label, _ in named])
    expected = _expected(expects, [label for label, _ in named])
    specs = []
    for label, device in named:
        cache, delay = _way(ways.get(label, "direct"))
        specs.append(
            SecondarySpec(check_label(label), device, mode, cache, delay, interval, journal, expected.get(label))
        )
    return tuple(specs)


def _expected(words: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Seconds by label; what names one counts more than what is for all."""
    everyone: dict[str, float] = {}
    named: dict[str, float] = {}
    for word in words:
        label, equals, text = word.rpartition("=")
        if equals and label not in labels:
            raise UsageError(
                f"--expect-every names {label}, which is no secondary here.", hint=f"They are {', '.join(labels)}."
            )
        seconds = parse_duration(text)
        if not 0 < seconds <= MAX_SECONDS:
            raise UsageError(f"No disk can be expected every {text}.", hint="Choose a time such as 1d or 7d.")
        if equals:
            named[label] = seconds
        else:
            everyone = dict.fromkeys(labels, seconds)
    return everyone | named


def _labelled(word: str) -> tuple[str | None, str]:
    """``LABEL=DEV`` or ``DEV``; a path that itself has a ``=`` in it begins with a slash or a dot."""
    label, equals, device = word.partition("=")
    if not equals or word[:1] in ("/", "."):
        return None, word
    return label, device


def _ways(vias: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in vias:
        label, equals, way = word.partition("=")
        if ":" in label:  # a way whose path has a "=" in it
            equals = ""
        if equals and label not in labels:
            raise UsageError(f"--via names {label}, which is no secondary here.", hint=f"They are {', '.join(labels)}.")
        if equals:
            found[label] = way
        elif len(labels) > 1 and word.startswith("writecache:"):
            raise UsageError("One cache device serves one secondary.", hint="Say which: --via LABEL=writecache:DEV.")
        else:
            found |= {each: word for each in labels if each not in found}
    return found


def _way(way: str) -> tuple[str | None, int | None]:
    """(cache device, delay in milliseconds) of one way."""
    kind, _, value = way.partition(":")
    if way == "direct":
        return None, None
    if kind == "writecache" and value:
        return value, None
    if kind == "delay" and value.isascii() and value.isdigit() and len(value) <= 7 and int(value) <= 3_600_000:
        return None, int(value)
    raise UsageError(f"'{way}' is no way to a secondary.", hint="Use direct, writecache:DEV or delay:MILLISECONDS.")


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal; elsewhere `--yes` must be given. Raises `UsageError` or aborts."""
    if yes:
        return
    if not os.isatty(0):
        raise UsageError("This needs a yes, and there is no terminal to ask on.", hint="Add --yes.")
    click.confirm(question, abort=True, err=True)


def cancel_event() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set from here on, instead of ending the program."""
    cancelled = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: cancelled.set())
    return cancelled
