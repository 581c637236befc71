# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM or emulation: /dev/kvm may open and yet hang a stock kernel, so only a trial boot proves it."""

import os
import platform
from collections.abc import Callable
from pathlib import Path

from tests.harness.cached import cached

TRIAL_SECONDS = 30
_DEVICE = "/dev/kvm"


def choose(cache: Path, trial: Callable[[], bool]) -> str:
    """``kvm`` if ``trial``, a boot with it, succeeds on this host kernel and CPU, else ``tcg``; asked only once."""
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    key = f"{platform.release()} {_processor()}".encode()
    return cached(cache, "accel", key, lambda: b"kvm" if trial() else b"tcg").read_text()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line
    return ""
