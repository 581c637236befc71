# SPDX-License-Identifier: GPL-2.0-or-later
"""What each code of an error, an alert or a note means, at length: the text of ``dmsoft explain``.

Errors take it from the docstring of their class, which a test holds to; alerts and notes have theirs here.
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
        "The primary of a mirror is not here.\n\nWithout it nothing can be started, copied or judged. Plug it in; its"
        " secondaries keep what they have. If it is lost for good, `dmsoft recover` makes a secondary whole by itself."
    ),
    "primary-failed": (
        "The primary of a mirror is here but cannot be used.\n\nThe alert says why. `dmsoft examine DEV` shows what"
        " stands on the disk, `dmsoft devices` what keeps it from being used."
    ),
    "primary-left-out": (
        "The kernel goes on without the primary of a write-behind mirror.\n\nA write to the primary failed or its disk"
        " is gone, and what is written now only the coupled secondaries have. Save what is on the mirror's device while"
        " it runs: it is not stopped like this. The daemon, or `dmsoft stop`, has written into their headers that they"
        " are newer; so the primary is not copied over them when it is back, and they are diverged until you choose."
    ),
    "secondary-failed": (
        "A secondary is here but cannot be used.\n\nThe primary goes on without it. Check the disk and its cable; when"
        " it works again, `dmsoft resync` copies what it missed."
    ),
    "secondary-unknown": (
        "What a secondary holds is not known for sure.\n\nSomething about it was doubtful (the alert says what), so a"
        " short list of what it misses would prove nothing. `dmsoft resync` compares every block and copies what"
        " differs; after that it is known again."
    ),
    "secondary-diverged": (
        "A secondary may have writes that the primary lacks.\n\nIt was written on its own since it left the mirror, or"
        " the kernel went on with it alone when the primary failed or was unplugged. Nothing is copied until you"
        " choose. To keep the primary's side: save from the secondary what you need, remove it from the mirror and add"
        " it again. To keep the secondary's, copy its data to the mirror's device before that: dmsoft(8) tells how,"
        " under A SECONDARY NEWER THAN THE PRIMARY."
    ),
    "left-suspended": (
        "All I/O to a mirror waits, and nobody is there to let it go on.\n\nA dmsoft command held the mirror still, and"
        " it died together with the process that stands by for that. `dmsoft start NAME` resumes it; nothing is lost."
    ),
    "tracking-failed": (
        "The kernel reports an error in the record of which blocks were written.\n\nWrites to blocks that were not"
        " written lately may fail from now on. Run `dmsoft start` on the running mirror at once: tracking is taken off,"
        " so that writes go on, and begun anew if the disk of the record allows it. The next resync compares every"
        " block."
    ),
    "tracking-off": (
        "Nothing records which blocks of a mirror are written.\n\nThe record failed or filled up, or this kernel's"
        " tracking failed its check before the mirror was started; the alert says which. The primary is used as always,"
        " nothing is known of any secondary. `dmsoft resync` tries to begin tracking anew; if it can, it compares every"
        " block and all is well again, and if not, it copies what differs and promises nothing. `dmsoft doctor` tells"
        " whether this kernel tracks as it should."
    ),
    "tracking-doubt": (
        "The record of which blocks were written does not verify.\n\nThe data on the primary is not touched by that. At"
        " the next start tracking begins anew, and the next resync compares every block."
    ),
    "metadata-missing": (
        "The device that keeps the record of which blocks were written is not here.\n\nThe mirror can be started when"
        " it is plugged in. If it is lost for good, make the mirror anew: its data are still on the primary."
    ),
    "metadata-filling": (
        "The room for the record of which blocks were written is filling up.\n\nOnce it is full, writes fail. Usually"
        " it empties by itself within seconds. If it does not, somebody may hold a metadata snapshot (see dmsetup)."
        " `dmsoft start` on the running mirror makes the record anew when it is full or fails."
    ),
    "header-torn": (
        "One of the two copies of a member's header is damaged.\n\nThe other one counts, and the next write of the"
        " header mends it. A power cut can do that; seen again and again, it is a sign of a failing disk."
    ),
    "lag-missed": (
        "A secondary lags further than was promised.\n\nThe alert has both figures. The daemon tries all the time, so"
        " either a catch-up takes longer than the interval, or it fails, of which there is an alert of its own. If that"
        " stays, the secondary needs a longer interval or a faster disk."
    ),
    "secondary-overdue": (
        "A disk is away for longer than it was expected to be.\n\nIts copy gets old: plug it in, and it catches up. How"
        " often it is expected was given with --expect-every."
    ),
    "monitor-dead": (
        "The daemon that keeps the mirrors as promised died.\n\nNothing is lost by that, but nothing is caught up any"
        " more by itself. `systemctl restart dmsoftd` or `dmsoft monitor` starts it again; `journalctl -u dmsoftd` may"
        " tell why it ended."
    ),
    "catch-up-failed": (
        "The daemon could not catch a secondary up.\n\nThe alert has the reason, in the words of `dmsoft resync`. It"
        " tries again, less and less often. What the secondary holds is as true as before."
    ),
    "rescue-failed": (
        "The daemon could not uncouple a secondary that fails, or mend the tracking.\n\nThe alert has the reason. It"
        " tries again. `dmsoft start NAME` does the same for the tracking, `dmsoft resync NAME` for a secondary."
    ),
    "not-answering": (
        "A look at a mirror, a change to it or a catch-up does not come to its end.\n\nA disk, or the kernel, keeps the"
        " daemon's process that is at it; a catch-up has stood still for ten minutes. The primary and other mirrors go"
        " on. See `journalctl -k` for the disk, and unplug it if it is a secondary."
    ),
}  # fmt: skip

# What `dmsoft devices` notes beside the refusals of the gate.
_NOTES = {
    "blivet": (
        "The storage library blivet knows of a use of the device that dmsoft did not see.\n\nThe note says which one."
        " It may be wrong, but look at the device before you use it."
    ),
    "removable": (
        "The device can be unplugged while it runs.\n\nFor a secondary that is what a soft mirror is made for. Without"
        " its primary a mirror stops, and a cache that is pulled out takes with it what was not yet written back."
    ),
    "rotational": (
        "The device says that it is a rotating disk.\n\nAs a cache it would hardly be faster than the secondary it is"
        " meant to serve. Virtual disks often say so as well; then it means nothing."
    ),
    "volatile": "The device is memory.\n\nWhat is on it is gone after a power cut or a reboot.",
}  # fmt: skip


def known() -> dict[str, str]:
    """Every code and its text, sorted by code: paragraphs of one line each, the first of which is a summary."""
    for module in pkgutil.walk_packages(dmsoft.__path__, "dmsoft."):
        if ".cli" not in module.name and "blivet" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = {
        code: f"{text}\n\nWhile it lasts, `dmsoft status` exits with 9." for code, text in _ALERTS.items()
    } | _NOTES
    for cls in _all_errors(DmsoftError):
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
    paragraphs = [" ".join(each.split()) for each in doc.split("\n\n")]
    return "\n\n".join([*paragraphs, f"Exit status {cls.exit_code}: {_EXITS[cls.exit_code]}."])
