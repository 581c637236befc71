# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a copy by name, so that whoever watches can be told before and after each. Nobody watches but tests,
which end the process there."""

from collections.abc import Callable

STEPS = (
    "journal-begin", "stage", "checkpoint", "journal-flush", "commit-write", "commit-flush", "data-write", "data-flush",
    "super-write", "retire", "copy",
)  # fmt: skip

watch: Callable[[str], None] | None = None


class step:
    """One step, for a ``with``; ``watch`` hears ``before NAME`` and, unless it failed, ``after NAME``, from whichever
    thread takes it. There is one for every request, so it has to cost nothing."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        if watch is not None:
            watch(f"before {self._name}")

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if watch is not None and failed is None:
            watch(f"after {self._name}")
