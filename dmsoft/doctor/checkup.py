# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole of `dmsoft doctor`: every check in its turn; one that cannot be made is a finding as well."""

import os
from collections.abc import Callable, Iterable, Iterator

from dmsoft.doctor import behind, host, tracking
from dmsoft.doctor.bed import Bed
from dmsoft.doctor.finding import Checkup, Finding
from dmsoft.errors import BusyError, DmsoftError, NotRootError


def checkup(progress: Callable[[str], None] = lambda _: None) -> Checkup:
    """Look and measure; takes about half a minute. Raises `BusyError` while another doctor is at work."""
    progress("Looking at the kernel and what surrounds it.")
    found = list(_safely("host", host.findings()))
    if not (host.has_target(found, "era") and host.has_target(found, "linear")):
        return Checkup(os.uname().release, tuple(found))
    with Bed() as bed:
        if host.has_target(found, "delay"):
            progress("Measuring the tracking, on devices in memory.")
            found += _safely("era-tracking", tracking.findings(bed))
            if host.has_target(found, "raid"):
                progress("Measuring write-behind.")
                found += _safely("write-behind", behind.findings(bed))
        else:
            found += _safely("era-tracking", iter([tracking.sound(bed)]))
    return Checkup(os.uname().release, tuple(found))


def _safely(check: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings, and one more for what went wrong before their end."""
    try:
        yield from findings
    except (NotRootError, BusyError):
        raise
    except (DmsoftError, OSError) as err:
        said = err.message.rstrip(".") if isinstance(err, DmsoftError) else str(err)
        yield Finding(check, "fail", f"it could not be measured: {said}", "See the kernel log (journalctl -k).")
