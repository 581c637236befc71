#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0-or-later
"""Is this device a member of a mirror? udev asks for every block device, and imports what is printed.

Reads the header's two copies and nothing else: no lock, no other device, no library beyond what is built into the
interpreter, as it runs dozens of times at boot. So it repeats the offsets of ``dmsoft.member.prefix``, which never
change. What it prints is no proof: whoever acts on it reads the header again and checks its signature.

    DMSOFT_MEMBER=1          a dmsoft header is or was here
    DMSOFT_ROLE, DMSOFT_MIRROR, DMSOFT_MIRROR_UUID, DMSOFT_MEMBER_UUID, DMSOFT_LABEL
                             what a copy that is whole says; left out where it is not of the form that dmsoft writes

Nothing is printed for any other device, and the exit status is 0; it is 1 for one that cannot be read.
"""

import posix
import sys
from _json import scanstring

try:
    from _sha256 import sha256  # type: ignore[import-not-found]
except ImportError:  # from Python 3.12 on
    from _sha2 import sha256  # type: ignore[import-not-found]

MAGIC = b"\x89DMSOFT\n"
PREFIX_BYTES, MAX_PAYLOAD_BYTES, SLOT_BYTES = 4096, 256 << 10, 512 << 10
LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.+-")
# The names of the payload's members, and of the properties.
PROPERTIES = {
    "role": "DMSOFT_ROLE",
    "mirror_name": "DMSOFT_MIRROR",
    "mirror_uuid": "DMSOFT_MIRROR_UUID",
    "member_uuid": "DMSOFT_MEMBER_UUID",
    "label": "DMSOFT_LABEL",
}


def probe(descriptor: int) -> dict[str, str]:
    """The properties of the device behind ``descriptor``; raises OSError if it cannot be read."""
    found: dict[str, str] = {}
    for offset in (0, SLOT_BYTES):
        block = posix.pread(descriptor, PREFIX_BYTES, offset)
        if not block.startswith(MAGIC) or len(block) < PREFIX_BYTES:
            continue
        found["DMSOFT_MEMBER"] = "1"
        length = int.from_bytes(block[28:32], "little")
        if not 0 < length <= MAX_PAYLOAD_BYTES:
            continue
        data = posix.pread(descriptor, length, offset + PREFIX_BYTES)
        if len(data) == length and sha256(block[:32] + bytes(32) + block[64:] + data).digest() == block[32:64]:
            found.update(strings(data))
            break
    return found


def strings(data: bytes) -> dict[str, str]:
    """Those of `PROPERTIES` that are text in the outermost object of a JSON text; whatever else is in it is skipped."""
    found: dict[str, str] = {}
    try:
        text = data.decode()
        depth = at = 0
        key = None
        while at < len(text):
            char = text[at]
            at += 1
            if char == '"':
                value, at = scanstring(text, at)
                if depth == 1 and text[at : at + 1] == ":":
                    key = value
                elif depth == 1 and key in PROPERTIES and 0 < len(value) <= 64 and LETTERS.issuperset(value):
                    found[PROPERTIES[key]] = value
            else:
                depth += (char in "{[") - (char in "}]")
    except ValueError:  # not text, or not JSON
        return {}
    return found


def main() -> int:
    try:
        descriptor = posix.open(sys.argv[1], posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
        found = probe(descriptor)
    except (OSError, IndexError):
        return 1
    for name, value in found.items():
        print(f"{name}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
