# SPDX-License-Identifier: GPL-2.0-or-later
"""Stale blocks as text that other programs read. Positions are bytes of the mirror's device."""

from collections.abc import Callable, Iterator

from dmsoft.mirror.missing import Missing

FORMATS: dict[str, Callable[[str, str, Missing], Iterator[str]]] = {}


def byte_ranges(missing: Missing) -> Iterator[tuple[int, int]]:
    """(offset, length) of each run, ascending; the last one ends with the device, which may be inside a block."""
    for first, count in missing.extents:
        offset = first * missing.block_bytes
        yield offset, min(count * missing.block_bytes, missing.size_bytes - offset)


def ranges(_name: str, _label: str, missing: Missing) -> Iterator[str]:
    """``OFFSET LENGTH`` a line."""
    for offset, length in byte_ranges(missing):
        yield f"{offset} {length}"


def dd(_name: str, _label: str, missing: Missing) -> Iterator[str]:
    """The operands of *dd*(1) for one run a line, whole blocks: at the end of the device it stops by itself."""
    for first, count in missing.extents:
        yield f"bs={missing.block_bytes} skip={first} seek={first} count={count}"


def mapfile(name: str, label: str, missing: Missing) -> Iterator[str]:
    """A mapfile of GNU ddrescue, to be given as its domain: what is stale is marked ``+``, the rest ``?``.

    Format: the chapter "Mapfile structure" of the ddrescue manual. The blocks leave no gap.
    """
    yield f"# Mapfile. What {label} misses of {name}; use it with ddrescue --domain-mapfile."
    yield "# current_pos  current_status  current_pass"
    yield "0x00000000     ?               1"
    yield "#      pos        size  status"
    position = 0
    for offset, length in byte_ranges(missing):
        if offset > position:
            yield f"0x{position:08X}  0x{offset - position:08X}  ?"
        yield f"0x{offset:08X}  0x{length:08X}  +"
        position = offset + length
    if position < missing.size_bytes:
        yield f"0x{position:08X}  0x{missing.size_bytes - position:08X}  ?"


FORMATS |= {"ranges": ranges, "dd": dd, "mapfile": mapfile}
