# SPDX-License-Identifier: GPL-2.0-or-later
"""The units and udev's rules that start them fit each other, and hold up nothing."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def units() -> dict[str, str]:
    return {path.name: path.read_text() for path in (ROOT / "systemd").glob("*.service")}


def test_the_units_and_rules_fit_each_other(tmp_path: Path) -> None:
    subprocess.run([ROOT / "dev", "install"], env={**os.environ, "DESTDIR": str(tmp_path)}, check=True)
    installed = {path.name for path in (tmp_path / "usr/lib/systemd/system").glob("*.service")}
    limited = {path.parent.name for path in (tmp_path / "usr/lib/systemd/system").glob("*/10-limits.conf")}
    assert limited == {"dmsoft-.service.d", "dmsoftd.service.d"}
    assert installed == units().keys()
    rules = (tmp_path / "usr/lib/udev/rules.d/62-dmsoft-member.rules").read_text()
    started = set(re.findall(r"start (dmsoft-[a-z]+@)%M:%m\.service", rules))
    assert {f"{name}.service" for name in started} == {name for name in installed if "@" in name}
    assert "--no-block" in rules and 'TEST!="/run/systemd/system"' in rules
    for text in units().values():
        named = set(re.findall(r"dmsoft[a-z@-]*\.service", text))
        assert named <= installed


def test_nothing_at_boot_waits_for_a_secondary() -> None:
    """Units that may copy for hours, or wait for a disk, are ordered before nothing."""
    for name in ("dmsoft-attach@.service", "dmsoftd.service"):
        assert not re.findall(r"^(?:Before|RequiredBy)=", units()[name], flags=re.M)
        assert "Type=oneshot" not in units()[name]


def test_the_limits_leave_what_is_needed() -> None:
    """udev's cookies, its events, the limits of queues in sysfs, disks that come later, memory that is locked."""
    text = (ROOT / "systemd/10-limits.conf").read_text()
    set_here = set(re.findall(r"^(\w+)=", text, flags=re.M))
    broken = {"PrivateIPC", "PrivateNetwork", "PrivateDevices", "ProtectKernelTunables", "ProtectClock", "DeviceAllow"}
    assert not set_here & (broken | {"DevicePolicy", "PrivateMounts", "PrivateUsers", "MemoryDenyWriteExecute"})
    assert "LimitMEMLOCK=infinity" in text
