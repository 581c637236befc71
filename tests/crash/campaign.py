# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev cuts``: lives of mirrors, and the power cut at many places of each; every cut is judged, and some are made
once more while that is recovered from."""

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.crash import desk
from tests.crash.judge import Case, Divergence, Figures, Judge
from tests.crash.lab import Lab, LabError
from tests.crash.life import STORIES
from tests.crash.medium import SURVIVALS, Replay
from tests.crash.recording import Places, Recording
from tests.harness import kernels

# How many of the cuts are cut once more while they are recovered from.
AGAIN = 0.25
USUAL_DEEDS = 4


class Campaign:
    """Lives and their cuts in one VM; every failure is kept in ``folder`` with the disks as the cut left them."""

    def __init__(self, seed: int, folder: Path, *, kernel: str = kernels.DEFAULT, seconds: float = 3600) -> None:
        self._seed, self._folder = seed, folder
        self._chance = random.Random(seed)
        self._lab = Lab(seed, kernel=kernel, seconds=seconds)
        self._blank = {name: bytes(disk.image) for name, disk in self._lab.disks.items()}
        self.figures = Figures()
        self._judge = Judge(self._lab, self.figures)

    def __enter__(self) -> "Campaign":
        self._lab.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lab.__exit__(*exception)

    def live(self, story: str, *, deeds: int = USUAL_DEEDS, careless: str = "") -> Recording:
        """One life, recorded; ``careless`` names what dmsoft does not do in it."""
        lab = self._lab
        lab.load({name: bytearray(image) for name, image in self._blank.items()})
        lab.do("reset", etc={}, disks=list(self._blank))
        lab.do("live", seed=self._chance.randrange(1 << 32), story=story, deeds=deeds, careless=careless)
        lab.do("clean")
        return Recording(story, self._blank, list(lab.tape))

    def cut(self, life: Recording, count: int, seconds: float = math.inf) -> None:
        """Cut its power at so many places, those beginning after that time left out. Raises `Divergence`."""
        places = Places.of(life.tape).draw(count, self._chance)
        if seconds < math.inf:
            self._chance.shuffle(places)  # where the time ends, all parts of the life had their share
        deadline = time.monotonic() + seconds
        for place in places if seconds < math.inf else [None]:
            if time.monotonic() > deadline:
                return
            for cut, case, replay in life.cases(places if place is None else [place]):
                self._cut(replay, case, cut, again=self._chance.random() < AGAIN)

    def _cut(self, replay: Replay, case: Case, place: int, *, again: bool) -> None:
        survival = self._chance.choice(list(SURVIVALS))
        images = replay.after_cut(survival, self._chance)
        what = f"{case.story}, cut at {place} in {case.place}, caches {survival}"
        if not self._judged(case, images, what) or not again:
            return
        # The machine that recovered from this loses its power as well, at any moment of that.
        tape = list(self._lab.tape)
        places = Places.of(tape)
        (second,) = places.draw(1, self._chance)
        replay = Replay.of(tape, images)
        replay.to(second)
        survival = self._chance.choice(list(SURVIVALS))
        again = replace(case, phase=places.phases[second], inner=places.inner[second])
        what += f", again at {second} in {again.place}, caches {survival}"
        self._judged(replace(again, phase="again"), replay.after_cut(survival, self._chance), what)

    def _judged(self, case: Case, images: dict[str, bytearray], what: str) -> bool:
        start = time.monotonic()
        try:
            whole = self._judge.judge(case, {name: bytearray(image) for name, image in images.items()})
            print(f"{what}: {'resynced' if whole else 'made anew'}, {time.monotonic() - start:.0f} s", flush=True)
            return whole
        except (Divergence, LabError) as err:
            folder = self._folder / f"cut-{self._seed}-{sum(self.figures.cuts.values())}"
            folder.mkdir(parents=True, exist_ok=True)
            for name, image in images.items():
                (folder / name).write_bytes(image)
            (folder / "case.json").write_text(json.dumps({"what": what, "etc": case.etc, "synced": case.synced}))
            raise Divergence(f"seed {self._seed}, {what}: {err}\nThe disks are in {folder}.") from err


def _stories(chosen: str | None) -> Iterator[str]:
    while True:
        yield from [chosen] if chosen else STORIES


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev cuts", description=__doc__)
    add = parser.add_argument
    add("--hours", type=float, help="how long lives are begun")
    add("--lives", type=int, default=sys.maxsize, help="how many there are at most")
    add(
        "--cuts",
        type=int,
        default=60,
        help="power cuts of each life (default %(default)s), besides those of recoveries",
    )
    add("--desk", type=int, default=0, help="places of each life to cut in six ways without a VM (default %(default)s)")
    add("--deeds", type=int, default=USUAL_DEEDS, help="verbs in each life (default %(default)s)")
    add("--seed", type=int, help="repeats the draws, though not the timing, of an earlier run")
    add("--story", choices=STORIES, help="only this kind of life")
    add("--tape", type=Path, help="a file to keep the first life in, or one that was kept, which is cut then")
    add("--kernel", default=kernels.DEFAULT, help="version to boot (default %(default)s)")
    add("--folder", type=Path, default=Path(".cache/cuts"), help="where failures are kept (default %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.hours is None and arguments.lives == sys.maxsize:
        arguments.lives = len(STORIES)
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    start = time.monotonic()
    print(f"seed {seed}, kernel {arguments.kernel}", flush=True)
    kept = Recording.load(arguments.tape) if arguments.tape is not None and arguments.tape.exists() else None
    found: Counter[str] = Counter()
    with Campaign(seed, arguments.folder, kernel=arguments.kernel, seconds=86400) as campaign:
        try:
            for _, story in zip(range(arguments.lives), _stories(arguments.story), strict=False):
                left = math.inf if arguments.hours is None else 3600 * arguments.hours - (time.monotonic() - start)
                if left < 0:
                    break
                life = kept or campaign.live(story, deeds=arguments.deeds)
                if arguments.tape is not None and kept is None:
                    life.save(arguments.tape)
                print(f"{life.story}: {len(life.tape)} events, {time.monotonic() - start:.0f} s", flush=True)
                campaign.cut(life, arguments.cuts, left)
                print(f"{time.monotonic() - start:.0f} s\n{campaign.figures}", flush=True)
                found += desk.cut(life, arguments.desk, random.Random(seed))
                print(f"{found['cuts']} at the desk: {dict(found.most_common())}", flush=True)
        except (Divergence, LabError) as err:
            print(f"{campaign.figures}\n{err}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
