# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages tell of everything that is there, and of nothing that is not."""

import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import get_args

import click
import msgspec
import pytest

from dmsoft.cli import VERBS, dmsoft
from dmsoft.doctor.finding import Checkup, Finding
from dmsoft.errors import DmsoftError
from dmsoft.hotplug.arrival import Arrival
from dmsoft.inventory.candidates import Candidate, Verdict
from dmsoft.member import prefix
from dmsoft.member.examination import Examination
from dmsoft.member.header import SLOT_BYTES
from dmsoft.member.payload import Cache, MemberRecord, Metadata, Primary, Secondary, Sync, Tracker
from dmsoft.member.survey import Survey
from dmsoft.mirror.create import Created
from dmsoft.mirror.missing import Missing
from dmsoft.mirror.progress import Planned
from dmsoft.mirror.start import Started
from dmsoft.mirror.survivor import Survivor
from dmsoft.mirror.sync import Outcome, SecondaryOutcome
from dmsoft.mirror.views import Alert, EraView, MirrorView, PrimaryView, SecondaryView, State, StatusView
from dmsoft.mirror.waiting import Waited
from dmsoft.report.explanations import known
from tests import features, header_model, mirror_model

MAN = Path(__file__).resolve().parents[2] / "man"
PAGES = sorted(MAN.glob("*.scd"))
PAGE = (MAN / "dmsoft.8.scd").read_text()
INTERNALS = (MAN / "dmsoft-internals.7.scd").read_text()
CONTEXT = click.Context(dmsoft)


def section(title: str, page: str = PAGE) -> str:
    """The text of one section, without the title."""
    return re.split(r"^# ", page.split(f"\n# {title}\n")[1], flags=re.M)[0]


def verb_section(verb: str) -> str:
    parts = re.split(r"^## ", section("VERBS"), flags=re.M)[1:]
    return next(part for part in parts if part.split()[0] == verb)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
@pytest.mark.skipif(not (shutil.which("scdoc") and shutil.which("mandoc")), reason="scdoc or mandoc is not installed")
def test_pages_build_and_pass_the_linter(page: Path, tmp_path: Path) -> None:
    built = tmp_path / page.stem
    with page.open() as source, built.open("w") as target:
        subprocess.run(["scdoc"], stdin=source, stdout=target, check=True)
    linted = subprocess.run(["mandoc", "-Tlint", "-W", "error", built], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


def test_the_verbs_are_those_that_exist() -> None:
    titles = [part.split()[0] for part in re.split(r"^## ", section("VERBS"), flags=re.M)[1:]]
    assert sorted(titles) == sorted(VERBS)
    assert set(re.findall(r"^\*dmsoft ([a-z]+)\*", section("SYNOPSIS"), flags=re.M)) == set(VERBS)
    mentioned = set(re.findall(r"\*dmsoft ([a-z]+)", PAGE)) | set(re.findall(r"^dmsoft ([a-z]+)", PAGE, flags=re.M))
    assert mentioned <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_in_its_section_and_no_other(verb: str) -> None:
    command = dmsoft.get_command(CONTEXT, verb)
    assert command is not None
    text = verb_section(verb)
    longs = {name for p in command.params if isinstance(p, click.Option) for name in p.opts if name.startswith("--")}
    named = set(re.findall(r"\*(--[a-z-]+)\*", text))
    # A verb may name the options of another only beside that other's name.
    assert longs <= named
    assert named <= longs, f"{verb} does not take {named - longs}"
    for argument in (p for p in command.params if isinstance(p, click.Argument)):
        shown = argument.make_metavar(CONTEXT).strip("[].")
        assert shown in text.splitlines()[0], f"{verb} {shown}"


def test_options_before_the_verb() -> None:
    text = section("OPTIONS")
    for param in dmsoft.params:
        assert all(f"*{name}*" in text for name in param.opts)
    assert "*-h*, *--help*" in text and "*-y*, *--yes*" in text


def test_defaults_are_the_real_ones() -> None:
    from dmsoft.mirror.create import DEFAULT_BLOCK_BYTES, DEFAULT_INTERVAL
    from dmsoft.mirror.sync import DEFAULT_MAX_STALL
    from dmsoft.units import MIB

    assert (DEFAULT_BLOCK_BYTES, DEFAULT_INTERVAL, DEFAULT_MAX_STALL) == (MIB, 300, 0.2)
    assert "1M if not given" in verb_section("create") and "5m if not given" in verb_section("create")
    assert "200ms if not given" in verb_section("resync")


def test_every_exit_status_is_there() -> None:
    text = section("EXIT STATUS")
    codes = {int(number) for number in re.findall(r"^\*(\d+)\*$", text, flags=re.M)}
    classes, todo = set(), [DmsoftError]
    known()  # imports everything
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        classes |= {cls.exit_code} if cls.__module__.startswith("dmsoft") else set()
    assert codes == classes | {0, 9, 130}


def test_every_state_is_there() -> None:
    assert re.findall(r"^\*([a-z]+)\*$", section("STATES"), flags=re.M) == sorted(
        get_args(State), key=section("STATES").index
    )


VIEWS = {
    "status": (StatusView, MirrorView, EraView, PrimaryView, SecondaryView, Alert),
    "stale": (Missing,),
    "wait": (Waited,),
    "resync": (Planned, Outcome, SecondaryOutcome),
    "create": (Created,),
    "start": (Started,),
    "attach": (Arrival,),
    "recover": (Survivor,),
    "devices": (Survey, Candidate, Verdict),
    "examine": (Examination,),
    "doctor": (Checkup, Finding),
}


@pytest.mark.parametrize("verb", sorted(VIEWS))
def test_every_field_of_the_json_is_there(verb: str) -> None:
    text = re.split(r"^\*[a-z]+\*$", section("JSON").split(f"\n*{verb}*\n")[1], flags=re.M)[0]
    words = (
        set(re.findall(r"\w+", text.replace("_", " _ "))) if verb == "" else set(re.findall(r"[a-z][a-z_]*[a-z]", text))
    )
    for view in VIEWS[verb]:
        missing = {field.encode_name for field in msgspec.structs.fields(view)} - words
        assert not missing, f"{view.__name__}: {missing}"


def test_the_header_is_described_as_it_is() -> None:
    for payload in (Primary, Secondary, Cache, Metadata, MemberRecord, Sync, Tracker):
        missing = {f.encode_name for f in msgspec.structs.fields(payload)} - set(
            re.findall(r"[a-z][a-z_]*[a-z]", INTERNALS)
        )
        assert not missing, f"{payload.__name__}: {missing}"
    table = re.findall(r"^ +(\d+) +(\d+)  [a-z]", section("HEADER", INTERNALS), flags=re.M)
    offsets = [(int(offset), int(length)) for offset, length in table]
    assert offsets == [(0, 8), (8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (32, 32), (64, 32), (96, 4000)]
    assert sum(length for _, length in offsets) == prefix.PREFIX_BYTES
    block = prefix.build(header_model.secondary(5), slot=1, sequence=7, key=None)
    magic = re.search(r"magic: ([0-9a-f ]+)", INTERNALS)
    assert magic is not None and bytes.fromhex(magic[1]) == block[:8]
    version, length, sequence, slot = struct.unpack_from("<IIQI", block, 8)
    assert (version, length, sequence, slot) == (1, 4096, 7, 1)
    assert f"at byte {SLOT_BYTES}" in INTERNALS and f"1 to {prefix.MAX_PAYLOAD_BYTES}" in INTERNALS


def test_the_regions_are_described_as_they_are() -> None:
    text = section("REGIONS", INTERNALS)
    mine = mirror_model.primary()
    for role, layout in (
        ("primary", mine.regions),
        ("secondary", mirror_model.secondary(mine, "s").regions),
        ("cache", mirror_model.cache("s", "8:0").payload.regions),
        ("metadata", mirror_model.metadata("8:0", blocks=100).payload.regions),
    ):
        paragraph = text.split(f"\n*{role}*\n")[1].split("\n\n")[0]
        assert re.findall(r"_([a-z]+)_", paragraph) == sorted(layout, key=lambda name: layout[name].offset)


def test_the_readme_names_only_what_there_is() -> None:
    readme = (MAN.parent / "README.md").read_text()
    named = set(re.findall(r"(?:^    |`)dmsoft ([a-z]+)", readme, flags=re.M))
    assert {"create", "resync", "status", "start"} <= named <= set(VERBS)
    options = {name for verb in VERBS for p in dmsoft.get_command(CONTEXT, verb).params for name in p.opts}  # type: ignore[union-attr]
    assert set(re.findall(r"`(?:[a-z]+ )*(--[a-z-]+)", readme)) <= options
    diagram = readme.split("```")[1]
    assert max(map(len, diagram.splitlines())) <= 80


def test_diagrams_fit_a_terminal() -> None:
    for page in (PAGE, INTERNALS):
        for block in re.findall(r"^```\n(.*?)^```", page, flags=re.M | re.S):
            shown = block.replace("\\\\", "\\")
            assert "\t" not in shown and max(map(len, shown.splitlines())) <= 69


def test_the_manual_shows_what_the_tests_hold_each_kernel_to() -> None:
    assert features.table() in section("KERNELS", INTERNALS)
