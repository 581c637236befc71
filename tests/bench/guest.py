# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of a benchmark that needs a kernel: a module run in a VM, which prints its figures as JSON lines."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from tests.harness import vm


def figures(
    module: str, arguments: Sequence[str], disks: Sequence[vm.Disk], *, timeout: float, memory: int = 1536
) -> Iterator[dict[str, Any]]:
    """What ``python -m module arguments`` prints, with a dot on standard error for each line as it comes.

    Also what it had printed when it failed; then it raises. ``memory`` in MiB.
    """
    text = bytearray()

    def take(data: bytes) -> None:
        text.extend(data)
        os.write(2, b"." * data.count(b"\n"))

    settings = vm.Options(tuple(disks), memory=memory, cpus=min(2, os.cpu_count() or 1), timeout=timeout)
    result = vm.stream(["python", "-m", module, *arguments], settings, take, lambda data: os.write(2, data))
    os.write(2, b"\n")
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        yield json.loads(line)
    if result.status:
        raise RuntimeError(f"the VM's part did not end well: {result.message}")
