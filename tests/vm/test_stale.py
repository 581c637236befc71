# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft stale`` on a mirror that runs: what other programs copy by it is what was missing."""

import subprocess
from pathlib import Path

from dmsoft.units import MIB
from tests.vm.rig import NAME, Rig, dmsoft, ok, read, refused, sh, write

pytest_plugins = ("tests.vm.rig",)

SIZE, BLOCKS = 32 * MIB, 23


def test_formats_and_since(rig: Rig, tmp_path: Path) -> None:
    rig.create(primary=rig.cut("p0", SIZE), one=rig.cut("s0", SIZE))
    rig.write(3, 4)
    rig.resync()
    image = tmp_path / "image"
    image.write_bytes(read(rig.top, 0, BLOCKS * MIB))
    era = rig.status()["era"]["current"]
    rig.write(5)
    sh("dmsetup", "message", NAME, "0", "checkpoint")
    rig.write(6, 22)
    rig.write(1, length=4096)

    assert rig.stale("one") == {1, 5, 6, 22}
    sh("dmsetup", "suspend", NAME)
    try:
        assert rig.stale("one") == {1, 5, 6, 22}
    finally:
        sh("dmsetup", "resume", NAME)
    later = ok("stale", NAME, "one", "--since", str(era + 1), "--json").json
    assert (later["asked"], later["since_era"], later["extents"]) == (True, era + 1, [[1, 1], [6, 1], [22, 1]])
    assert refused(7, "stale", NAME, "one", "--since", str(era + 9))
    assert dmsoft("stale", NAME, "one", "--format", "dd", "--json").code == 2

    for line in ok("stale", NAME, "one", "--format", "dd").out.splitlines():
        subprocess.run(["dd", f"if={rig.top}", f"of={image}", "conv=notrunc", *line.split()], check=True)
    assert image.read_bytes() == read(rig.top, 0, BLOCKS * MIB)
    assert ok("stale", NAME, "one", "--format", "ranges").out == "".join(
        f"{first * MIB} {count * MIB}\n" for first, count in ((1, 1), (5, 2), (22, 1))
    )
    assert ok("stale", NAME, "one", "--format", "mapfile").out.count("+\n") == 3
    shown = ok("status", NAME).out.splitlines()
    assert "  one  [ #   ##               #]" in shown

    # Of doubtful tracking no era means anything: all is listed, whatever is asked.
    ok("stop", NAME)
    region = rig.primary_header().regions["metadata"]
    write(rig.primary, region.offset, bytes(4096))
    ok("start", NAME)
    for since in ("0", "1", str(era)):
        every = ok("stale", NAME, "one", "--since", since, "--json").json
        assert (every["asked"], every["since_era"], every["extents"]) == (False, None, [[0, BLOCKS]])
