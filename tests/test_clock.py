"""The packets' clock: stopped, moved ahead, going on; who may; and what of a core it is."""

from __future__ import annotations

from typing import Any

import click.testing
import pytest

from krononat import appliance, clock, view
from krononat.client import BAD_CONFIG, Trouble
from krononat.clock import MOVE_AT_MOST, Clock, Told
from krononat.clock_answers import PATIENCE, ClockAnswers
from krononat.config import ConfigError, read
from krononat.control import Handler
from krononat.lab.clock_commands import Order
from krononat.lab.commands import lab
from krononat.lab.topology import TOPOLOGIES
from shards.state import WHEEL_SHIFT, State

ALONE = """
[interfaces.internal]
name = "in0"
address = "100.64.0.1/16"
[interfaces.external]
name = "out0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
[[subscribers]]
prefix = "100.64.0.0/20"
pool = "main"
[[pool]]
name = "main"
prefixes = ["203.0.113.0/28"]
[server]
"""
MOVABLE = ALONE + "movable-clock = true\n"


@pytest.fixture
def state() -> State:
    made = appliance.offline(read(ALONE))
    made.core[0]["wheel_at"] = 1000 >> WHEEL_SHIFT
    return made


def test_it_goes_with_the_machines_until_it_is_moved(state: State) -> None:
    told = Clock(state)
    assert told.at(1000) == 1000 and told.told(1007) == Told(1007, 0, False)
    assert told.obey({"ahead_ms": 7_440_000}, 1010) == ""
    assert told.told(1020) == Told(7_441_020, 7_440_000, False)


def test_one_that_stands_is_moved_and_goes_on_from_where_it_stood(state: State) -> None:
    told = Clock(state)
    told.obey({"stands": True}, 1000)
    assert told.at(5000) == told.at(9000) == 1000
    told.obey({"ahead_ms": 500}, 9000)
    assert told.told(10_000) == Told(1500, -8500, True)
    told.obey({"stands": False}, 20_000)
    assert told.told(20_001) == Told(1501, -18_500, False)


def test_a_successor_and_whoever_looks_have_the_same_clock(state: State) -> None:
    Clock(state).obey({"ahead_ms": 60_000, "stands": True}, 1000)
    assert Clock(state).at(99_000) == clock.now(state) == 61_000


def test_ages_and_expiries_are_told_by_it(state: State) -> None:
    """A session that the core holds alive is shown, however late it is by the machine's clock."""
    from shards.state import NAT_SESSION, new_state
    from tests.test_view import SIZES, put_session

    made = new_state(SIZES)
    made.core[0]["next_extent"], made.extents["kind"] = 3, (NAT_SESSION, 0, 0)
    put_session(made, 1)
    row = made.sessions[1]
    Clock(made).obey({"stands": True}, 500_000)
    row["created"], row["expiry"] = 440_000, 530_000
    assert [(told.age_s, told.expires_s) for told in view.sessions(made)] == [(60, 30)]
    Clock(made).obey({"ahead_ms": 30_000}, 500_000)
    assert view.count_sessions(made) == 0


def test_it_waits_for_its_timers_before_ticks_come_round(state: State) -> None:
    told = Clock(state)
    refused = [told.obey({"ahead_ms": MOVE_AT_MOST}, 1000) for _ in range(11)]
    assert refused[:9] == [""] * 9 and "behind" in refused[9]
    state.core[0]["wheel_at"] = told.at(1000) >> WHEEL_SHIFT
    assert told.obey({"ahead_ms": MOVE_AT_MOST}, 1000) == ""


# --- who may --------------------------------------------------------------------------------------------------------------


def test_a_configuration_allows_it_or_not() -> None:
    assert not read(ALONE).server.movable_clock and read(MOVABLE).server.movable_clock


def test_a_core_with_neighbours_to_watch_has_none_that_may_be_moved() -> None:
    with pytest.raises(ConfigError, match=r"movable-clock: excludes .*peers: only the clock of a core that is alone"):
        read(MOVABLE + '[bfd]\npeers = ["192.0.2.1"]\n')


def test_the_laboratories_of_one_core_allow_it() -> None:
    assert all("movable-clock = true" in config for told in TOPOLOGIES.values() for config in told.appliances.values())


class Client:
    """What an asker is told, and what the worker is told for it."""

    def __init__(self, state: State, movable: bool = True, busy: bool = False) -> None:
        self.told: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.busy = busy
        self.answers = ClockAnswers(self.send, state, movable)
        self.ask: Handler = self.answers.handlers()["clock"]

    def send(self, message: dict[str, Any]) -> bool:
        """To the worker."""
        self.sent += [] if self.busy else [message]
        return not self.busy

    def asks(self, **order: Any) -> None:
        """An order comes."""
        self.ask({"do": "clock", **order}, self.told.append)


def test_who_only_asks_is_told_without_the_worker(state: State) -> None:
    client = Client(state, movable=False)
    client.asks()
    assert client.told[0]["ok"] and client.told[0]["movable"] is False and client.sent == []
    assert client.told[0]["clock"].keys() == {"now", "ahead_ms", "stands"}


def test_a_core_that_may_have_subscribers_refuses(state: State) -> None:
    with pytest.raises(Trouble, match="may not be moved") as refused:
        Client(state, movable=False).asks(ahead_ms=1000)
    assert refused.value.status == BAD_CONFIG and "movable-clock = true" in refused.value.why


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ({"ahead_ms": -1}, "only goes forwards"),
        ({"ahead_ms": MOVE_AT_MOST + 1}, "a day"),
        ({"ahead_ms": 1.5}, "whole number"),
        ({"ahead_ms": True}, "whole number"),
        ({"stands": 1}, "true or false"),
        ({"now": 5}, "there is no 'now'"),
    ],
)
def test_what_makes_no_sense_is_refused(state: State, order: dict[str, Any], told: str) -> None:
    with pytest.raises(Trouble) as refused:
        Client(state).asks(**order)
    assert told in refused.value.why


def test_the_worker_answers_in_turn_and_may_refuse(state: State) -> None:
    client = Client(state)
    client.asks(ahead_ms=5)
    client.asks(stands=True)
    assert client.sent == [{"do": "clock", "ahead_ms": 5}, {"do": "clock", "stands": True}] and client.told == []
    client.answers.moved({"clock": {"now": 7}, "why": ""})
    client.answers.moved({"clock": {"now": 7}, "why": "its timers are 9 s behind still"})
    assert client.told[0] == {"ok": True, "clock": {"now": 7}, "movable": True}
    assert client.told[1]["error"]["why"] == "its timers are 9 s behind still"
    client.answers.moved({"clock": {"now": 9}, "why": ""})  # nobody waits for it any more
    assert len(client.told) == 2


def test_a_worker_that_cannot_be_told_that_ends_or_that_is_silent_costs_an_error(state: State) -> None:
    with pytest.raises(Trouble, match="cannot be told now"):
        Client(state, busy=True).asks(ahead_ms=5)
    ended, silent = Client(state), Client(state)
    for client in (ended, silent):
        client.asks(ahead_ms=5)
    ended.answers.refuse()
    assert "ended" in ended.told[0]["error"]["what"]
    silent.answers.tire(clock.ticks() + PATIENCE - 1000)
    assert silent.told == []
    silent.answers.tire(clock.ticks() + PATIENCE + 1000)
    assert "does not answer" in silent.told[0]["error"]["what"]


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "order"),
    [("+7440", {"ahead_ms": 7_440_000}), ("+0.5s", {"ahead_ms": 500}), ("stop", {"stands": True}), ("go", {"stands": False})],
)
def test_what_may_be_said(word: str, order: dict[str, Any]) -> None:
    assert Order().convert(word, None, None) == order


@pytest.mark.parametrize("word", ["7440", "+86401", "+1e9", "backwards", "+", "+1.23456"])
def test_what_may_not(word: str) -> None:
    done = click.testing.CliRunner().invoke(lab, ["clock", word])
    assert done.exit_code == 2 and "only goes forwards" in done.output


def test_the_command_tells_how_the_clock_is(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"clock": {"now": 9, "ahead_ms": -1500, "stands": True}, "movable": True}
    asked: list[Any] = []

    def ask(path: str, request: dict[str, Any], **_: float) -> dict[str, Any]:
        asked.append((path, request))
        return answer

    monkeypatch.setattr("krononat.client.ask", ask)
    run = click.testing.CliRunner().invoke
    assert run(lab, ["clock", "--socket", "/x", "+3"]).output == "1.500 s behind, stands\n"
    assert '"movable": true' in run(lab, ["clock", "--socket", "/x", "-o", "json"]).output
    assert asked == [("/x", {"do": "clock", "ahead_ms": 3000}), ("/x", {"do": "clock"})]
