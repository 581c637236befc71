# SPDX-License-Identifier: GPL-2.0-or-later
"""What the doctor makes of what it sees; what it measures is tested on real kernels."""

from collections.abc import Iterator

import pytest

from dmsoft import cli
from dmsoft.doctor import bed, behind, checkup, host
from dmsoft.doctor.behind import Measured
from dmsoft.doctor.finding import Checkup, Finding, Health
from dmsoft.errors import DeviceError
from dmsoft.report import doctor

RULES = ["55-dm.rules", "60-persistent-storage-dm.rules", "95-dm-notify.rules"]


@pytest.mark.parametrize(
    ("runs", "rules", "health"),
    [
        (True, [*RULES, "56-dm-dmsoft.rules"], "ok"),
        (True, RULES, "warning"),
        (True, [], "fail"),
        (False, RULES, "warning"),
    ],
)
def test_udev(runs: bool, rules: list[str], health: Health) -> None:
    assert host.udev(runs, rules).health == health


@pytest.mark.parametrize(
    ("version", "health"),
    [
        ("1.02.185 (2022-05-18)", "ok"),
        ("1.02.205 (2025-01-01)", "ok"),
        ("1.03.01 (2027-01-01)", "ok"),
        ("1.02.175 (2021-01-08)", "warning"),
        ("", "warning"),
    ],
)
def test_the_library(version: str, health: Health) -> None:
    assert host.library(version).health == health


def test_a_program_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.shutil, "which", lambda name, path: None if name == "wipefs" else name)
    found = host.programs()
    assert found.health == "fail" and "wipefs" in found.found and "util-linux" in found.meaning


@pytest.mark.parametrize(
    ("first", "second", "scattered", "sequential"),
    [
        (Measured(0, True, True, True, True), Measured(1, True, True, True, True), "ok", "ok"),
        (Measured(0, True, False, True, True), Measured(1, False, False, True, True), "ok", "warning"),
        (Measured(0, False, False, True, True), Measured(1, True, True, True, True), "warning", "warning"),
    ],
)
def test_what_counts_is_the_order_that_dmsoft_uses(
    first: Measured, second: Measured, scattered: Health, sequential: Health
) -> None:
    assert behind._scattered(first, second).health == scattered
    assert behind._sequential(first, second).health == sequential


def test_what_cannot_be_measured_is_a_failure_and_what_was_measured_stays() -> None:
    def findings() -> Iterator[Finding]:
        yield Finding("one", "ok", "it is", "Good.")
        raise DeviceError("The disk hummed.")

    one, two = checkup._safely("two", findings())
    assert (one.check, two.check, two.health) == ("one", "two", "fail")
    assert two.found == "it could not be measured: The disk hummed"


def test_the_loop_configuration_has_the_kernels_layout() -> None:
    """struct loop_config of linux/loop.h: lo_flags at byte 60, lo_file_name at 64, 304 bytes in all."""
    packed = bed._LOOP_CONFIG.pack(7, 512, 4, b"name")
    assert len(packed) == 304
    assert packed[:8] == (7).to_bytes(4, "little") + (512).to_bytes(4, "little")
    assert packed[60:64] == (4).to_bytes(4, "little") and packed[64:68] == b"name"


FOUND = Checkup(
    "6.1.0",
    (
        Finding("behind-sequential", "warning", "the secondary as first leg: waits; as second: waits", "word " * 30),
        Finding("era-tracking", "ok", "each write is listed", "Good."),
    ),
)


def test_the_table_reads_at_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    doctor.show(FOUND)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0] == "Linux 6.1.0"
    assert " ".join(" ".join(lines).split()).count("word") == 30
    assert lines[-1] == "Mirrors work here; mind the warnings."


@pytest.mark.parametrize(("health", "code"), [("ok", 0), ("warning", 0), ("fail", 3)])
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_the_exit_status(
    health: Health, code: int, option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Checkup("6.1.0", (Finding("one", health, "it is", "So."),))
    monkeypatch.setattr(checkup, "checkup", lambda _: found)
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
    assert cli.run(["doctor", *option]) == code
    out = capsys.readouterr().out
    assert ('"health":"' + health in out) if option else ("it is" in out.lower())
