# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user sees: nothing that matters is cut at 80 columns, a pipe gets whole lines, no disk drives a terminal."""

import json
import re

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmsoft.era.blocks import BlockSet
from dmsoft.era.spread import spread
from dmsoft.mirror.at_work import RunView
from dmsoft.mirror.missing import Missing
from dmsoft.mirror.progress import Meter, Planned
from dmsoft.mirror.sync import Outcome, SecondaryOutcome
from dmsoft.mirror.views import Alert, EraView, MirrorView, PrimaryView, SecondaryView, StatusView, ViaView, summary
from dmsoft.report import maps, progress, ranges, resync, stale, status
from dmsoft.report.output import emit, say
from dmsoft.units import GIB, MIB

STATES = ("current", "attached", "stale", "syncing", "away", "missing", "failed", "unknown", "diverged")
TIME = "2026-11-21T10:39:27Z"
ESCAPE = "\x1b]0;owned\x07\x9b31m"

secondary_views = st.builds(
    SecondaryView,
    label=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+]{0,31}", fullmatch=True),
    uuid=st.just("0" * 32),
    device=st.none() | st.from_regex(r"/dev/[a-z0-9_-]{1,80}", fullmatch=True),
    state=st.sampled_from(STATES),
    via=st.just(ViaView("direct")),
    mode=st.just("periodic"),
    stale_bytes=st.none() | st.integers(0, 1 << 60),
    lag_seconds=st.none() | st.floats(0, 1e9),
    consistent_as_of=st.sampled_from((None, TIME)),
    progress=st.none() | st.floats(0, 1),
)


def _mirror(*secondaries: SecondaryView, alerts: tuple[Alert, ...] = (), device: str = "/dev/vda") -> StatusView:
    mirror = MirrorView(
        "archive", "0" * 32, True, "periodic", "/dev/mapper/archive", GIB, EraView(7, MIB, 10, 1000),
        PrimaryView(device, "ok"), secondaries, alerts,
    )  # fmt: skip
    return StatusView((mirror,))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


@given(views=st.lists(secondary_views, max_size=16))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_status_at_80_columns_cuts_nothing_that_matters(
    narrow: None, capsys: pytest.CaptureFixture[str], views: list[SecondaryView]
) -> None:
    status.show(_mirror(*views))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if re.search(rf"\b({'|'.join(STATES)})\b", line)]
    assert len(rows) == len(views)
    for view, row in zip(views, rows, strict=True):
        assert f" {view.state}" in row
        assert f" {summary(view)} " in row
    shown = "".join(line.rstrip()[-40:] for line in lines).replace(" ", "")
    assert "…" not in shown


def test_a_long_device_is_folded_and_nothing_of_it_lost(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    device = "/dev/disk/by-id/usb-Western_Digital_My_Passport_2626_575832324441-0:0"
    status.show(_mirror(SecondaryView("one", "0" * 32, device, "stale", ViaView("direct"), "periodic")))
    lines = capsys.readouterr().out.splitlines()
    at = next(index for index, line in enumerate(lines) if "secondary" in line)
    column = lines[at].index("device")
    assert "".join(line[column:].strip() for line in lines[at + 1 :]) == device


def test_in_a_pipe_a_line_is_a_line(piped: None, capsys: pytest.CaptureFixture[str]) -> None:
    long = "very " * 60 + "long"
    device = "/dev/" + "x" * 200
    view = SecondaryView("one", "0" * 32, device, "failed", ViaView("direct"), "periodic")
    status.show(_mirror(view, alerts=(Alert("secondary-failed", long),)))
    lines = capsys.readouterr().out.splitlines()
    assert f"  secondary-failed: {long}" in lines
    assert any(line.endswith(device) for line in lines)
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("columns", [None, "80"])
def test_no_control_character_out_of_a_header_is_printed(
    columns: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    view = SecondaryView("one", "0" * 32, f"/dev/x{ESCAPE}", "unknown", ViaView("direct"), "periodic", reason=ESCAPE)
    status.show(_mirror(view, alerts=(Alert("secondary-unknown", f"one: [red]{ESCAPE}."),), device=f"/dev/{ESCAPE}"))
    say(f"Error: {ESCAPE}")
    stale.show("archive", "one", Missing(MIB, None, [(0, 1024)], 1024, GIB, f"doubt: {ESCAPE}", GIB, (100,)))
    resync.show(_outcome("compare", reason=ESCAPE), dry_run=True)
    print(progress.sentence(Planned("one", "compare", ESCAPE, GIB)))
    out = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in out)
    assert "[red]" in out, "text of others is no markup"
    say("one\nError: a line of its own", err=False)
    assert capsys.readouterr().out == "one?Error: a line of its own\n"


def test_json_has_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"text": "\x1b[2J\x7f\x9b31m\u202e\n\U000e0001", "plain": "Ä日"}
    emit(odd)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out[:-1].isprintable() and out.isascii()
    assert json.loads(out) == odd


def test_text_is_wrapped_at_words_under_its_own_indent(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    say("  " + "word " * 40, hang=3)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("  word")
    assert len(rest) == 2
    assert all(line.startswith("     word") and len(line) <= 80 for line in rest)


def _outcome(
    kind: str, *, reason: str = "it was never copied", as_of: str | None = TIME, converged: bool = True
) -> Outcome:
    part = SecondaryOutcome("one", kind, reason, 42 * MIB, 43 * MIB, 7, as_of)
    return Outcome(kind, reason, 42 * MIB, 43 * MIB, 2, 171.5, 12.3, (part,), converged)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("full", "one: first copy, 43 MiB; current as of 2026-11-21 10:39:27 UTC."),
        ("incremental", "one: missed 42 MiB, 43 MiB copied; current as of 2026-11-21 10:39:27 UTC."),
        ("compare", "one: all 42 MiB compared, 43 MiB differed and copied; current as of"),
        ("none", "one: missed nothing; current as of 2026-11-21 10:39:27 UTC."),
    ],
)
def test_what_a_resync_did(kind: str, words: str, piped: None, capsys: pytest.CaptureFixture[str]) -> None:
    resync.show(_outcome(kind), dry_run=False)
    assert capsys.readouterr().out.startswith(words)


@pytest.mark.parametrize(("converged", "words"), [(False, "no whole point in time yet"), (True, "attached, so writes")])
def test_a_copy_that_is_no_whole_point_in_time_is_not_called_one(
    converged: bool, words: str, piped: None, capsys: pytest.CaptureFixture[str]
) -> None:
    resync.show(_outcome("full", as_of=None, converged=converged), dry_run=False)
    out = capsys.readouterr().out
    assert words in out
    assert "as of" not in out


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (
            Planned("one", "incremental", "it holds everything written before era 5", 6 * MIB, True, None, 12.0),
            "one: incremental copy, 6 MiB, about 12 s, because it holds everything written before era 5. It goes "
            "through the journal, so the disk stays a whole point in time.",
        ),
        (
            Planned("one", "full", "it was never copied", GIB, False, "it holds no whole copy yet"),
            "one: full copy, 1 GiB, because it was never copied. It goes straight to the disk (it holds no whole copy "
            "yet), which is no whole point in time meanwhile.",
        ),
        (Planned("one", "none", "it has everything", 0), "one: nothing to copy, because it has everything."),
        (
            Planned("one", "verify", "its clean blocks should equal the primary's", GIB),
            "one: comparison of 1 GiB, because its clean blocks should equal the primary's.",
        ),
    ],
)
def test_what_a_run_will_do_is_said_before(plan: Planned, words: str) -> None:
    assert progress.sentence(plan) == words


def test_a_dry_run_says_the_same(piped: None, capsys: pytest.CaptureFixture[str]) -> None:
    for journal, why, words in (
        (True, None, "through the journal"),
        (False, "it has no journal", "(it has no journal)"),
    ):
        part = SecondaryOutcome("one", "incremental", "it is behind", MIB, 0, 5, TIME, None, journal, why, 90.0)
        resync.show(Outcome("incremental", "", MIB, 0, 0, 0, 0, (part,)), dry_run=True)
        out = capsys.readouterr().out
        assert out.startswith("one: would copy 1 MiB in about 90 s, because it is behind. It goes ") and words in out


def test_a_run_that_was_outrun_or_failed_says_that_the_disk_is_whole(
    piped: None, capsys: pytest.CaptureFixture[str]
) -> None:
    resync.show(_outcome("incremental", converged=False), dry_run=False)
    assert "into its journal; the disk is whole, as of 2026-11-21 10:39:27 UTC." in capsys.readouterr().out
    part = SecondaryOutcome("one", "incremental", "", MIB, 0, 5, TIME, "Writing failed.")
    resync.show(Outcome("incremental", "", MIB, 0, 1, 0, 0, (part,)), dry_run=False)
    assert "one: not done. Writing failed. The disk is whole, as of" in capsys.readouterr().out


def test_the_time_left_is_that_of_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is staged has to be applied yet."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    meter = Meter()
    meter.begin("pass 1", 10 * MIB, 10 * MIB)
    clock[0] += 5
    meter.done = 5 * MIB
    assert meter.rate == MIB and meter.seconds_left == 15


def test_who_is_at_work_is_told_with_rate_and_time_left(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunView(
        "resync", 4120, TIME, ("one", "two"), "pass 1", 3 * GIB, 12 * GIB, 9 * GIB, 150 * MIB, 61.4, 9216, 3072, 2
    )
    (mirror,) = _mirror(SecondaryView("one", "0" * 32, "/dev/x", "syncing", ViaView("direct"), "periodic")).mirrors
    status.show(StatusView((msgspec.structs.replace(mirror, run=run),)))
    text = " ".join(capsys.readouterr().out.split())
    assert "resync is at work, process 4120, since 2026-11-21 10:39:27 UTC: pass 1 of one, two, 3 GiB of 12" in text
    assert "150 MiB/s, 61 s left, 2 requests failed." in text
    status.show(StatusView((msgspec.structs.replace(mirror, run=RunView("stop", 1, TIME)),)))
    assert "  stop is at work, process 1, since 2026-11-21 10:39:27 UTC.\n" in capsys.readouterr().out


def test_a_journal_is_told_under_the_table(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    for state, words in (("committed", "applies it"), ("staged", "part of what it misses")):
        status.show(
            _mirror(SecondaryView("one", "0" * 32, "/dev/x", "stale", ViaView("direct"), "periodic", journal=state))  # type: ignore[arg-type]
        )
        assert words in capsys.readouterr().out


MISSING = Missing(MIB, 5, [(0, 1), (17, 4)], 5, 5 * MIB, "it holds everything before era 5", 64 * MIB, (60, 0, 78, 40))


def test_stale_says_what_is_missing_and_why(piped: None, capsys: pytest.CaptureFixture[str]) -> None:
    stale.show("archive", "one", MISSING)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "one misses 5 MiB of archive (5 blocks of 1 MiB in 2 runs): it holds everything before era 5."
    assert lines[1] == "  [+ *-]"  # a pipe gets ASCII
    assert [line.split() for line in lines[3:]] == [["0", "1", "0", "1", "MiB"], ["17", "4", str(17 * MIB), "4", "MiB"]]


def test_what_was_written_since_an_era_is_not_called_missing(piped: None, capsys: pytest.CaptureFixture[str]) -> None:
    stale.show("archive", "one", msgspec.structs.replace(MISSING, asked=True))
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("5 MiB of archive (5 blocks of 1 MiB in 2 runs) were written in era 5 or later.")
    assert "misses" not in said


@given(st.lists(st.integers(0, 100), min_size=1, max_size=64), st.booleans())
def test_a_map_has_a_sign_for_each_part_and_says_nothing_and_everything_exactly(
    percents: list[int], unicode: bool
) -> None:
    shown = maps.line(percents, unicode=unicode)
    assert len(shown) == len(percents) + 2 <= 80 and (shown[0], shown[-1]) == ("[", "]")
    assert unicode or shown.isascii()
    none, full = (" ", "█") if unicode else (" ", "#")
    for percent, sign in zip(percents, shown[1:-1], strict=True):
        assert (sign == none) == (percent == 0)
        assert (sign == full) == (percent == 100)
    heights = [maps.line([percent], unicode=unicode) for percent in range(101)]
    signs = " ▁▂▃▄▅▆▇█" if unicode else " .:-=+*%#"
    order = [signs.index(height[1]) for height in heights]
    assert order == sorted(order) and set(order) == set(range(9))


@given(st.integers(1, 500), st.integers(1, 64), st.data())
def test_a_spread_counts_every_block_once(nr_blocks: int, parts: int, data: st.DataObject) -> None:
    wanted = data.draw(st.sets(st.integers(0, nr_blocks - 1)))
    blocks = BlockSet.from_extents(nr_blocks, [(block, 1) for block in wanted])
    found = spread(blocks, parts)
    parts = min(parts, nr_blocks)
    assert len(found) == parts
    for part, percent in enumerate(found):
        begin, end = nr_blocks * part // parts, nr_blocks * (part + 1) // parts
        count = len(wanted & set(range(begin, end)))
        assert percent == (
            0 if not count else 100 if count == end - begin else min(max(100 * count // (end - begin), 1), 99)
        )


def test_the_spread_of_nothing() -> None:
    assert spread(BlockSet.empty(0), 40) == ()
    assert spread(BlockSet.full(3), 40) == (100, 100, 100)


def _missing(block_bytes: int, total: int, short: int, wanted: set[int]) -> Missing:
    blocks = BlockSet.from_extents(total, [(block, 1) for block in wanted if block < total])
    size = total * block_bytes - short * 512
    extents = [(first, count) for first, count in blocks.extents().tolist()]
    return Missing(block_bytes, 5, extents, blocks.count(), 0, "", size, spread(blocks, 64))


@given(
    st.builds(
        _missing, st.sampled_from([4096, MIB]), st.integers(1, 200), st.integers(0, 7), st.sets(st.integers(0, 199))
    )
)
def test_every_format_names_the_same_bytes(missing: Missing) -> None:
    """Each is read as its reader does, and has every stale byte and no other."""
    wanted = list(ranges.byte_ranges(missing))
    assert all(offset >= 0 and length > 0 and offset + length <= missing.size_bytes for offset, length in wanted)
    assert [tuple(map_int(row.split())) for row in ranges.ranges("m", "one", missing)] == wanted

    seen = []
    for row in ranges.dd("m", "one", missing):
        operands = {key: int(value) for key, _, value in (word.partition("=") for word in row.split())}
        assert operands["skip"] == operands["seek"]
        offset = operands["skip"] * operands["bs"]
        seen.append((offset, min(operands["count"] * operands["bs"], missing.size_bytes - offset)))
    assert seen == wanted

    lines = [row for row in ranges.mapfile("m", "one", missing) if not row.startswith("#")]
    position, current, *_ = lines[0].split()
    assert int(position, 16) == 0 and current == "?"
    end, domain = 0, []
    for row in lines[1:]:
        at, length, sign = row.split()
        assert int(at, 16) == end and sign in "?+" and int(length, 16) > 0  # ddrescue refuses gaps
        end += int(length, 16)
        domain += [(int(at, 16), int(length, 16))] if sign == "+" else []
    assert end == missing.size_bytes and domain == wanted


def map_int(words: list[str]) -> list[int]:
    return [int(word) for word in words]


def test_a_status_shows_where_the_staleness_lies(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    label = "l" * 32
    shares = (0, 100, 50) + (0,) * 37
    views = [
        SecondaryView(name, "0" * 32, "/dev/sdx", "stale", ViaView("direct"), "periodic", stale_map=part)
        for name, part in ((label, shares), ("full", (100,) * 40), ("none", (0,) * 40), ("away", None))
    ]
    status.show(_mirror(*views))
    maps = [line for line in capsys.readouterr().out.splitlines() if line.endswith("]")]
    assert maps == [f"  {label}  [ #={' ' * 37}]"] and len(maps[0]) <= 80
