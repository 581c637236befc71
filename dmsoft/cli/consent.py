# SPDX-License-Identifier: GPL-2.0-or-later
"""The yes to losing what is on some devices: it is about those that were shown, wherever their paths lead by then."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dmsoft.cli.options import confirm
from dmsoft.units import format_size

if TYPE_CHECKING:
    from dmsoft.inventory.sysfs import BlockDevice


@contextlib.contextmanager
def consent(paths: Sequence[str], *, yes: bool) -> Iterator[None]:
    """Ask whether everything on the devices at ``paths`` may be lost; the block makes use of it.

    They are open meanwhile, so that no other disk gets the number of one that is unplugged. Raises `GateIdentityError`
    if a path leads elsewhere when the answer has come, what `confirm` raises, and `NotFoundError`, `NotBlockError` and
    `DeviceError` for what is no device.
    """
    from dmsoft.inventory.sysfs import block_device
    from dmsoft.member.claim import open_readonly
    from dmsoft.member.refusal import GateIdentityError

    with contextlib.ExitStack() as stack:
        shown = [stack.enter_context(open_readonly(path)).device for path in paths]
        confirm(question(paths, shown), yes=yes)
        for path, device in zip(paths, shown, strict=True):
            if block_device(path).number != device.number:
                raise GateIdentityError(
                    f"{path} is not the device any more that you were asked about.", hint="Try again."
                )
        yield


def question(paths: Sequence[str], devices: "Sequence[BlockDevice]") -> str:
    """One line for each device."""
    rows = [
        (path, format_size(device.size_bytes), device.model or device.title, device.serial or "")
        for path, device in zip(paths, devices, strict=True)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(["Everything on these devices will be lost:", *(f"  {line}" for line in lines), "Go on?"])
