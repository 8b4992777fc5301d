"""The bench of the start: what it tells, that its ends find a way, and that nothing of it stays; never how long it took."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from bench import start
from bench.devices import Forwarding
from bench.start import Ends, Start
from bench.veths import Place
from krononat.client import Trouble
from krononat.lab import namespaces
from tests.netns import namespace

STARTS = [Start(2.0, {"udp": 0.001, "tcp": 0.002, "icmp": 0.0005}, 0), Start(1.5, {"udp": 0.004, "tcp": 0, "icmp": 0}, 0)]


def test_the_longest_of_the_first_answers_and_the_middle_of_the_starts_are_told() -> None:
    packet, answer, late, compiled = start.figures([*STARTS, STARTS[0]], 61.0)
    assert (packet.name, packet.unit, packet.value, packet.low, packet.goal) == ("start/first_packet", "s", 2.0, 1.5, 5.0)
    assert (answer.name, answer.unit, answer.value, answer.high) == ("start/first_answer_ms", "ms", 2.0, 4.0)
    assert (late.name, late.value, late.goal, late.ok) == ("start/late_compilations", 0, 0, True)
    assert (compiled.name, compiled.value, compiled.goal, compiled.ok) == ("start/compile", 61.0, 90.0, True)


def test_one_late_compilation_in_any_start_is_one_too_many() -> None:
    late = start.figures([*STARTS, STARTS[0]._replace(late_compilations=1)], None)[-1]
    assert (late.name, late.value, late.ok) == ("start/late_compilations", 1, False)


def test_a_quick_run_compiles_nothing_from_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    environments = []

    def begin(place: Place, environment: dict[str, str]) -> Start:
        environments.append(environment)
        return STARTS[0]

    monkeypatch.setattr(start, "Place", lambda name, prefix: pytest.MonkeyPatch.context())
    monkeypatch.setattr(namespaces, "need", lambda *programs: None)
    monkeypatch.setattr(start, "compile", lambda environment: 61.0)
    monkeypatch.setattr(start, "begin", begin)
    assert [result.name for result in start.run(True, told.append)][-1] == "start/late_compilations"
    assert environments == [{}] * start.QUICK_STARTS and "left out" in told[-1]
    assert [result.name for result in start.run(False, told.append)][-1] == "start/compile"
    assert all("KRONONAT_CACHE" in each for each in environments[start.QUICK_STARTS :])


@pytest.fixture
def place() -> Iterator[Place]:
    """Wires, and a check that they are gone."""
    with namespace("stat-root"):  # skips, or fails, without root
        with Place("test", "stat") as built:
            yield built
        assert not {built.client, built.device, built.server} & namespaces.existing()


@pytest.mark.lab
def test_nothing_answers_without_a_device_and_everything_with_one(place: Place) -> None:
    with contextlib.ExitStack() as undoing:
        ends = Ends(place, undoing)
        assert ends.ask() is None
        with Forwarding(place, 0).up():
            assert any(ends.ask() is not None for _ in range(1000))
            assert ends.call() > 0 and ends.echo() > 0


@pytest.mark.lab
def test_a_start_is_measured_and_compiles_nothing_late(place: Place) -> None:
    seen = start.begin(place, {}, sessions=10_000)
    assert seen.seconds > 0 and set(seen.answers) == {"udp", "tcp", "icmp"} and min(seen.answers.values()) > 0
    assert seen.late_compilations == 0


@pytest.mark.lab
def test_an_appliance_that_ends_is_told_with_its_reason(place: Place) -> None:
    with pytest.raises(Trouble, match="did not start") as told:
        start.begin(place, {}, sessions=-1)
    assert "sessions" in told.value.why
