# SPDX-License-Identifier: GPL-2.0-or-later
"""Names and uuids of a mirror's device-mapper devices.

The user's device is ``NAME``. Everything under it is ``NAME-SOMETHING``; labels have no dash, so a leg
(``NAME-LABEL``) can never be mistaken for what lies under it (``NAME-LABEL-data``). Every uuid begins with
``DMSOFT-`` and the mirror's uuid; dmsoft finds and removes its devices by uuid alone.
"""

import re
import uuid
from dataclasses import dataclass
from typing import Final

from dmsoft.errors import UsageError

PREFIX: Final = "DMSOFT-"
SLOTS_PER_SET: Final = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,47}")
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+]{0,31}")
_RESERVED = re.compile(r"lower|metadata|primary|slot\d+|control|canary|shield")


@dataclass(frozen=True, slots=True)
class Node:
    """One device-mapper device of a mirror."""

    name: str
    uuid: str

    @property
    def path(self) -> str:
        return f"/dev/mapper/{self.name}"


@dataclass(frozen=True, slots=True)
class Names:
    """The nodes of the mirror ``name`` with the 32-digit ``mirror_uuid``."""

    name: str
    mirror_uuid: str

    @property
    def prefix(self) -> str:
        return f"{PREFIX}{self.mirror_uuid}-"

    @property
    def top(self) -> Node:
        return Node(self.name, f"{self.prefix}top")

    @property
    def lower(self) -> Node:
        return self._inner("lower")

    @property
    def shield(self) -> Node:
        return self._inner("shield")

    @property
    def metadata(self) -> Node:
        return self._inner("metadata")

    @property
    def metadata_watch(self) -> Node:
        return self._inner("metadata-watch")

    @property
    def metadata_disk(self) -> Node:
        return self._inner("metadata-disk")

    @property
    def primary(self) -> Node:
        return self._inner("primary")

    @property
    def canary(self) -> Node:
        return self._inner("canary")

    @property
    def canary_metadata(self) -> Node:
        return self._inner("canary-metadata")

    @property
    def canary_data(self) -> Node:
        return self._inner("canary-data")

    def slot(self, index: int) -> Node:
        return self._inner(f"slot{index}")

    def leg(self, label: str) -> Node:
        return self._inner(label, "leg-")

    def leg_data(self, label: str) -> Node:
        return self._inner(f"{label}-data", "leg-")

    def leg_cache(self, label: str) -> Node:
        return self._inner(f"{label}-cache", "leg-")

    def _inner(self, layer: str, kind: str = "") -> Node:
        return Node(f"{self.name}-{layer}", f"{self.prefix}{kind}{layer}")


def new_uuid() -> str:
    """A random 128-bit id as 32 hex digits: mirrors, members, tracker lives, generations, tokens."""
    return uuid.uuid4().hex


def check_name(name: str) -> str:
    """``name`` if it can name a mirror; else `UsageError`."""
    if not _NAME.fullmatch(name) or name == "control":
        raise UsageError(
            f"'{name}' cannot name a mirror.",
            hint="Use up to 48 letters, digits and the signs _ . + -, beginning with a letter, a digit or _.",
        )
    return name


def check_label(label: str) -> str:
    """``label`` if it can name a secondary; else `UsageError`."""
    if not _LABEL.fullmatch(label):
        raise UsageError(
            f"'{label}' cannot label a secondary.",
            hint="Use up to 32 letters, digits and the signs _ . +, beginning with a letter, a digit or _.",
        )
    if _RESERVED.fullmatch(label):
        raise UsageError(f"'{label}' is a name that dmsoft keeps for itself.", hint="Choose another label.")
    return label
