# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a copy by name, so that whoever watches can be told before and after each. Nobody watches but tests,
which end the process there."""

import contextlib
from collections.abc import Callable, Iterator

STEPS = (
    "journal-begin", "stage", "checkpoint", "journal-flush", "commit-write", "commit-flush", "data-write", "data-flush",
    "super-write", "retire", "copy",
)  # fmt: skip

watch: Callable[[str], None] | None = None


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """One step; ``watch`` hears ``before NAME`` and ``after NAME``, from whichever thread takes it."""
    if watch is not None:
        watch(f"before {name}")
    yield
    if watch is not None:
        watch(f"after {name}")
