# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m tests.demo``, which ``./dev demo`` runs as root in a VM. Exit status 0: every comparison held."""

import os
import sys
import time
from pathlib import Path

from rich.table import Table

from dmsoft.errors import DmsoftError
from dmsoft.units import format_size
from tests.demo import files
from tests.demo.disks import SERIALS, Cables
from tests.demo.stage import DemoError, Stage
from tests.demo.story import COPY, MOUNT, Choice, Figures, periodic, write_behind
from tests.harness.guestkit import Inventory, KernelLog, clean

# A guest of KVM has its clock to choose.
_CLOCKS = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource")


def main() -> int:
    # It wipes disks: never on a machine that was not made for it.
    if Path("/proc/sys/kernel/hostname").read_text().strip() != "dmsoft-vm":
        print("The demo runs inside a VM only: ./dev demo", file=sys.stderr)
        return 2
    stage, log, before = Stage(), KernelLog(), Inventory.now()
    try:
        figures = _tell(stage)
        faults = log.faults()
        if faults:
            raise DemoError(f"the kernel complained: {'; '.join(faults[:3])}")
        if Inventory.now() != before:
            raise DemoError("something was left behind: a device or a mount")
        _sum_up(stage, figures)
        return 0
    except (DemoError, DmsoftError) as err:
        stage.blank()
        stage.say(f"THE DEMO FAILED: {err}")
        return 1
    finally:
        log.close()
        clean(before)
        for folder in (COPY, MOUNT, MOUNT.parent):
            if folder.is_dir():
                folder.rmdir()


def _tell(stage: Stage) -> list[Figures]:
    disks = Cables()
    sizes = ", ".join(f"{serial} {format_size(disks.size(serial))}" for serial in SERIALS)
    stage.say(f"dmsoft on Linux {os.uname().release}, in a throw-away VM with the disks {sizes}.")
    if "kvm" not in _CLOCKS.read_text():
        stage.say("There is no KVM here, so the VM's processor is emulated: every command takes its time to start.")
    start = time.monotonic()
    paths = files.choose()
    hashes = files.hashed(paths)
    size = format_size(sum(path.stat().st_size for path in hashes))
    stage.say(
        f"{len(hashes)} files of this machine's /usr ({size}) are hashed, to know them again: "
        f"{time.monotonic() - start:.0f} s."
    )
    stage.act("Periodic mode: secondaries are caught up from time to time")
    first = periodic(stage, disks, Choice.of(paths, hashes))
    stage.act("Write-behind mode: the secondary follows through dm-writecache")
    return [first, write_behind(stage, disks, Choice.of(paths[::3], hashes))]


def _sum_up(stage: Stage, figures: list[Figures]) -> None:
    stage.act("What the return of a disk cost")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("mode", "stale", "share of disk", "written to it", "factor", "seconds"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for each in figures:
        table.add_row(
            each.mode, format_size(each.stale_bytes), f"{100 * each.stale_bytes / each.disk_bytes:.1f} %",
            format_size(each.written_bytes), f"{each.ratio:.3f}", f"{each.seconds:.1f}",
        )  # fmt: skip
    stage.table(table)
    stage.blank()
    stage.good(f"Every comparison held. {stage.seconds:.0f} s in all.")


if __name__ == "__main__":
    sys.exit(main())
