# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes: the one place where they are converted, parsed and printed.

A plain ``int`` named ``*_bytes`` is bytes; `Sectors` are the 512-byte sectors of the block layer and of every
device-mapper table; era blocks are counted in units of the mirror's ``block_bytes``.
"""

import re
from typing import Final, NewType

from dmsoft.errors import UsageError

Sectors = NewType("Sectors", int)

SECTOR: Final = 512
KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_SUFFIXES: Final = "KMGTPE"
_SIZE = re.compile(r"(\d{1,18})\s*(?:([KMGTPE])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d{1,18})\s*(ms|s|m|h|d|w)?", re.IGNORECASE | re.ASCII)
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def sectors(size_bytes: int) -> Sectors:
    """The sectors in ``size_bytes``, which must be whole sectors."""
    if size_bytes % SECTOR:
        raise ValueError(f"{size_bytes} bytes are not whole sectors")
    return Sectors(size_bytes // SECTOR)


def align_down(value: int, unit: int) -> int:
    return value - value % unit


def align_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def parse_size(text: str) -> int:
    """Bytes of ``text``: a whole number with K, M, G, T, P or E (powers of 1024; ``KiB`` and ``kB`` mean K)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a size.", hint="Write a whole number and a unit, such as 64K, 1M or 10G.")
    number, suffix = match.groups()
    return int(number) << (10 * (_SUFFIXES.index(suffix.upper()) + 1) if suffix else 0)


def parse_duration(text: str) -> float:
    """Seconds of ``text``: a whole number with ms, s, m, h, d or w; a bare number is seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a duration.", hint="Write a whole number and a unit, such as 30s, 5m or 7d.")
    number, unit = match.groups()
    return int(number) * _SECONDS[(unit or "s").lower()]


def format_size(size_bytes: int) -> str:
    """Three significant digits and a unit, such as ``1.5 MiB``."""
    if size_bytes < KIB:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for suffix in _SUFFIXES:
        value /= 1024
        if value < 1023.5 or suffix == _SUFFIXES[-1]:
            break
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {suffix}iB"


def format_duration(seconds: float) -> str:
    """A duration as a person says it: ``0.4 s``, ``12 s``, ``5 min``, ``3 h 20 min``, ``6 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, _ = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
