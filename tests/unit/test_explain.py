# SPDX-License-Identifier: GPL-2.0-or-later
"""Every code that a user can meet is explained, in words for a user."""

import ast
import importlib
import pkgutil
import re
from collections import Counter
from pathlib import Path

import pytest

import dmsoft
from dmsoft.cli import run
from dmsoft.errors import DmsoftError
from dmsoft.mirror.views import BAD
from dmsoft.report.explanations import explanation, known

SOURCE = Path(dmsoft.__file__).parent
EXIT_CODES = {1, 2, 3, 4, 5, 6, 7, 8, 10}


def errors() -> list[type[DmsoftError]]:
    """Every error class of the package, wherever it is defined."""
    for module in pkgutil.walk_packages(dmsoft.__path__, "dmsoft."):
        if not module.name.endswith(("__main__", "blivet_scan")):
            importlib.import_module(module.name)
    found, todo = [], [DmsoftError]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if cls.__module__.startswith("dmsoft"):
            found.append(cls)
    return sorted(found, key=lambda cls: cls.__name__)


ERRORS = errors()


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_has_a_code_a_text_and_an_exit_status(cls: type[DmsoftError]) -> None:
    assert cls.__name__.endswith("Error")
    assert "code" in vars(cls), "a code of its own"
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cls.code)
    assert cls.exit_code in EXIT_CODES
    parents = [base.exit_code for base in cls.__bases__ if issubclass(base, DmsoftError) and base is not DmsoftError]
    assert all(cls.exit_code == code for code in parents), "a subclass exits as its parent does"
    doc = vars(cls).get("__doc__")
    assert doc, "a text of its own"
    summary, blank, *body = doc.strip().splitlines()
    assert summary.endswith(".") and len(summary) <= 90 and not blank.strip()
    assert len(" ".join(body).split()) >= 4, "what to do about it"
    assert "``" not in doc and "self" not in doc.split(), "words for users, not for programmers"


def test_codes_are_unique() -> None:
    assert not [code for code, count in Counter(cls.code for cls in ERRORS).items() if count > 1]


def test_explain_knows_every_error() -> None:
    codes = known()
    for cls in ERRORS:
        assert codes[cls.code].startswith((cls.__doc__ or "").strip().splitlines()[0])
        assert f"Exit status {cls.exit_code}" in codes[cls.code]


def literal_codes(name: str) -> set[str]:
    """The first arguments of all calls of ``name`` in the package, where they are literals; parts of f-strings too."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.add(str(first.value))
    return found


def test_explain_knows_every_alert() -> None:
    wanted = literal_codes("Alert") | {f"secondary-{state}" for state in BAD} | {"primary-missing", "primary-failed"}
    assert len(wanted) >= 8
    assert wanted <= known().keys()
    for code in wanted:
        assert "exits with 9" in explanation(code)


def test_explain_knows_every_note_on_a_device() -> None:
    wanted = literal_codes("Reason") | {f"gate-{use}" for use in ("mounted", "swap", "held")}
    assert len(wanted) >= 8
    assert wanted <= known().keys()


@pytest.mark.parametrize("code", sorted(known()))
def test_a_text_is_short_paragraphs_the_first_a_summary(code: str) -> None:
    summary, *rest = explanation(code).split("\n\n")
    assert rest and len(summary) <= 90
    assert all("\n" not in each and each.strip() == each and each[-1] in ".)" for each in (summary, *rest))


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "gate-mounted"]) == 0
    assert "Unmount it" in capsys.readouterr().out
    assert run(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= len(known())
    assert run(["explain", "no-such-code"]) == 5
    assert "no code 'no-such-code'" in capsys.readouterr().err


def test_the_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert run(["explain", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["codes"]
    assert [each["code"] for each in listed] == sorted(known())
    assert run(["explain", "busy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"code": "busy", "text": explanation("busy")}
