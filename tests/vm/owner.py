# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that suspends the mirror under a guard and then does nothing, so that it can be killed or overtaken."""

import subprocess
import sys

from tests.vm.rig import NAME

# It says on standard output that it is there.
_PROGRAM = """
import sys, time
from dmsoft.mirror import barrier, guard as guards, locate
from dmsoft.mirror.execute import device
from dmsoft.mirror.running import Running, guard_of

def here():
    print("here", flush=True)
    time.sleep(600)

running = Running.of(locate.assemble(sys.argv[2]))
guards._SILENT_SECONDS = 2.0
with guard_of(running, coupled=True) as guard:
    if sys.argv[1] == "silent":
        guard.arm()
        device(running.names.top).suspend(lockfs=False)
        here()
    if sys.argv[1] == "lower":
        guard.arm()
        device(running.names.lower).suspend(lockfs=False)
        guard.deadline(600)
        here()
    with barrier.barrier(running.names, guard, freeze=False, deadline=float(sys.argv[3])) as inside:
        if sys.argv[1] == "both":
            device(running.names.lower).suspend(lockfs=False)
            inside.lower_suspended = True
        here()
"""


def start(what: str, deadline: float) -> subprocess.Popen[str]:
    """Returns when the ``top``, the ``lower`` or ``both`` are suspended, for as many seconds at most; ``silent``: the
    top, and nobody tells the guard for how long."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, what, NAME, str(deadline)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process
