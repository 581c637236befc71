# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev soak --hours N``: every campaign in turn, each time with another seed, until the time is over."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness.qemu import CHECKOUT

_TAIL = 4000


@dataclass(frozen=True)
class Campaign:
    """A command that takes some minutes and fails where anything diverged; the environment tells a test its seed."""

    name: str
    module: str
    words: tuple[str, ...]
    takes_seed: bool = True

    def argv(self, seed: int) -> list[str]:
        return [sys.executable, "-m", self.module, *self.words, *(["--seed", str(seed)] if self.takes_seed else [])]


# Where the same is done with more numbers, or for longer.
_IN_VMS = (
    "bad_input", "commands", "doubt", "eject", "era_live", "failing_disk", "faults", "faulty_secondary", "guard",
    "hanging_secondary", "left_behind", "monitor", "periodic", "primary_gone", "scale", "space", "stalls", "trust",
    "udev", "unplug", "untracked", "write_behind",
)  # fmt: skip
_LONG = (
    *(f"tests/vm/test_{name}.py" for name in _IN_VMS),
    *(f"tests/crash/test_{name}.py" for name in ("era_crash", "load", "power_cuts")),
)
CAMPAIGNS = (
    Campaign("events", "tests.soak", ("--events", "60")),
    Campaign("cuts", "tests.crash.campaign", ("--lives", "3", "--cuts", "20", "--desk", "60")),
    Campaign(
        "kills",
        "tests.harness.suite",
        (
            *(f"tests/vm/test_journal.py::test_killed_{how}" for how in ("anywhere", "at_each_step")),
            "tests/vm/test_crash.py",
        ),
        takes_seed=False,
    ),
    Campaign("long", "tests.harness.suite", _LONG, takes_seed=False),
    Campaign("boots", "tests.harness.suite", ("tests/vagrant",), takes_seed=False),
    Campaign("daemon", "tests.harness.suite", ("tests/vm/test_monitor_soak.py",), takes_seed=False),
    Campaign("load", "tests.load", ("--minutes", "5")),
    Campaign("fuzz", "tests.fuzz", ("--count", "20000")),
)


def soak(hours: float, names: Sequence[str], seed: int, folder: Path) -> int:
    """Begin campaigns until the time is over; exit status 1 when one fails, whose output stays in ``folder``."""
    chosen = [campaign for campaign in CAMPAIGNS if campaign.name in names]
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    done = dict.fromkeys((campaign.name for campaign in chosen), 0)
    for campaign, number in zip(itertools.cycle(chosen), itertools.count(seed), strict=False):
        begun, log = time.monotonic(), folder / f"{campaign.name}-{number}.log"
        if begun - start >= 3600 * hours:
            break
        status, said = _run(campaign, number, log)
        print(f"{campaign.name}, seed {number}, {time.monotonic() - begun:.0f} s: {said[-1]}", flush=True)
        if status:
            print("\n".join(said)[-_TAIL:], file=sys.stderr)
            print(f"{campaign.name}, seed {number}: exit status {status}; all of it is in {log}", file=sys.stderr)
            return 1
        log.unlink()
        done[campaign.name] += 1
    counts = ", ".join(f"{name} {count}" for name, count in done.items())
    print(f"{(time.monotonic() - start) / 3600:.1f} hours without a divergence: {counts}")
    return 0


def _run(campaign: Campaign, seed: int, log: Path) -> tuple[int, list[str]]:
    """Its exit status and what it said, at least a line. It is ended in order when we are."""
    environment = dict(os.environ, DMSOFT_TEST_SEED=str(seed))
    with log.open("w") as file:
        process = subprocess.Popen(
            campaign.argv(seed), cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
        try:
            status = process.wait()
        finally:
            process.terminate()
            process.wait()
    return status, log.read_text(errors="replace").splitlines() or ["it said nothing"]
