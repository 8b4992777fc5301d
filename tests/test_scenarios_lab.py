"""The scenario files once more, played to a real core over AF_XDP whose clock is moved: see `wired`.

What cannot be played so is named here with its reason, where its name is a requirement's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import scenario, wired, wired_config
from tests.wired import Stage
from tests.wired_config import CLUSTER, SECONDS

FILES = wired.in_order(scenario.SCENARIOS.glob("*.nat"))

UNWIRED = {
    "rfc4787-req14-fragments-to-the-authority": CLUSTER,
    "rfc5508-req5-error-from-a-router-to-the-authority": CLUSTER,
    "rfc6888-req8-hold-down-to-the-millisecond": SECONDS,
}
STEPS_LEFT_OUT = {"frames-that-are-wrong": ["frame cut 13"]}  # of an Ethernet header's 14 bytes


def test_every_requirement_is_played_over_af_xdp_or_named() -> None:
    rest = {path: scenario.parse(path) for path in scenario.SCENARIOS.glob("*.nat") if path not in FILES}
    reasons = {path.stem: wired_config.why_not(told) for path, told in rest.items()}
    assert {stem: reason for stem, reason in reasons.items() if stem.startswith("rfc")} == UNWIRED
    assert len(FILES) > 5 * len(reasons)


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """For those that are to be played."""
    chosen = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    paths = [path for item in chosen if item.path == request.path and isinstance(path := item.callspec.params["path"], Path)]
    with wired.stage("krnw", paths) as made:
        yield made


@pytest.mark.lab
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path, stage: Stage) -> None:
    played = stage.play(path)
    words = STEPS_LEFT_OUT.get(path.stem, [])
    assert len(played.left_out) == len(words) and all(word in told for word, told in zip(words, played.left_out, strict=True))
