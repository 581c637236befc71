# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges one power cut: the disks as it left them are started and resynced by a dmsoft that knows nothing of it.

before the resync   no block of a secondary differs from the primary outside of its stale set
                    a secondary whose header says that it is one point in time is one that the writer made
after it            no byte differs, and none of the primary has changed since the cut
of the primary      what an fsync had promised is there
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsoft.member import header
from dmsoft.member.payload import AnyPayload, Primary, Secondary
from tests.crash.lab import Lab
from tests.crash.life import ADD, CREATE
from tests.crash.medium import SECTOR, Image, Tape
from tests.crash.writer import PAGE
from tests.vm.rig import NAME

# Only in these may a cut leave no mirror that can be started.
MAKING = ("", "create", "destroy", "destroyed")
Words = npt.NDArray[np.uint64]


class Divergence(AssertionError):
    """A law was broken."""


@dataclass(slots=True)
class History:
    """What the writer wrote, in its order, and what was there before it."""

    data: bytes
    numbers: Words
    pages: Words

    @classmethod
    def of(cls, tape: Tape, before: bytes, offset: int, length: int) -> "History":
        """From the writes to the primary's data region on the tape."""
        found: list[Words] = []
        for event in tape:
            if event.disk == "p" and event.data and offset <= event.offset < offset + length:
                rows = np.frombuffer(event.data, np.uint64).reshape(-1, PAGE // 8)
                page = (event.offset - offset) // PAGE + np.arange(len(rows), dtype=np.uint64)
                found.append(rows[(rows[:, 1] == page) & (rows[:, 0] > 0), :2])
        rows = np.concatenate([np.empty((0, 2), np.uint64), *found])
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        return cls(before[offset : offset + length], rows[:, 0], rows[:, 1])

    def image(self, until: int) -> bytes:
        """The region when write ``until`` was the last."""
        rows = np.frombuffer(self.data, np.uint64).reshape(-1, PAGE // 16, 2).copy()
        latest = self._latest(len(rows), until)
        written = np.flatnonzero(latest)
        rows[written] = np.stack([latest[written], written.astype(np.uint64)], axis=1)[:, np.newaxis, :]
        return rows.tobytes()

    def _latest(self, count: int, until: int) -> Words:
        """The number of the last write to each page, none after ``until``; 0 where there was none."""
        latest = np.zeros(count, np.uint64)
        known = int(np.searchsorted(self.numbers, until, "right"))
        latest[self.pages[:known].astype(np.int64)] = self.numbers[:known]  # of several to one page the last stays
        return latest

    def last(self, image: bytes) -> int:
        """The number of the newest write in an image of the region, 0 if there is none."""
        rows = np.frombuffer(image, np.uint64).reshape(-1, PAGE // 8)
        known = np.isin(rows[:, 0], self.numbers) & (rows[:, 1] == np.arange(len(rows), dtype=np.uint64))
        return int(rows[known, 0].max(initial=0))

    def lacks(self, image: bytes, until: int) -> list[int]:
        """The pages of an image of which a sector has neither what write ``until`` left there nor anything newer."""
        cells = np.frombuffer(image, np.uint64).reshape(-1, PAGE // SECTOR, SECTOR // 16, 2)
        numbers, page = cells[:, :, 0, 0], np.arange(len(cells), dtype=np.uint64)[:, np.newaxis]
        known = (
            (cells == cells[:, :, :1]).all(axis=(2, 3)) & (cells[:, :, 0, 1] == page) & np.isin(numbers, self.numbers)
        )
        oldest = np.where(known, numbers, 0).min(axis=1)
        return [int(page) for page in np.flatnonzero(oldest < self._latest(len(cells), until))]


@dataclass(slots=True)
class Figures:
    """What became of the cuts: how many in each phase and each part of a copy, and what each secondary needed then."""

    cuts: Counter[str] = field(default_factory=Counter)
    inner: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{sum(self.cuts.values())} power cuts"]
        counters = {"phases": self.cuts, "within": self.inner, "resyncs": self.kinds, "compared because": self.doubts}
        for name, counter in counters.items():
            lines.append(f"  {name}: {', '.join(f'{key} {count}' for key, count in counter.most_common())}")
        lines.append("  seconds: " + ", ".join(f"{key} {value:.1f}" for key, value in self.seconds.items()))
        return "\n".join(lines)


@dataclass(slots=True)
class Case:
    """One cut: in what phase and what part of it, and what is known of the files and the writes up to it."""

    phase: str
    etc: dict[str, str]
    story: str
    history: History | None
    synced: int = 0
    inner: str = ""

    @property
    def place(self) -> str:
        return f"{self.phase or 'nothing'}{f' ({self.inner})' if self.inner else ''}"


class Judge:
    def __init__(self, lab: Lab, figures: Figures) -> None:
        self._lab, self.figures = lab, figures

    def judge(self, case: Case, images: dict[str, bytearray]) -> bool:
        """Whether the mirror was there; raises `Divergence`, and `LabError` if the guest could not go on."""
        lab = self._lab
        lab.load(images)
        lab.do("reset", etc=case.etc, disks=list(images))
        self.figures.cuts[case.phase or "before create"] += 1
        if case.inner:
            self.figures.inner[case.inner] += 1
        before = self._primary_data()
        if before is not None and case.history is not None:
            check(not (lost := case.history.lacks(before, case.synced)), f"the primary lost pages {lost[:5]}")
        lab.mark("phase start")
        (started,) = self._verbs(["start", NAME, "--json"])
        whole = not started["code"] and self._is_whole()
        if whole:
            self._before_resync(case, self._primary())
            lab.mark("phase resync")
            (resynced,) = self._verbs(["resync", NAME, "--json"])
            check(resynced["code"] == 0, f"resync: {resynced}")
            self._count(resynced)
            self._after_resync(before)
        else:
            check(case.phase in MAKING, f"start, or its members: {started}")
            self._made_anew(case)
        lab.mark("phase stop")
        (stopped,) = self._verbs(["stop", NAME])
        check(stopped["code"] == 0, f"stop: {stopped}")
        self._clean()
        return whole

    def _is_whole(self) -> bool:
        """Whether all that the primary knows of have their headers: no destroy has begun."""
        return all(self._secondary(record.member_uuid) is not None for record in self._primary().members)

    def _made_anew(self, case: Case) -> None:
        """What a cut within create or destroy leaves is in nobody's way."""
        lab = self._lab
        lab.mark("phase create")
        (made,) = self._verbs(CREATE[case.story])
        if made["code"]:
            (gone, made) = self._verbs(["destroy", NAME, "--yes"], [*CREATE[case.story], "--force"])
            check(made["code"] == 0, f"create: {gone} {made}")
        added, resynced = self._verbs([*ADD, "--force"], ["resync", NAME, "--json"])
        check(added["code"] == 0 and resynced["code"] == 0, f"add and resync: {added} {resynced}")
        self._after_resync(None)

    def _verbs(self, *words: list[str]) -> list[dict[str, Any]]:
        found = self._lab.verbs(*words)
        for said, ran in zip(words, found, strict=True):
            self.figures.seconds[said[0]] += ran["seconds"]
        return found

    def _clean(self) -> None:
        found = self._lab.do("clean")
        check(not found["left"] and not found["faults"], f"the guest afterwards: {found}")

    def _before_resync(self, case: Case, primary: Primary) -> None:
        stale = self._verbs(*[["stale", NAME, record.label, "--json"] for record in primary.members])
        mine = self._data("p", primary)
        for record, ran in zip(primary.members, stale, strict=True):
            check(ran["code"] == 0, f"stale {record.label}: {ran}")
            found = self._secondary(record.member_uuid)
            if found is None:
                continue
            disk, secondary = found
            its = self._data(disk, secondary)
            listed = {
                block
                for first, count in json.loads(ran["out"].splitlines()[-1])["extents"]
                for block in range(first, first + count)
            }
            missed = sorted(differing(mine, its, primary.block_bytes) - listed)
            check(not missed, f"{record.label} differs at {missed[:20]}, which its stale set lacks")
            # What was copied since an earlier cut is what that left, which is no image in the writer's order.
            whole = secondary.sync.consistent and secondary.sync.doubt is None and its != mine
            if whole and case.history is not None:
                until = case.history.last(its)
                wrong = differing(case.history.image(until), its, PAGE)
                check(not wrong, f"{record.label} says it is whole and is not as of {until}: pages {sorted(wrong)[:9]}")

    def _after_resync(self, before: bytes | None) -> None:
        primary = self._primary()
        mine = self._data("p", primary)
        if before is not None:
            check(mine == before, "the primary's data were changed")
        for record in primary.members:
            found = self._secondary(record.member_uuid)
            check(found is not None, f"{record.label} has no header any more")
            assert found is not None
            wrong = differing(mine, self._data(found[0], found[1]), primary.block_bytes)
            check(not wrong, f"{record.label} differs after the resync at {sorted(wrong)[:20]}")

    def _count(self, resynced: dict[str, Any]) -> None:
        for part in json.loads(resynced["out"].splitlines()[-1])["secondaries"]:
            self.figures.kinds[part["kind"]] += 1
            if part["kind"] == "compare":
                self.figures.doubts[part["reason"]] += 1

    def _primary(self) -> Primary:
        payload = self._payload("p")
        check(isinstance(payload, Primary), "the primary has no header any more")
        assert isinstance(payload, Primary)
        return payload

    def _primary_data(self) -> bytes | None:
        payload = self._payload("p")
        return self._data("p", payload) if isinstance(payload, Primary) else None

    def _secondary(self, member_uuid: str) -> tuple[str, Secondary] | None:
        for disk in ("a", "b"):
            payload = self._payload(disk)
            if isinstance(payload, Secondary) and payload.member_uuid == member_uuid:
                return disk, payload
        return None

    def _payload(self, disk: str) -> AnyPayload | None:
        found = header.read(Image(disk, self._lab.disks[disk].image)).header
        return None if found is None else found.payload

    def _data(self, disk: str, payload: AnyPayload) -> bytes:
        region = payload.regions["data"]
        return bytes(self._lab.disks[disk].image[region.offset : region.end])


def differing(ours: bytes, theirs: bytes, unit: int) -> set[int]:
    one, two = (np.frombuffer(each, np.uint8) for each in (ours, theirs))
    assert len(one) == len(two)
    places = np.flatnonzero(one != two) if ours != theirs else np.empty(0, np.int64)
    return set((places // unit).tolist())


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Divergence(what)
