"""Every scenario file is a test. `pytest tests/test_scenarios.py --rewrite` writes what comes out; read the diff."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import scenario

FILES = sorted(scenario.SCENARIOS.glob("*.nat"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    scenario.run(path, rewrite=request.config.getoption("--rewrite"))


def test_there_are_scenarios_for_everything_that_must_be() -> None:
    assert len(FILES) >= 40
