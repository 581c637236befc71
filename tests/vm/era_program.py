# SPDX-License-Identifier: GPL-2.0-or-later
"""One life of an era device in a machine that dies: ``python -m tests.vm.era_program SEED STEPS BLOCK_BYTES END``.

The disks ``metadata``, ``origin`` and ``journal`` outlive the machine. What the life before this one left is compared
with the model that the journal gives, then STEPS random steps follow, then the END: ``stop`` the device; ``reset`` the
machine at a random moment of more steps; or ``cut``: say so, and go on until somebody pulls the plug.
``DMSOFT_LEAVE_OUT`` names kinds of steps and ways to write that shall not be, by blanks between. The END ``image``
prints the metadata as they lie on their disk, for `tests.fuzz.images`.
"""

import base64
import lzma
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dmsoft.era.reader import EraReader
from tests.era_history import History, Step, random_step
from tests.vm.era_bed import ORIGIN_BYTES, EraBed, check, sh
from tests.vm.era_journal import Journal

CUT = "the plug may be pulled"
_DISKS = Path("/dev/disk/by-id")
# Steps of which the machine does not see the end.
_MORE = 600


class Life:
    """From the look at what was left to the last step."""

    def __init__(self, seed: int, block_bytes: int) -> None:
        self._seed = seed
        self._metadata = _DISKS / "virtio-metadata"
        self.journal = Journal(_DISKS / "virtio-journal")
        self.history = History(ORIGIN_BYTES // block_bytes, block_bytes)
        self.bed = EraBed(self._metadata, _DISKS / "virtio-origin", block_bytes)
        # No crash but a real one.
        self._leave_out = ["crash", *os.environ.get("DMSOFT_LEAVE_OUT", "").split()]

    def begin(self) -> None:
        """Look at what is there after a crash, then start the device."""
        if self.journal.entries:
            pending, found = look(self.journal, self._metadata, self.history)
            print(f"found era {found.era}; unfinished: {pending.to_json() if pending else 'nothing'}", flush=True)
            self.journal.begin(found)
            self.journal.end()
            self.bed.blocks = self.history.blocks
        self._do(Step("start"))
        if not self.bed.takes_discards():
            self._leave_out.append("discard")
        self._check_all()

    def go_on(self, steps: int, *, checked: bool = True) -> None:
        for _ in range(steps):
            rng = random.Random(f"{self._seed} {len(self.journal.entries)}")
            self._do(random_step(rng, self.history, leave_out=self._leave_out))
            if checked:
                newest = self.history.era
                eras = {1, newest, newest - 1, rng.randint(0, newest + 1)}
                check(self._metadata, self.history, sorted(eras))

    def stop(self) -> None:
        """The metadata of a stopped device say what those of the live one said."""
        self.bed.close()
        if self.history.suspended:
            # It had to be resumed for its removal.
            self.history.apply(Step("resume"))
        self._check_all()

    def image(self) -> str:
        """The metadata as they lie on the disk now, for `tests.fuzz.images`."""
        sh("blockdev", "--flushbufs", self._metadata)
        packed = lzma.compress(self._metadata.read_bytes(), preset=9)
        return base64.b64encode(packed).decode()

    def _do(self, step: Step) -> None:
        self.journal.begin(step)
        self.bed.do(step)
        self.history.apply(step)
        self.journal.end()

    def _check_all(self) -> None:
        check_all(self._metadata, self.history)


def look(journal: Journal, metadata: Path, history: History) -> tuple[Step | None, Step]:
    """Compare what a crash left with what ``journal`` tells of; ``history`` is new, and knows all of it afterwards.

    Returns the step that the crash interrupted, if it did, and the one that says what was found.
    """
    pending = journal.replay(history)
    with EraReader(metadata) as reader:
        superblock = reader.superblock()
    snapshot = bool(superblock.metadata_snap)
    found = history.recover(pending, superblock.current_era, superblock.nr_blocks, snapshot)
    check_all(metadata, history)
    return pending, found


def check_all(metadata: Path, history: History) -> None:
    """The reader agrees with ``history`` from many eras on."""
    newest = history.era
    check(metadata, history, range(0, newest + 2, max(newest // 16, 1)))


def soon(rng: random.Random, what: Callable[[], object]) -> None:
    """Do ``what`` at a random moment of the next second."""

    def act() -> None:
        time.sleep(rng.uniform(0.02, 1))
        what()

    threading.Thread(target=act, daemon=True).start()


def main(argv: list[str]) -> int:
    seed, steps, block_bytes = (int(word) for word in argv[:3])
    sh("modprobe", "dm-era")
    life = Life(seed, block_bytes)
    life.begin()
    life.go_on(steps)
    print(f"{len(life.journal.entries)} steps so far, era {life.history.era}", flush=True)
    if argv[3] == "stop":
        life.stop()
        return 0
    if argv[3] == "image":
        print("image " + life.image(), flush=True)
        return 0
    rng = random.Random(f"{seed} {len(life.journal.entries)} end")
    if argv[3] == "reset":
        soon(rng, lambda: Path("/proc/sysrq-trigger").write_text("b"))
    else:
        soon(rng, lambda: print(CUT, flush=True))
    life.go_on(_MORE, checked=False)
    time.sleep(60)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
