# SPDX-License-Identifier: GPL-2.0-or-later
"""The era metadata after real crashes: machines die in the middle of random steps, and the next one looks at the disks.

`tests.vm.era_program` is what each machine runs; a journal on a disk of its own tells the next one what was begun and
what was done. Power cuts take the write cache of the metadata device along, while all that got as far as the data stays
there: the order dm-era promises must hold, mark first.
"""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmsoft.era.reader import EraReader
from dmsoft.units import MIB
from tests.era_history import History
from tests.harness import vm, writelog
from tests.harness.kernels import DEFAULT, SUITES
from tests.vm.era_bed import METADATA_BYTES, ORIGIN_BYTES, bits_of
from tests.vm.era_journal import Journal
from tests.vm.era_program import CUT, look

OUTCOMES = {"reset": vm.Outcome.RESET, "cut": vm.Outcome.CUT, "stop": vm.Outcome.EXITED}


class Disks:
    """What outlives the machines, in ``folder``."""

    def __init__(self, folder: Path, kernel: str, seed: int, block_bytes: int) -> None:
        self._folder = folder
        self._kernel = kernel
        self._seed = seed
        self._block_bytes = block_bytes
        self._lives = 0
        for name, size in (("origin", ORIGIN_BYTES), ("metadata", METADATA_BYTES), ("journal", 16 * MIB)):
            with self[name].open("xb") as file:
                file.truncate(size)

    def __getitem__(self, name: str) -> Path:
        return self._folder / name

    def live(self, steps: int, end: str) -> None:
        """One boot: what was left is checked, ``steps`` are done and checked, and the machine comes to its ``end``."""
        self._lives += 1
        if end == "cut":
            self._live_until_cut(steps)
        else:
            self._boot(steps, end)
        if end != "stop":
            self._look()

    def _boot(self, steps: int, end: str, *, log: Path | None = None, leave_out: str = "") -> None:
        disks = [vm.Disk(name, path=self[name]) for name in ("origin", "journal")]
        result = vm.run(
            [".venv/bin/python", "-m", "tests.vm.era_program", *map(str, (self._seed, steps, self._block_bytes, end))],
            disks=[*disks, vm.Disk("metadata", path=self["metadata"], log=log)],
            kernel=self._kernel,
            env={"DMSOFT_LEAVE_OUT": leave_out},
            cut_at=CUT.encode(),
        )
        print(
            f"life {self._lives} on {self._kernel}: {result.seconds:.0f} s, of which booting {result.boot_seconds:.0f}"
        )
        print(result.stdout.decode(), result.stderr.decode())
        assert result.outcome is OUTCOMES[end], result.message
        assert result.status == OUTCOMES[end].value

    def _live_until_cut(self, steps: int) -> None:
        """The metadata device loses what it was not told to keep; whatever differs on the origin is marked even so."""
        before = {name: self._folder / f"{name}-before" for name in ("origin", "metadata")}
        for name, copy in before.items():
            shutil.copyfile(self[name], copy)
        with EraReader(before["metadata"]) as reader:
            first_era = 1 if reader.is_zero() else reader.superblock().current_era + 1
        # A discard changes blocks without marking them, and what a shrink cuts off is forgotten.
        self._boot(steps, "cut", log=self["log"], leave_out="discard resize")
        lost = writelog.lose_cache(self["log"], before["metadata"])
        before["metadata"].replace(self["metadata"])
        with EraReader(self["metadata"]) as reader:
            marked = bits_of(reader.written_since(first_era).blocks)
        old, new = (
            np.fromfile(path, np.uint64).reshape(-1, self._block_bytes // 8)[: len(marked)]
            for path in (before["origin"], self["origin"])
        )
        differs = (old != new).any(axis=1)
        print(f"lost {lost} bytes of metadata; {differs.sum()} blocks differ, {marked.sum()} are marked")
        assert differs.any()
        missing = np.flatnonzero(differs & ~marked)
        assert not len(missing), f"blocks {missing[:10]} differ, but are not marked since era {first_era}"

    def _look(self) -> None:
        """The host needs no kernel to compare the metadata with the model."""
        journal = Journal(self["journal"])
        history = History(ORIGIN_BYTES // self._block_bytes, self._block_bytes)
        pending, found = look(journal, self["metadata"], history)
        journal.close()
        print(f"{len(journal.entries)} steps, era {found.era}; unfinished: {pending}")


def test_crashes(tmp_path: Path, seed: int) -> None:
    disks = Disks(tmp_path, DEFAULT, seed, 4 << 10)
    disks.live(15, "reset")
    disks.live(15, "cut")


@pytest.mark.parametrize(
    ("kernel", "ends"),
    [
        ("5.10", ("reset", "cut")),
        ("6.18", ("reset",)),
        *(pytest.param(kernel, ("cut",), marks=pytest.mark.slow) for kernel in ("6.12", "7.2")),
    ],
)
def test_a_crash_on_other_kernels(kernel: str, ends: tuple[str, ...], tmp_path: Path, seed: int) -> None:
    """Twenty steps and more of every kind, all that a run of the suite sees of these kernels. The oldest of them is the
    one whose marks came after the data, before it was mended."""
    disks = Disks(tmp_path, kernel, seed, 12 << 10)
    for steps, end in zip((20, 5), ends, strict=False):
        disks.live(steps, end)


@pytest.mark.long
@pytest.mark.parametrize("kernel", SUITES)
def test_many_crashes(kernel: str, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    disks = Disks(tmp_path, kernel, seed, rng.choice([4, 8, 24, 64, 256]) << 10)
    for _ in range(8):
        disks.live(rng.randint(10, 60), rng.choice(["reset", "cut"]))
    disks.live(20, "stop")
