# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that hold for the source as a whole: floors, the one door to other programs, sizes, licence lines."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LICENCE = "SPDX-License-Identifier: GPL-2.0-or-later"
MOST_LINES, MOST_FUNCTION_LINES = 400, 40

# Bottom up; a floor imports only what is below it, and its own.
FLOORS = (
    {"units", "errors", "run", "threads", "inventory"},
    {"dm"},
    {"era"},
    {"member"},
    {"resync"},
    {"mirror"},
    {"monitor", "hotplug", "doctor"},
    {"report"},
    {"cli"},
)
SOURCES = sorted((ROOT / "dmsoft").rglob("*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(path: Path) -> Iterator[str]:
    """Every module that the file imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(module: str) -> int | None:
    """Which floor a module of dmsoft is on; None for the package itself and for what is not ours."""
    parts = module.split(".")
    if parts[0] != "dmsoft" or len(parts) < 2:
        return None
    return next((number for number, names in enumerate(FLOORS) if parts[1] in names), None)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_a_floor_imports_only_what_is_below_it(path: Path) -> None:
    mine = floor(module_of(path))
    if path == ROOT / "dmsoft" / "__init__.py":
        assert list(imported(path)) == []
        return
    assert mine is not None, f"{short(path)} is on no floor"
    above = {name for name in imported(path) if (there := floor(name)) is not None and there > mine}
    assert not above, f"{short(path)} imports {sorted(above)}"


def test_every_floor_and_folder_is_known() -> None:
    named = set().union(*FLOORS)
    there = {path.relative_to(ROOT / "dmsoft").parts[0].removesuffix(".py") for path in SOURCES} - {"__init__"}
    assert there <= named


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_only_threads_starts_threads(path: Path) -> None:
    """`Thread.start` may never return when memory is short."""
    calls = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))
    starts = [ast.unparse(call) for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "start"]
    starts = [call for call in starts if "thread" in call]
    assert not starts or path == ROOT / "dmsoft" / "threads.py", starts


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_only_run_starts_other_programs(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    if path != ROOT / "dmsoft" / "run.py":
        assert not roots & {"subprocess", "pexpect", "sh", "pty"}
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    named = {f"{c.func.value.id}.{c.func.attr}" for c in calls if _is_attribute_of_name(c.func)}
    assert not {name for name in named if name.startswith(("os.exec", "os.spawn", "os.popen", "os.system"))}
    assert not any(keyword.arg == "shell" for call in calls for keyword in call.keywords)


def _is_attribute_of_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_nothing_from_a_disk_is_executed(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & {"pickle", "marshal", "shelve", "yaml"}
    calls = [
        node.func.id for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert not {"eval", "exec", "compile"} & set(calls)


def tracked(*patterns: str) -> list[Path]:
    """Files of the project; those that git does not know yet as well, but nothing it ignores."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no git checkout")
    return sorted({ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()})


def test_every_source_begins_with_its_licence() -> None:
    missing = []
    for path in tracked("*.py", "*.sh", "dev", ".ci/run", "*.scd", "*.rules", "*.service", "*.timer"):
        # A manual page and a script have to begin with something else.
        allowed = 2 if path.suffix == ".scd" or path.read_text().startswith("#!") else 1
        if not any(LICENCE in line for line in path.read_text().splitlines()[:allowed]):
            missing.append(short(path))
    assert not missing


def test_no_file_is_too_long() -> None:
    long = {short(path): n for path in tracked("dmsoft/*.py") if (n := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_functions_are_short_and_modules_say_what_they_are(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), f"{short(path)} has no docstring"
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= MOST_FUNCTION_LINES, f"{short(path)}: {node.name} has {length} lines"
