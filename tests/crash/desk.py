# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges power cuts without a kernel, by the thousand: what dmsoft's own code reads off the disks as a cut left them.

Of each secondary: a committed journal is applied, the decision made that a start would come to, the stale set read from
the era metadata; then no block may differ outside of it, and one that says that it is whole must be an image that the
writer made. What needs a kernel, the start and the resync themselves, is judged in the lab.

    python -m tests.crash.desk TAPE... [--cuts N] [--seed N]
"""

import argparse
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dmsoft.era.blocks import BlockSet
from dmsoft.era.reader import EraReader
from dmsoft.errors import DmsoftError
from dmsoft.member import header, regions
from dmsoft.member.disk import FdDisk
from dmsoft.member.payload import Primary, Secondary
from dmsoft.mirror import tracker
from dmsoft.mirror.decision import decide
from dmsoft.mirror.locate import doubted
from dmsoft.resync import recovery
from dmsoft.units import SECTOR
from tests.crash.judge import MAKING, Case, Divergence, check, differing
from tests.crash.medium import SURVIVALS, Image
from tests.crash.recording import Places, Recording
from tests.crash.writer import PAGE


class MemoryDisk(FdDisk):
    """A file without a name, as a `dmsoft.resync.journal.OpenDisk`; closed with its `ExitStack`."""

    def __init__(self, image: bytes | bytearray, stack: contextlib.ExitStack) -> None:
        self.fd = os.memfd_create("disk")
        stack.callback(os.close, self.fd)
        os.pwrite(self.fd, image, 0)
        super().__init__(self.fd)


def judge(case: Case, images: dict[str, bytearray]) -> Counter[str]:
    """What the secondaries need, counted by kind. Raises `Divergence`."""
    found: Counter[str] = Counter()
    key = next((bytes.fromhex(text) for path, text in case.etc.items() if "/keys/" in path), b"")
    scan = header.read(Image("p", images["p"]), key=key)
    if scan.header is None:
        check(case.phase in MAKING, "the primary has no header")
        return Counter({"no mirror": 1})
    primary = scan.header.payload
    assert isinstance(primary, Primary)
    mine = bytes(images["p"][primary.regions["data"].offset : primary.regions["data"].end])
    if case.history is not None:
        check(not (lost := case.history.lacks(mine, case.synced)), f"the primary lost pages {lost[:5]}")
    with contextlib.ExitStack() as stack:
        reader, doubt = _era(primary, images, stack)
        doubt = scan.doubt or doubt
        if doubt is not None:
            found[f"doubt: {doubt}"] += 1
            primary = tracker.revoked(primary, doubt, tracked=True)

        def written_since(era: int) -> BlockSet:
            assert reader is not None, "nothing is owed since an era that nobody can ask about"
            return reader.written_since(era).blocks

        for record in primary.members:
            disk = next((name for name in "ab" if _is(images[name], record.member_uuid)), None)
            if disk is None:
                check(case.phase in MAKING, f"{record.label} has no header")
                continue
            secondary, its = _opened(images[disk], key, stack)
            era = None if reader is None else reader.superblock().current_era + 1
            decision = decide(primary, record, secondary, era)
            found[decision.kind] += 1
            blocks = regions.nr_blocks(len(mine), primary.block_bytes)
            owed = decision.owed(written_since, blocks)
            listed = {b for first, count in owed.extents().tolist() for b in range(first, first + count)}
            missed = sorted(differing(mine, its, primary.block_bytes) - listed)
            check(not missed, f"{record.label} differs at {missed[:20]}, which its stale set lacks")
            if secondary.sync.consistent and secondary.sync.doubt is None and case.history is not None:
                until = case.history.last(its)
                wrong = differing(case.history.image(until), its, PAGE)
                check(not wrong, f"{record.label} says it is whole and is not as of {until}: pages {sorted(wrong)[:9]}")
                found["whole"] += 1
    return found


def _is(image: bytearray, member_uuid: str) -> bool:
    found = header.read(Image("", image)).header
    return found is not None and found.payload.member_uuid == member_uuid


def _opened(image: bytearray, key: bytes, stack: contextlib.ExitStack) -> tuple[Secondary, bytes]:
    """The header and the data as they are when a journal that counts was applied."""
    disk = MemoryDisk(image, stack)
    scan = header.read(disk, key=key)
    assert scan.header is not None
    payload = recovery.recover(disk, scan.header, key).payload
    assert isinstance(payload, Secondary)
    data = payload.regions["data"]
    return doubted(payload, scan.doubt), os.pread(disk.fd, data.length, data.offset)


def _era(
    primary: Primary, images: dict[str, bytearray], stack: contextlib.ExitStack
) -> tuple[EraReader | None, str | None]:
    """A reader of the era metadata, and why a start would not believe them."""
    on, region = ("p", primary.regions.get("metadata")) if primary.metadata is None else ("c", None)
    if region is None:
        found = header.read(Image("c", images["c"])).header
        if found is None:
            return None, "its metadata device has no header"
        region = found.payload.regions["metadata"]
    disk = MemoryDisk(images[on], stack)
    zero, digest = False, ""
    try:
        reader = stack.enter_context(
            EraReader(Path(f"/proc/self/fd/{disk.fd}"), offset_bytes=region.offset, length_bytes=region.length)
        )
        zero, digest = reader.is_zero(), reader.block_digest()
        look = tracker.Found(zero, digest, None)
        if not zero:
            superblock = reader.superblock()
            reader.check_space_map()
            if superblock.nr_blocks:
                reader.written_since(0)
            look = tracker.Found(zero, digest, superblock)
    except DmsoftError as err:
        look = tracker.Found(zero, digest, None, err.message.rstrip("."))
    blocks = regions.nr_blocks(primary.regions["data"].length, primary.block_bytes)
    doubt = tracker.doubt(primary.tracker, look, block_sectors=primary.block_bytes // SECTOR, nr_blocks=blocks)
    return (None if look.superblock is None else reader), doubt


def cut(life: Recording, count: int, chance: random.Random) -> Counter[str]:
    """Cut that life at so many places, each with every survival of the caches. Raises `Divergence`."""
    return cut_at(life, Places.of(life.tape).draw(count, chance), chance)


def cut_at(life: Recording, places: Sequence[int], chance: random.Random) -> Counter[str]:
    """The same at these places, which are in order."""
    found: Counter[str] = Counter()
    for place, case, replay in life.cases(places):
        for survival in SURVIVALS:
            try:
                found += judge(case, replay.after_cut(survival, chance))
            except Divergence as err:
                raise Divergence(f"{life.story}, cut at {place} in {case.place}, caches {survival}: {err}") from err
            found["cuts"] += 1
            found[f"in {case.place}"] += 1
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tapes", type=Path, nargs="+", metavar="TAPE", help="kept by ./dev cuts --tape")
    parser.add_argument("--cuts", type=int, default=100, help="places of each, cut in six ways (default %(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args(argv)
    for path in arguments.tapes:
        start = time.monotonic()
        found = cut(Recording.load(path), arguments.cuts, random.Random(arguments.seed))
        print(
            f"{path}, seed {arguments.seed}, {time.monotonic() - start:.0f} s: {dict(found.most_common())}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
