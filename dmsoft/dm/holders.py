# SPDX-License-Identifier: GPL-2.0-or-later
"""Who uses a block device, as far as sysfs and the mount and swap tables tell."""

from pathlib import Path


def users(major: int, minor: int) -> list[str]:
    """Devices stacked on it (by device-mapper name where they have one), mount points and swap. May be empty."""
    number = f"{major}:{minor}"
    node = Path("/sys/dev/block", number)
    return [*_holders(node), *_mounts(number), *_swaps(node)]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _holders(node: Path) -> list[str]:
    try:
        names = sorted(entry.name for entry in (node / "holders").iterdir())
    except OSError:
        return []
    return [_read(node / "holders" / name / "dm" / "name").strip() or name for name in names]


def _mounts(number: str) -> list[str]:
    lines = (line.split() for line in _read(Path("/proc/self/mountinfo")).splitlines())
    return [f"the mount {words[4]}" for words in lines if len(words) > 4 and words[2] == number]


def _swaps(node: Path) -> list[str]:
    try:
        name = node.resolve(strict=True).name
    except OSError:
        return []
    lines = [line.split() for line in _read(Path("/proc/swaps")).splitlines()[1:]]
    return ["swap" for words in lines if words and Path(words[0]).resolve().name == name]
