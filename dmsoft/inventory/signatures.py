# SPDX-License-Identifier: GPL-2.0-or-later
"""What is on a device, found by util-linux's low-level probes; dmsoft's own header is not known to them.

Two probes are asked and either may object: ``wipefs`` lists every magic number, ``blkid -p`` knows formats that
have none and says when it is in doubt. Both take a read error for an empty device, so a caller that decides on an
empty answer must have read the device itself (`readable`).
"""

import os
from dataclasses import dataclass
from typing import Final

import msgspec

from dmsoft.errors import DeviceError
from dmsoft.inventory.sysfs import printable
from dmsoft.run import CommandError, run
from dmsoft.units import MIB

_TABLES: Final = frozenset(
    {"atari", "bsd", "dos", "gpt", "mac", "minix", "PMBR", "sgi", "solaris_x86", "sun", "unixware"}
)

# blkid(8), section RETURN CODE
_BLKID_NOTHING: Final = 2
_BLKID_AMBIVALENT: Final = 8


class ProbeError(DeviceError):
    """What is on the device could not be found out, so it counts as in use.

    It could not be read to both ends, or the program that looks for signatures (wipefs) failed. Look at the kernel log
    for errors of the disk.
    """

    code = "probe"


@dataclass(frozen=True, slots=True)
class Signature:
    """One thing found on a device: ``type`` as libblkid names it, such as ext4, LVM2_member or gpt."""

    type: str
    label: str | None = None
    offset: int | None = None

    @property
    def is_table(self) -> bool:
        return self.type in _TABLES

    def __str__(self) -> str:
        what = f"partition table {self.type}" if self.is_table else self.type
        return f'{what} "{self.label}"' if self.label else what


class _Found(msgspec.Struct):
    type: str
    offset: str = ""
    label: str | None = None


class _Report(msgspec.Struct):
    signatures: list[_Found]


def signatures(path: str) -> list[Signature]:
    """Everything found on the device, each type once, in order of offset. Raises `ProbeError` when in doubt."""
    found = {one.type: one for one in reversed(_wipefs(path))}
    for one in _blkid(path):
        if one.type not in found:
            found[one.type] = one
    if "gpt" in found:
        found.pop("PMBR", None)  # the one entry of an old table that keeps others off a GPT disk
    return sorted(found.values(), key=lambda one: -1 if one.offset is None else one.offset)


def readable(path: str) -> None:
    """Read both ends of the device, where signatures are; raises `ProbeError` when a read fails."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            for offset in {0, max(0, size - MIB)}:
                if len(os.pread(fd, min(MIB, size), offset)) < min(MIB, size):
                    raise ProbeError(f"{path} ended in the middle of a read.")
        finally:
            os.close(fd)
    except OSError as err:
        raise ProbeError(f"{path} cannot be read: {err.strerror}.", hint="See the kernel log for the disk.") from err


def wipe(path: str) -> None:
    """Erase every signature; for the gate alone, which holds the device, so that wipefs cannot claim it as well."""
    run(["wipefs", "--all", "--force", "--quiet", path])


def _wipefs(path: str) -> list[Signature]:
    try:
        done = run(["wipefs", "--no-act", "--json", path])
    except CommandError as err:
        raise ProbeError(f"{path} cannot be probed: {err.message}", hint=err.hint) from err
    if not done.stdout.strip():
        return []
    try:
        report = msgspec.json.decode(done.stdout, type=_Report)
        return [
            Signature(printable(one.type), printable(one.label or "") or None, int(one.offset, 0))
            for one in report.signatures
        ]
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, ValueError) as err:
        raise ProbeError(f"{path} cannot be probed: the answer of wipefs is not understood ({err}).") from err


def _blkid(path: str) -> list[Signature]:
    try:
        done = run(["blkid", "-p", "-o", "udev", path], success=(0, _BLKID_NOTHING, _BLKID_AMBIVALENT))
    except CommandError as err:
        raise ProbeError(f"{path} cannot be probed: {err.message}", hint=err.hint) from err
    if done.returncode == _BLKID_AMBIVALENT:
        return [Signature("several formats at once")]
    if done.returncode == _BLKID_NOTHING:
        return []
    lines = done.stdout.decode(errors="replace").splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    types = [values[key] for key in ("ID_FS_TYPE", "ID_PART_TABLE_TYPE") if values.get(key)]
    label = printable(values.get("ID_FS_LABEL", "")) or None
    return [Signature(printable(one), label if one == values.get("ID_FS_TYPE") else None) for one in types]
