# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one benchmark by its name: a module of this package with ``measure(arguments) -> Iterator[Row]``."""

import argparse
import importlib
import sys
from pathlib import Path

from tests.bench.rows import print_rows

# Modules that are no benchmarks.
_SUPPORT = {"__init__", "__main__", "guest", "rows"}


def main(argv: list[str]) -> int:
    """Exit status 1 if a bar does not hold."""
    here = Path(__file__).parent
    names = sorted(path.stem for path in here.glob("*.py") if path.stem not in _SUPPORT and "_" not in path.stem)
    parser = argparse.ArgumentParser(prog="dev bench", description="Measure against what people have today.")
    parser.add_argument("name", choices=names)
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments, rest = parser.parse_known_args(argv)
    rows = importlib.import_module(f"tests.bench.{arguments.name}").measure(rest)
    return 0 if print_rows(rows, as_json=arguments.json) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
