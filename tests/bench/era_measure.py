# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a program and prints what it took as JSON: seconds, processor seconds, peak memory in bytes, exit status.

A script of its own, on the standard library alone: Linux counts the memory of the process that starts another into
the other's peak, so the one that starts must be small.
"""

import json
import os
import sys
import time

if __name__ == "__main__":
    begin = time.perf_counter()
    child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - begin
    figures = {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "status": os.waitstatus_to_exitcode(status),
    }
    print(json.dumps(figures))
