# SPDX-License-Identifier: GPL-2.0-or-later
"""The mirrors this host knows by name: /etc/dmsoft/mirrors/NAME.json.

A convenience and nothing more: it lets `status` speak of a mirror whose primary is not there. All that matters stands
in the headers, and a mirror whose entry is lost is found by looking at the disks.
"""

from pathlib import Path

import msgspec

from dmsoft.member.files import read_json, write_durably
from dmsoft.member.payload import Identity, Name, Primary, Uuid

DIRECTORY = Path("/etc/dmsoft/mirrors")


class Entry(msgspec.Struct, frozen=True):
    """One known mirror: enough to say what is missing."""

    name: Name
    mirror_uuid: Uuid
    primary: Identity


def entries() -> list[Entry]:
    """Every known mirror, by name; an entry that does not parse is left out, the disks have the truth."""
    found = (read_json(path, Entry) for path in sorted(DIRECTORY.glob("*.json")))
    return [entry for entry in found if entry is not None]


def register(primary: Primary) -> None:
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    entry = Entry(primary.mirror_name, primary.mirror_uuid, primary.identity)
    path = DIRECTORY / f"{primary.mirror_name}.json"
    data = msgspec.json.format(msgspec.json.encode(entry)) + b"\n"
    if read_json(path, Entry) != entry:
        write_durably(path, data)


def forget(name: str) -> None:
    (DIRECTORY / f"{name}.json").unlink(missing_ok=True)
