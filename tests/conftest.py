# SPDX-License-Identifier: GPL-2.0-or-later
"""For all tests: markers, one seed for everything random, no silent skip in CI, and totals for ``./dev test``."""

import json
import os
import random
from collections.abc import Generator

import pytest

TOTALS = "dmsoft-totals "
_SEED = int(os.environ.get("DMSOFT_TEST_SEED") or random.randrange(1 << 32))


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "smoke: also run on the other kernels",
        "core: also run on the other kernels by ./dev test --all",
        "slow: run by ./dev test --all only",
        "long: run by ./dev soak --hours only, or where it is named",
        "kernel_log(allow): messages of the kernel, by regular expression, that do not fail this test",
    ):
        config.addinivalue_line("markers", line)
    config.pluginmanager.register(_Totals(), "dmsoft-totals")


def pytest_report_header() -> str:
    return f"seed: DMSOFT_TEST_SEED={_SEED}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number for this test alone, the same again for the same DMSOFT_TEST_SEED; said where the test fails."""
    value = random.Random(f"{_SEED} {request.node.nodeid}").randrange(1 << 32)
    request.node.add_report_section("setup", "seed", f"DMSOFT_TEST_SEED={_SEED} gives this test {value}")
    return value


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI what is missing is a failure: nobody reads the reasons of skips there."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"{item.nodeid}: skipped in CI: {reason}"
    return report


class _Totals:
    """One line of JSON at the end, which the runner adds up over all the runs it started."""

    def __init__(self) -> None:
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test is as good as the worst of its setup, call and teardown.
        order = ("passed", "skipped", "failed")
        worst = max(self._outcomes.get(report.nodeid, "passed"), report.outcome, key=order.index)
        self._outcomes[report.nodeid] = worst

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._outcomes[report.nodeid] = "failed"

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if "DMSOFT_TEST_TOTALS" in os.environ:
            outcomes = list(self._outcomes.values())
            counts = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
            terminalreporter.write_line(TOTALS + json.dumps(counts))
