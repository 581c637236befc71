# SPDX-License-Identifier: GPL-2.0-or-later
"""What each error and alert code means, at length: the text of ``dmsoft explain``.

Errors take it from the docstring of their class, which a test holds to; alerts have theirs here.
"""

import importlib
import inspect
import pkgutil

import dmsoft
from dmsoft.errors import DmsoftError, NotFoundError

_EXITS = {
    1: "unexpected", 2: "usage", 3: "not root, or the kernel lacks something", 4: "refused", 5: "not found",
    6: "device or I/O error", 7: "on-disk metadata bad", 8: "diverged", 10: "busy",
}  # fmt: skip

_ALERTS = {
    "primary-missing": (
        "The primary of a mirror is not here.\n\n"
        "Without it nothing can be copied or judged. Plug it in."
    ),
    "primary-failed": "The primary is here but cannot be used.\n\nThe alert says why; `dmsoft examine` shows more.",
    "secondary-failed": (
        "A secondary is here but cannot be used.\n\nThe primary goes on. Check the disk and its cable; when it works"
        " again, `dmsoft resync` copies what it missed."
    ),
    "secondary-unknown": (
        "What a secondary holds is not known for sure.\n\nIts era metadata or its header were doubted, so an empty"
        " stale set proves nothing. `dmsoft resync` compares every block and copies what differs."
    ),
    "secondary-diverged": (
        "A secondary was written on its own since it left.\n\nNothing is copied until you choose a side. To drop"
        " what it has, remove it and add it again."
    ),
    "tracking-failed": (
        "The kernel reports an error in the era metadata.\n\nFirst writes to a block may fail from now on. Stop the"
        " mirror and start it again: tracking begins anew, and every secondary is compared at its next resync."
    ),
    "tracking-doubt": "The era metadata does not verify.\n\nAt the next start secondaries become unknown.",
    "metadata-filling": (
        "The era metadata is nearly full.\n\nFull metadata fails writes. Digestion usually frees it within seconds; if"
        " it does not, stop the mirror and start it again."
    ),
    "header-torn": (
        "One of the two header copies of a member is damaged.\n\nThe other one counts, and the next write of the header"
        " mends it. Seen again and again, it is a sign of a failing disk."
    ),
}  # fmt: skip


def known() -> dict[str, str]:
    """Every code and its text, sorted by code."""
    for module in pkgutil.walk_packages(dmsoft.__path__, "dmsoft."):
        if ".cli" not in module.name and "blivet" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = dict(_ALERTS)
    for cls in _all_errors(DmsoftError):
        if cls is not DmsoftError:
            found.setdefault(cls.code, _text(cls))
    return dict(sorted(found.items()))


def explanation(code: str) -> str:
    """The text of one code; raises `NotFoundError`."""
    codes = known()
    if code not in codes:
        raise NotFoundError(f"There is no code '{code}'.", hint="`dmsoft explain` lists them all.")
    return codes[code]


def _all_errors(cls: type[DmsoftError]) -> list[type[DmsoftError]]:
    return [cls, *(each for sub in cls.__subclasses__() for each in _all_errors(sub))]


def _text(cls: type[DmsoftError]) -> str:
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "An error without a text of its own.")
    exit_text = _EXITS.get(cls.exit_code, "")
    return f"{doc}\n\nExit status {cls.exit_code}: {exit_text}."
