# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between kernels, by series: what tests hold each of them to, and what the manual shows."""

KERNELS = ("5.10", "6.1", "6.12", "6.18", "7.2")


def _row(*values: bool) -> dict[str, bool]:
    return dict(zip(KERNELS, values, strict=True))


# Does a write return while the secondary still holds it back? By the place of the leg; writes that touch each other are
# such as a sequential writer makes with one request at a time.
BEHIND_FIRST = _row(True, True, True, True, True)
BEHIND_SECOND = _row(True, False, True, True, True)
TOUCHING_FIRST = _row(False, False, True, False, True)
TOUCHING_SECOND = _row(False, False, True, False, True)
# Does md know which place a write that failed belongs to, behind or not, when the leg is back?
RECOVERS = _row(True, True, False, False, False)
# Does it answer its messages idle and frozen as it should?
ANSWERS = _row(True, True, False, False, False)


def series(release: str) -> str:
    """``6.1`` of ``6.1.0-50-amd64``."""
    return ".".join(release.split("-", maxsplit=1)[0].split(".")[:2])


def table() -> str:
    """As the manual shows it."""
    rows = [
        ("", dict(zip(KERNELS, KERNELS, strict=True))),
        ("write-behind, writes apart", None),
        ("  secondary first", _words(BEHIND_FIRST, "behind", "waits")),
        ("  secondary second", _words(BEHIND_SECOND, "behind", "waits")),
        ("write-behind, writes that touch", None),
        ("  secondary first", _words(TOUCHING_FIRST, "behind", "waits")),
        ("  secondary second", _words(TOUCHING_SECOND, "behind", "waits")),
        ("md, of a write that failed", None),
        ("  recovers its place", _words(RECOVERS, "yes", "no")),
        ("md, its messages idle and frozen", None),
        ("  answered without error", _words(ANSWERS, "yes", "no")),
    ]
    return "\n".join(
        name if row is None else f"{name:26}{''.join(f'{row[kernel]:8}' for kernel in KERNELS)}".rstrip()
        for name, row in rows
    )


def _words(row: dict[str, bool], yes: str, no: str) -> dict[str, str]:
    return {kernel: yes if value else no for kernel, value in row.items()}
