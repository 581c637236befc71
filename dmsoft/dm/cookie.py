# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for udev: a cookie is a semaphore that counts the events udev has not yet worked off."""

import logging
import time
from dataclasses import dataclass
from typing import Final, Self

from dmsoft.dm import libdevmapper
from dmsoft.dm.failures import CookieTimeoutError

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.02


@dataclass(frozen=True)
class Cookie:
    """``value`` 0 (udev does not run) is always ready. Every other cookie must be waited for, or it stays behind."""

    value: int

    @classmethod
    def new(cls) -> Self:
        """A cookie before it is set on anything; ready at once if asked then."""
        return cls(libdevmapper.create_cookie())

    def ready(self) -> bool:
        """Whether udev is done; True only once, the semaphore is gone then."""
        return self.value == 0 or libdevmapper.cookie_ready(self.value)

    def wait(self, timeout: float = 30) -> None:
        """Wait until udev is done, for at most ``timeout`` seconds: then the semaphore is removed all the same.

        Raises `CookieTimeoutError`: the device itself is as asked, its links under /dev may not be there yet.
        """
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while not self.ready():
            if time.monotonic() > deadline:
                self.drop()
                raise CookieTimeoutError(
                    f"udev did not answer within {timeout:.0f} seconds.",
                    hint="See `udevadm settle` and the journal of systemd-udevd.",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def drop(self) -> None:
        """Remove the semaphore without waiting; an answer of udev that comes later finds nothing and is ignored."""
        while not self.ready():
            libdevmapper.complete_cookie(self.value)
