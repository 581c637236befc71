# SPDX-License-Identifier: GPL-2.0-or-later
"""The story of the demo: a disk is away, the files change, the disk comes back and catches up what it missed."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmsoft.mirror.missing import Missing, missing
from dmsoft.units import MIB, format_size
from tests.demo import files
from tests.demo.disks import Cables, Data, differing, read_only, written
from tests.demo.files import Work
from tests.demo.stage import DemoError, Stage, quiet

# How much more than the stale blocks a resync may write to a disk, by the kernel's own count.
LIMIT = 1.05
_ADDED_BYTES = 32 * MIB
MOUNT = Path("/run/dmsoft-demo/files")
COPY = Path("/run/dmsoft-demo/copy")


@dataclass(frozen=True)
class Figures:
    """What the return of the disk came to; bytes and seconds."""

    mode: str
    disk_bytes: int
    stale_bytes: int
    written_bytes: int
    seconds: float

    @property
    def ratio(self) -> float:
        return self.written_bytes / self.stale_bytes


@dataclass(frozen=True)
class Choice:
    """The files of the story and their sha256 before anything was copied."""

    base: list[Path]
    changed: list[Path]
    removed: list[Path]
    again: list[Path]
    hashes: dict[Path, str]

    @classmethod
    def of(cls, paths: list[Path], hashes: dict[Path, str]) -> "Choice":
        """Which file meets which fate is a matter of its place in the list, so the same each time.

        A file with a second name stays as it is: a change would show under both.
        """
        regular = [path for path in paths if path in hashes and path.stat().st_nlink == 1]
        changed, removed = regular[5::97], regular[11::89]
        again, spent = [], 0
        for path in regular[::7]:
            size = path.stat().st_size
            if spent + size <= _ADDED_BYTES:
                again.append(path)
                spent += size
        return cls(paths, changed, [path for path in removed if path not in changed], again, hashes)


class Mirror:
    """One mirror on the stage: the steps that both acts share."""

    def __init__(self, stage: Stage, disks: Cables, name: str, labels: list[str]) -> None:
        self.stage, self.disks, self.name, self.labels = stage, disks, name, labels
        self.device = f"/dev/mapper/{name}"
        self.work = Work(MOUNT)

    def dmsoft(self, verb: str, *words: str, ok: tuple[int, ...] = (0,)) -> float:
        return self.stage.run("dmsoft", verb, *words, ok=ok)

    def make_files(self, choice: Choice) -> None:
        self.stage.run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0", self.device)
        MOUNT.mkdir(parents=True, exist_ok=True)
        self.stage.run("mount", self.device, str(MOUNT))
        start = time.monotonic()
        self.work.fill(choice.base, choice.hashes)
        quiet("sync", "--file-system", str(MOUNT))
        self.stage.blank()
        size = sum(path.lstat().st_size for path in choice.base)
        self.stage.say(
            f"Copied {len(choice.base)} files and links from this machine's /usr to it with cp -a: "
            f"{format_size(size)} in {time.monotonic() - start:.0f} s."
        )

    def more_files(self, choice: Choice, folder: str) -> None:
        added = self.work.add(choice.again, folder, choice.hashes)
        quiet("sync", "--file-system", str(MOUNT))
        size = format_size(sum(path.stat().st_size for path in choice.again))
        self.stage.say(f"{added} files ({size}) are added while the secondary is attached.")

    def change_files(self, choice: Choice, folder: str) -> None:
        start = time.monotonic()
        added = self.work.add(choice.again, folder, choice.hashes)
        changed = self.work.change(choice.changed)
        removed = self.work.remove(choice.removed)
        quiet("sync", "--file-system", str(MOUNT))
        size = sum(path.stat().st_size for path in choice.again)
        self.stage.say(
            f"{added} files added ({format_size(size)}), {changed} changed, {removed} removed; "
            f"{time.monotonic() - start:.0f} s. The primary took it all as if nothing had happened."
        )

    def missing(self, label: str) -> Missing:
        return missing(self.name, label)

    def data(self, serial: str) -> Data:
        return Data.on(self.disks[serial])

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Nothing is written to the mirror's file system inside this block."""
        quiet("fsfreeze", "--freeze", str(MOUNT))
        try:
            yield
        finally:
            quiet("fsfreeze", "--unfreeze", str(MOUNT))

    def check_stale_set(self, label: str) -> int:
        """Compare disk and primary before anything is copied: whatever differs has to be on the list of stale blocks.

        Returns the bytes of the stale blocks.
        """
        start = time.monotonic()
        with self.frozen():
            stale = self.missing(label)
            listed = {block for first, count in stale.extents for block in range(first, first + count)}
            (found,) = differing([self.data("primary"), self.data(label)], stale.block_bytes)
        if not found <= listed:
            raise DemoError(f"{len(found - listed)} blocks differ that are not on the list of stale blocks")
        self.stage.good(
            f"Every byte of the disk compared with the primary: {len(found)} blocks of "
            f"{format_size(stale.block_bytes)} differ, and all of them are among the {stale.stale_blocks} that dmsoft "
            f"lists as stale. ({time.monotonic() - start:.0f} s)"
        )
        return stale.stale_bytes

    def check_amount(self, mode: str, label: str, stale_bytes: int, before: int, seconds: float) -> Figures:
        """Hold the kernel's count of bytes sent to the disk against the stale blocks."""
        figures = Figures(
            mode, self.disks.size(label), stale_bytes, written(self.disks[label]) - before, seconds
        )  # fmt: skip
        if figures.ratio > LIMIT:
            raise DemoError(
                f"{format_size(figures.written_bytes)} were written to the disk to catch up {format_size(stale_bytes)}"
            )
        self.stage.blank()
        self.stage.good(
            f"{format_size(stale_bytes)} were stale, {100 * stale_bytes / figures.disk_bytes:.1f} % of the disk. "
            f"By the kernel's own count {format_size(figures.written_bytes)} were written to it, headers included: "
            f"{figures.ratio:.3f} times the stale blocks, {LIMIT} are allowed."
        )
        return figures

    def check_equal(self, labels: list[str]) -> None:
        """Every byte of the data regions, read from the disks themselves."""
        start = time.monotonic()
        primary = self.data("primary")
        for label, blocks in zip(
            labels, differing([primary, *(self.data(label) for label in labels)], MIB), strict=True
        ):
            if blocks:
                raise DemoError(f"{len(blocks)} MiB on {label} differ from the primary: {sorted(blocks)[:10]}")
        names = " and ".join(labels)
        self.stage.blank()
        self.stage.good(
            f"All {format_size(primary.length)} of data on {names} are byte for byte those of the primary, read "
            f"from the disks past every cache of the kernel. ({time.monotonic() - start:.0f} s)"
        )

    def check_files(self, label: str, expected: dict[str, files.Entry]) -> None:
        """Every file of the copy, through a mount that cannot write."""
        start, before = time.monotonic(), written(self.disks[label])
        with read_only(self.data(label), f"copy-on-{label}", COPY) as commands:
            self.stage.blank()
            for command in commands:
                self.stage.command(command)
            found = files.manifest(COPY)
        wrong = files.differences(expected, found)
        if wrong:
            raise DemoError(f"{len(wrong)} files on {label} are not as they should be: {', '.join(wrong[:5])}")
        if written(self.disks[label]) != before:
            raise DemoError(f"looking at the copy on {label} wrote to its disk")
        hashes = sum(bool(entry.size) for entry in found.values())
        self.stage.blank()
        self.stage.good(
            f"All {len(found)} files, folders and links are on {label}, with their owners, modes and times; the sha256 "
            f"of {hashes} files is what it was at their source. Looking wrote nothing to the disk. "
            f"({time.monotonic() - start:.0f} s)"
        )

    def unmount(self) -> dict[str, files.Entry]:
        """Unmount the mirror's file system; returns what a copy of it has to show."""
        expected = self.work.expected()
        quiet("umount", str(MOUNT))
        return expected


def periodic(stage: Stage, disks: Cables, choice: Choice) -> Figures:
    """Two secondaries, copied to from time to time."""
    mirror = Mirror(stage, disks, "photos", ["one", "two"])
    by_id = {serial: str(disks[serial]) for serial in ("primary", "one", "two")}

    stage.chapter("A mirror of three disks")
    stage.say("One primary that is written directly, two secondaries that may lag.")
    mirror.dmsoft("create", "photos", "--primary", by_id["primary"],
                  "--secondary", f"one={by_id['one']}", "--secondary", f"two={by_id['two']}", "--yes")  # fmt: skip
    mirror.make_files(choice)

    stage.chapter("The first copy")
    stage.say("It copies everything; no later one has to. The file system stays mounted.")
    mirror.dmsoft("resync", "photos")

    stage.chapter("Disk one is unplugged, and the files go on changing")
    disks.unplug("one")
    mirror.change_files(choice, "added")
    stage.blank()
    stage.say("Disk two is still here, and is brought up to date:")
    mirror.dmsoft("resync", "photos")
    mirror.dmsoft("status", "photos")
    stage.blank()
    stage.say("(A mounted ext4 writes its superblock again after each barrier: that is what two misses.)")

    stage.chapter("Disk one is plugged in again")
    disks.replug("one")
    stale = mirror.check_stale_set("one")
    before = written(disks["one"])
    seconds = mirror.dmsoft("resync", "photos", "one")
    figures = mirror.check_amount("periodic", "one", stale, before, seconds)

    stage.chapter("Are both copies true?")
    stage.say("The file system is unmounted and the last blocks are caught up, for a fair comparison.")
    expected = mirror.unmount()
    mirror.dmsoft("resync", "photos")
    mirror.check_equal(["one", "two"])
    mirror.check_files("one", expected)
    mirror.dmsoft("destroy", "photos", "--yes")
    return figures


def write_behind(stage: Stage, disks: Cables, choice: Choice) -> Figures:
    """One secondary that the kernel writes to behind the primary, through a cache device."""
    mirror = Mirror(stage, disks, "mail", ["one"])

    stage.chapter("A mirror whose secondary follows at once, through a cache")
    stage.say("The kernel passes each write on to the secondary, and a fast cache device takes it in.")
    mirror.dmsoft("create", "mail", "--mode", "write-behind", "--primary", str(disks["primary"]),
                  "--secondary", f"one={disks['one']}", "--via", f"writecache:{disks['cache']}", "--yes")  # fmt: skip
    mirror.make_files(choice)
    mirror.dmsoft("resync", "mail")

    stage.chapter("Its disk is unplugged while its cache is full of news")
    mirror.more_files(choice, "news")
    disks.unplug("one")
    stage.say("Unplugged: what the cache still holds cannot get to the disk any more.")
    mirror.change_files(choice, "added")
    mirror.dmsoft("status", "mail", ok=(0, 9))

    stage.chapter("It is plugged in again")
    disks.replug("one")
    stale = mirror.check_stale_set("one")
    before = written(disks["one"])
    seconds = mirror.dmsoft("resync", "mail", "one")
    figures = mirror.check_amount("write-behind", "one", stale, before, seconds)

    stage.chapter("Is the copy true, on the disk itself?")
    mirror.more_files(choice, "later")
    mirror.dmsoft("status", "mail")
    stage.blank()
    stage.say(
        "(Attached: writes are passed on. What it misses is what dmsoft would copy if the disk left now; it believes "
        "no more than what it has copied itself.)"
    )
    expected = mirror.unmount()
    (behind,) = differing([mirror.data("primary"), mirror.data("one")], MIB)
    stage.blank()
    stage.say(
        f"In {len(behind)} MiB the disk itself is not yet what the primary is: the cache holds the news. "
        "Stopping the mirror writes the cache back."
    )
    mirror.dmsoft("stop", "mail")
    mirror.check_equal(["one"])
    mirror.check_files("one", expected)
    mirror.dmsoft("destroy", "mail", "--yes")
    return figures
