"""Options of the test run; and under CI=true nothing is skipped in silence: what would be, fails."""

from __future__ import annotations

import os
from collections.abc import Generator

import hypothesis
import pytest

from krononat import compliance, proving

# Speed is for benches: a test must not fail because the machine is busy, or the compiler is at work.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rewrite`, `--fuzz` and `--worlds`."""
    parser.addoption("--rewrite", action="store_true", help="write what scenarios yield into their files; read the diff")
    parser.addoption("--fuzz", type=int, default=0, help="frames of the fuzz test (default 30,000; pure Python: 3,000)")
    parser.addoption(
        "--worlds", type=int, default=0, help="search for interleavings in larger cases, too, so many worlds of each"
    )


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is named after a requirement has the mark `rfc`."""
    for item in items:
        if compliance.rows_named(proving.name_of(item.nodeid))[0]:
            item.add_marker("rfc")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn skips into failures where CI=true: a test that cannot run there is a hole, not a pass."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} would be skipped, and CI=true forbids that: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _environment_is_each_tests_own() -> Generator[None]:
    """Commands run in this process change it (`trace` switches the compiler off); that must not reach the next test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
