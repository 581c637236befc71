# SPDX-License-Identifier: GPL-2.0-or-later
"""One life of a mirror as its disks saw it, and the places where its power can be cut. It can be kept in a file, to be
cut elsewhere once more."""

import json
import pickle
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmsoft.member import header
from dmsoft.member.payload import Primary
from tests.crash.judge import Case, History
from tests.crash.medium import Event, Image, Replay, Tape
from tests.vm.rig import NAME

_ETC, _PHASE, _SYNCED = "etc ", "phase ", "synced "


class _Inner:
    """Follows the marks within a phase; ``name`` is what is under way there: a barrier, a step, or else the stage of
    the copy."""

    def __init__(self) -> None:
        self._stage, self._steps = "", Counter[str]()
        self._stands = False

    def hear(self, mark: str) -> None:
        words = mark.split(" ", 2)
        match words:
            case ["phase", *_] | ["killed", *_]:
                self._stage, self._stands = "", False
                self._steps.clear()
            case ["stage", name, *_]:
                self._stage = name
            case ["step", "before", name]:
                self._steps[name] += 1
            case ["step", "after", name]:
                self._steps[name] -= 1
            case ["before", "suspend", device] if device == NAME:
                self._stands = True
            case ["after", "resume", device] if device == NAME:
                self._stands = False

    @property
    def name(self) -> str:
        if self._stands:
            return "barrier"
        return next((name for name, count in self._steps.items() if count > 0), self._stage)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a tape can be cut: the phase at each event, what is under way within it, and the marks."""

    phases: list[str]
    inner: list[str]
    marks: list[int]

    @classmethod
    def of(cls, tape: Tape) -> "Places":
        phases, inner, marks, phase, within = [], [], [], "", _Inner()
        for place, event in enumerate(tape):
            if event.mark.startswith(_PHASE):
                phase = event.mark.removeprefix(_PHASE)
            if event.mark and not event.mark.startswith(_SYNCED):
                marks.append(place)
                within.hear(event.mark)
            phases.append(phase)
            inner.append(within.name)
        return cls([*phases, phase], [*inner, within.name], marks)

    def turns(self) -> list[int]:
        """The last place of each phase: what is promised changes there."""
        before = zip(self.phases, self.phases[1:], strict=False)
        return [place for place, (one, next_one) in enumerate(before) if one != next_one] + [len(self.phases) - 1]

    def draw(self, count: int, chance: random.Random) -> list[int]:
        """Half of them near a mark, a third evenly over all that is under way, the others evenly over the tape; in
        order."""
        last = len(self.phases) - 1
        by_part: dict[tuple[str, str], list[int]] = {}
        for place, part in enumerate(zip(self.phases, self.inner, strict=True)):
            by_part.setdefault(part, []).append(place)
        found = []
        for number in range(count):
            if number % 6 in (0, 2, 4):
                found.append(chance.choice(self.marks) + chance.choice([-2, -1, 0, 1, 1, 2, 3]))
            elif number % 6 in (1, 3):
                found.append(chance.choice(by_part[chance.choice(list(by_part))]))
            else:
                found.append(chance.randrange(last + 1))
        return sorted(min(max(place, 0), last) for place in found)


@dataclass(frozen=True, slots=True)
class Recording:
    """``before`` is what was on the disks, ``tape`` all that happened to them then."""

    story: str
    before: dict[str, bytes]
    tape: Tape

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        events = [(event.disk, event.offset, event.data, event.mark) for event in self.tape]
        path.write_bytes(pickle.dumps((self.story, self.before, events)))

    @classmethod
    def load(cls, path: Path) -> "Recording":
        story, before, events = pickle.loads(path.read_bytes())  # noqa: S301 - of `save`
        return cls(story, before, [Event(*each) for each in events])

    def cases(self, cuts: Sequence[int]) -> Iterator[tuple[int, Case, Replay]]:
        """For each of these places, in order: what is known there, and the disks, played up to it."""
        replay, history, keys = Replay.of(self.tape, self.before), self._history(), self._keys()
        places, synced, etc = Places.of(self.tape), 0, keys
        for cut in cuts:
            for event in self.tape[replay.at : cut]:
                if event.mark.startswith(_SYNCED):
                    synced = int(event.mark.removeprefix(_SYNCED))
                elif event.mark.startswith(_ETC):
                    etc = json.loads(event.mark.removeprefix(_ETC))
            replay.to(cut)
            yield cut, Case(places.phases[cut], etc, self.story, history, synced, places.inner[cut]), replay

    def _made(self) -> int | None:
        """Where the mirror was complete."""
        return next((place for place, event in enumerate(self.tape) if event.mark.startswith(_ETC)), None)

    def _keys(self) -> dict[str, str]:
        """The key was on the disk of the host before the first header was on one of ours; nothing else was then."""
        made = self._made()
        files = {} if made is None else json.loads(self.tape[made].mark.removeprefix(_ETC))
        return {path: text for path, text in files.items() if "/keys/" in path}

    def _history(self) -> History | None:
        """The data region never moves, and only the writer writes to it."""
        made = self._made()
        if made is None:
            return None
        replay = Replay.of(self.tape, self.before)
        replay.to(made)
        image = replay.after_cut("kept", random.Random(0))["p"]
        found = header.read(Image("p", image)).header
        assert found is not None and isinstance(found.payload, Primary)
        region = found.payload.regions["data"]
        return History.of(self.tape[made:], bytes(image), region.offset, region.length)
