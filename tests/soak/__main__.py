# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev soak``: machine after machine on the same disks, until all events are done; after each, every disk is held
against its claims."""

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tests.harness import vm, writelog
from tests.harness.kernels import DEFAULT
from tests.harness.signals import unwind
from tests.soak.campaigns import CAMPAIGNS, soak
from tests.soak.claims import look, primary_problems, problems
from tests.soak.content import BLOCK, Content
from tests.soak.guest import CUT, LABELS, State, ends

SIZE = 32 << 20
_SERIALS = ("p0", *LABELS.values())
_SECONDS = 1800
_OUTCOMES = {"reset": vm.Outcome.RESET, "cut": vm.Outcome.CUT, "stop": vm.Outcome.EXITED}


class DivergenceError(Exception):
    """A disk is not what it claims to be, or a machine ended in another way than it should."""


class Soak:
    """The disks in ``folder``, and what is known of them."""

    def __init__(self, folder: Path, seed: int, kernel: str) -> None:
        self.folder, self.seed, self.kernel = folder, seed, kernel
        self.state = State()
        self.ended = ""
        self.done = 0
        for serial in _SERIALS:
            with self.path(serial).open("xb") as file:
                file.truncate(SIZE)

    def path(self, serial: str) -> Path:
        return self.folder / f"{serial}.img"

    def run(self, events: int) -> None:
        first = 0
        while first < events:
            last, end = next(
                ((event + 1, how) for event in range(first, events) if (how := ends(self.seed, event))), (events, "")
            )
            self._live(first, last, end)
            first = last
            if end and first == events:
                self._live(first, first, "")  # the last one puts everything in order, and compares

    def _live(self, first: int, last: int, end: str) -> None:
        if end == "cut":
            before = {serial: self.folder / f"{serial}.before" for serial in _SERIALS}
            for serial, copy in before.items():
                shutil.copyfile(self.path(serial), copy)
        self._boot(first, last, end)
        if end == "cut":
            self._lose_caches(before)
        self._judge()

    def _boot(self, first: int, last: int, end: str) -> None:
        state = msgspec.json.encode(self.state).decode()
        logged = end == "cut"
        result = vm.run(
            [".venv/bin/python", "-m", "tests.soak.guest", *map(str, (self.seed, first, last, state))],
            disks=[
                vm.Disk(serial, path=self.path(serial), log=self.folder / f"{serial}.log" if logged else None)
                for serial in _SERIALS
            ],
            kernel=self.kernel, timeout=_SECONDS, memory=1536, cut_at=CUT.encode(),
        )  # fmt: skip
        self.ended = ""
        for line in result.stdout.decode().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                self._hear(json.loads(line))
        wanted = _OUTCOMES[end or "stop"]
        print(f"machine for events {first} to {last - 1}: {result.message}, {result.seconds:.0f} s", flush=True)
        if result.outcome is not wanted or (wanted is vm.Outcome.EXITED and result.status) or self.ended != end:
            raise DivergenceError(f"{result.message}\n{result.stderr.decode()[-6000:]}\n{result.console[-3000:]}")

    def _hear(self, said: dict[str, Any]) -> None:
        if "state" in said:
            self.state = msgspec.convert(said["state"], State)
        elif "acknowledged" in said:
            self.state.acknowledged = said["acknowledged"]
        elif "end" in said:
            self.ended = said["end"]
        elif "event" in said:
            self.done += 1
            print(f"  {said['event']:4}  {said['what']} ({said['seconds']} s)", flush=True)

    def _lose_caches(self, before: dict[str, Path]) -> None:
        """The write cache of every disk goes with the power, but for what it wrote back by itself."""
        chance = random.Random(f"cut {self.seed} {self.done}")
        for serial, copy in before.items():
            writelog.lose_cache(self.folder / f"{serial}.log", copy, lambda _: chance.random() < 0.3)
            copy.replace(self.path(serial))

    def _judge(self) -> None:
        key = bytes.fromhex(self.state.key)
        content = Content(self.seed, look(self.path("p0"), key).payload.regions["data"].length // BLOCK)
        paths = {label: self.path(serial) for label, serial in LABELS.items()}
        found = problems(self.path("p0"), paths, content, key, self.state.promised)
        found += primary_problems(self.path("p0"), content, key, self.state.acknowledged)
        if found:
            raise DivergenceError("\n".join(found))


@contextlib.contextmanager
def kept_on_failure(folder: str | None) -> Iterator[Path]:
    """A folder for the disks, which stays when something is found on them."""
    path = Path(folder or tempfile.mkdtemp(prefix="dmsoft-soak-", dir="/var/tmp"))
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    except DivergenceError:
        print(f"the disks are kept in {path}", file=sys.stderr)
        raise
    shutil.rmtree(path)


def main(argv: list[str]) -> int:
    """Exit status 1 if anything diverged."""
    names = [campaign.name for campaign in CAMPAIGNS]
    parser = argparse.ArgumentParser(prog="dev soak", description="Random events, and every disk against its claims.")
    add = parser.add_argument
    add("--events", type=int, default=20, help="how many (default %(default)s)")
    add("--hours", type=float, help="instead: campaign after campaign, for so long")
    add("--campaigns", default=",".join(names), help="which, with --hours (default %(default)s)")
    add("--seed", type=int, default=random.randrange(1 << 32), help="do again what another run did")
    add("--kernel", default=DEFAULT, help="version to boot, without --hours (default %(default)s)")
    add("--folder", help="an empty folder for the disks, or with --hours for what failed")
    asked = parser.parse_args(argv)
    if asked.hours is not None:
        chosen = asked.campaigns.split(",")
        if unknown := set(chosen) - set(names):
            parser.error(f"no such campaign: {', '.join(sorted(unknown))}")
        return soak(asked.hours, chosen, asked.seed, Path(asked.folder or ".cache/soak"))
    print(f"seed {asked.seed}", flush=True)
    start = time.monotonic()
    try:
        with kept_on_failure(asked.folder) as folder:
            life = Soak(folder, asked.seed, asked.kernel)
            life.run(asked.events)
    except DivergenceError as err:
        print(f"seed {asked.seed}: {err}", file=sys.stderr)
        return 1
    print(
        f"seed {asked.seed}: {life.done} events, no divergence; a person was asked {life.state.asked} times; "
        f"{time.monotonic() - start:.0f} s"
    )
    return 0


if __name__ == "__main__":
    unwind()
    sys.exit(main(sys.argv[1:]))
