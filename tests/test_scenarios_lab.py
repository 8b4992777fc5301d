"""The scenario files once more, played to a real core over AF_XDP whose clock is moved: see `wired`.

What cannot be played so is named here with its reason, where its name is a requirement's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click.testing
import pytest

from krononat.client import Trouble
from krononat.lab.commands import lab
from tests import scenario, wired, wired_config
from tests.bed import Bed
from tests.wired import Stage
from tests.wired_config import APPLY, CLUSTER, SECONDS

pytestmark = pytest.mark.company

FILES = wired.in_order(scenario.SCENARIOS.glob("*.nat"))
TOGETHER = 6  # so many that share a core are worth its start; the others are played by `pytest -m long`
_OFTEN = {path for group in wired.groups(FILES) if len(group.paths) >= TOGETHER for path in group.paths}
_RESTARTS = {path for path in FILES if any(step.verb == "restart" for step in scenario.parse(path).steps)}
_SHORT = _OFTEN - _RESTARTS
PLAYED = [pytest.param(path, marks=() if path in _SHORT else pytest.mark.long, id=path.stem) for path in FILES]

UNWIRED = {
    "rfc4787-req14-fragments-to-the-authority": CLUSTER,
    "rfc5508-req5-error-from-a-router-to-the-authority": CLUSTER,
    "rfc4787-req2-drained-address": APPLY,
    "rfc6888-req6-errors": CLUSTER,
    "rfc6888-req3-added-prefix": APPLY,
    "rfc6888-req6-fragments": APPLY,
    "rfc6092-rec22-rules-go-first": APPLY,
    "rfc6888-req6-limits-and-shunts": CLUSTER,
    "rfc6888-req8-hold-down-to-the-millisecond": SECONDS,
    "rfc7422-drained-address": APPLY,
    "rfc7422-sides-of-own-ports": CLUSTER,
}
STEPS_LEFT_OUT = {"frames-that-are-wrong": ["frame cut 13"]}  # of an Ethernet header's 14 bytes


def test_every_requirement_is_played_over_af_xdp_or_named() -> None:
    left = set(scenario.SCENARIOS.glob("*.nat")) - set(FILES)
    reasons = {path.stem: wired_config.why_not(scenario.parse(path)) for path in left}
    assert {stem: reason for stem, reason in reasons.items() if stem.startswith("rfc")} == UNWIRED
    assert len(FILES) > 5 * len(reasons)


def test_the_command_says_why_a_scenario_cannot_be_played(tmp_path: Path) -> None:
    run = click.testing.CliRunner().invoke
    done = run(lab, ["scenario", str(scenario.SCENARIOS / "shunt-by-the-inside.nat")])
    assert isinstance(done.exception, Trouble) and done.exception.why == CLUSTER
    (tmp_path / "x.nat").write_text("given nonsense\n")
    done = run(lab, ["scenario", str(tmp_path / "x.nat")])
    assert isinstance(done.exception, Trouble)
    assert "x.nat:1: nothing can be given about 'nonsense'" in done.exception.why


def test_an_installation_says_that_it_has_no_player(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tests", None)
    done = click.testing.CliRunner().invoke(lab, ["scenario", str(FILES[0])])
    assert isinstance(done.exception, Trouble)
    assert "folder `tests` of the sources" in done.exception.why and "clone" in done.exception.remedy


def test_what_nobody_has_said_how_to_configure_is_an_error() -> None:
    with pytest.raises(LookupError, match="does not know what `colour` of a Coloured is"):
        wired_config.why_not(scenario.Scenario(Path("x.nat"), [], Coloured(colour="green")))


@dataclass
class Coloured(Bed):
    """With something that scenarios may be given one day."""

    colour: str = ""


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """For those that are to be played."""
    chosen = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    paths = [path for item in chosen if item.path == request.path and isinstance(path := item.callspec.params["path"], Path)]
    with wired.stage("krnw", paths) as made:
        yield made


@pytest.mark.lab
@pytest.mark.parametrize("path", PLAYED)
def test_scenario(path: Path, stage: Stage) -> None:
    played = stage.play(path)
    words = STEPS_LEFT_OUT.get(path.stem, [])
    assert len(played.left_out) == len(words) and all(word in told for word, told in zip(words, played.left_out, strict=True))


@pytest.mark.lab
def test_the_command_plays_two_hours_and_four_minutes() -> None:
    path = scenario.SCENARIOS / "rfc5382-req2-5-three-way-handshake.nat"
    done = click.testing.CliRunner().invoke(lab, ["scenario", str(path), "-o", "json"])
    told = json.loads(done.output)
    assert done.exit_code == 0 and told["held"] and not told["why"]
    assert [step["came"] for step in told["steps"] if step["step"].startswith("state")] == [
        "init", "established", "fin_out", "closing",
    ]  # fmt: skip
    assert any(step["step"].startswith("at +7439s") for step in told["steps"])
