# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread that there is no memory for is refused; it is not waited for."""

import subprocess
import sys
import threading

from dmsoft.threads import launch

_FULL = """
import resource, threading
from pathlib import Path
from dmsoft.threads import launch

kept = threading.Thread(target=lambda: None)  # its stack is kept for the next one, which lacks all else
launch(kept)
kept.join()
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped, mapped))
try:
    launch(threading.Thread(target=lambda: None))
except RuntimeError as err:
    print(err)
"""


def test_a_thread_without_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _FULL], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "can't start new thread\n", done


def test_a_thread_runs() -> None:
    ran = threading.Event()
    launch(threading.Thread(target=ran.set))
    assert ran.wait(10)
