# SPDX-License-Identifier: GPL-2.0-or-later
"""One answer of `dmsoft doctor`."""

from typing import Literal

import msgspec

Health = Literal["ok", "warning", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """``check`` is a stable code, ``found`` what was seen or measured, ``meaning`` what follows for a mirror."""

    check: str
    health: Health
    found: str
    meaning: str


class Checkup(msgspec.Struct, frozen=True):
    kernel: str
    findings: tuple[Finding, ...]
    schema: int = 1

    @property
    def health(self) -> Health:
        """The worst of all."""
        order: tuple[Health, ...] = ("ok", "warning", "fail")
        return max((each.health for each in self.findings), key=order.index, default="ok")
