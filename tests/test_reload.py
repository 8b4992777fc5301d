"""`krononat config apply` and `pool drain`: what changes while packets pass, what needs a restart, nothing by half."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from krononat import appliance, config, reload
from krononat.answers import Answers, Parts
from krononat.client import Trouble
from krononat.control import error
from krononat.crew import Crew
from krononat.worker import Worker
from shards.core_rows import NO_REPLY
from shards.lifetimes import STATE_BITS, STATES
from shards.state import DRAINED, EXCLUDED, INBOUND, OPEN, State, admitted
from tests.test_cli import Fake, Run, run
from tests.test_config import RIGHT

__all__ = ["run"]

BEFORE = RIGHT + '[[rule]]\nprotocol = "tcp"\nremote-ports = "25"\naction = "reject"\n'
AFTER = (
    BEFORE + '[[rule]]\nremote = "198.51.100.9"\naction = "drop"\n[[bypass]]\nremote = "10.9.0.0/16"\n[timeouts]\nudp = 200\n'
)
UDP = STATES.index("udp")


class Hired:
    """The supervisor's end of a worker's channel; the worker's end is the worker's own code."""

    def __init__(self, state: State) -> None:
        self.worker, self.reached = Worker.__new__(Worker), True
        self.worker._state = state

    def send(self, message: dict[str, Any], _: object = ()) -> bool:
        """Have the worker do it."""
        if self.reached:
            self.worker._obey(json.loads(json.dumps(message)), [], 0)
        return self.reached


class Running(Fake):
    """An appliance that runs: its handlers, its memory, and a worker that does what it is told."""

    def __init__(self, path: Path, text: str) -> None:
        read = config.read(text)
        super().__init__(path, appliance.compose(read))
        links = [appliance.Link(bytes(6), 1500, False)] * len(list(read.interfaces.named()))
        appliance.fill(self.state, read, links, bytes(16), bytes(16))
        self.hired = Hired(self.state)
        parts = Parts(*[cast(Any, None)] * len(Parts._fields))._replace(
            config=read, state=self.state, crew=cast(Crew, self.hired), began=0
        )
        self.answers = Answers(parts)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the real handlers say."""
        told: list[dict[str, Any]] = []
        if request["do"] == "memory":
            return {"ok": True}
        try:
            self.answers.handlers()[request["do"]](request, lambda answer, _=(): told.append(answer))
        except Trouble as trouble:
            return error(trouble)
        return told[0]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """An appliance with one rule."""
    monkeypatch.setenv("KRONONAT_SOCKET", str(tmp_path / "nat1.sock"))
    server = Running(tmp_path / "nat1.sock", BEFORE)
    server.start()
    yield server
    server.close()


def written(folder: Path, text: str) -> str:
    """Path of a file with that text."""
    (folder / "new.toml").write_text(text)
    return str(folder / "new.toml")


def test_what_changes_is_told_first_and_done_then(run: Run, running: Running, tmp_path: Path) -> None:
    file, settings = written(tmp_path, AFTER), running.state.settings[0]
    told = run("config", "apply", "--dry-run", file).out
    assert told.splitlines() == ["would change: bypass", "would change: timeouts.udp", "would change: rule"]
    assert (settings["rules"], settings["rules_version"], settings["lifetimes"][UDP]) == (1, 1, 300_000)
    assert json.loads(run("config", "apply", file, "-o", "json").out)["applied"] is True
    assert (settings["rules"], settings["bypasses"], settings["lifetimes"][UDP]) == (2, 1, 200_000)
    assert (settings["rules_version"], settings["admitted"]) == (2, admitted(2))
    at = int(settings["rules_at"])
    assert at == len(running.state.rules) // 2 and running.state.rules["number"][at : at + 2].tolist() == [0, 1]
    assert run("config", "apply", file).out == "nothing differs from what runs\n"
    assert config.read(json.loads(json.dumps(running.answer({"do": "config"})["config"]))) == config.read(AFTER)


def test_the_half_that_packets_look_at_is_never_written(running: Running) -> None:
    before = running.state.rules[: len(running.state.rules) // 2].copy()
    orders = reload.prepare(running.state, config.read(AFTER))
    assert running.state.rules[: len(before)].tolist() == before.tolist() and not reload.in_force(running.state, orders)
    running.hired.send({"do": "settle", "settings": orders})
    assert reload.in_force(running.state, orders)
    assert reload.prepare(running.state, config.read(BEFORE))["rules_at"] == 0


def test_versions_go_round_and_pass_over_zero(running: Running) -> None:
    running.state.settings[0]["rules_version"] = 0xFFFF
    assert reload.prepare(running.state, config.read(AFTER))["rules_version"] == 1


def test_what_needs_a_restart_is_named_and_then_nothing_changes(run: Run, running: Running, tmp_path: Path) -> None:
    wrong = AFTER.replace('prefixes = ["203.0.113.0/28"]', 'prefixes = ["203.0.113.0/28"]\nicmp-address = "203.0.113.5"')
    told = run("config", "apply", written(tmp_path, wrong))
    assert told.status != 0 and "pool.icmp-address" in told.err and "nothing was changed" in told.err
    assert running.state.settings[0]["rules_version"] == 1
    assert "needs a restart: pool.icmp-address" in run("config", "apply", "-n", written(tmp_path, wrong)).out
    crowd = BEFORE + '[[rule]]\naction = "drop"\n' * (len(running.state.rules) // 2)
    assert "there is room for 64" in run("config", "apply", written(tmp_path, crowd)).err


def test_what_else_is_carried_to_a_core_that_runs(running: Running) -> None:
    """Codes of refusals, alarms, who is told of errors, lifetimes of ports."""
    timer = 'port = [{ protocol = "udp", ports = "53", seconds = %d }]\n'
    before = BEFORE + "[timeouts]\n" + timer % 10
    told = '[icmp]\nrefusal-code = 10\nrefusal-code6 = -1\ntowards = ["internal"]\n[alarms]\nwarning = 50\n'
    after = BEFORE + told + "[timeouts]\n" + timer % 20
    plan = reload.plan(config.read(before), config.read(after))
    icmp = {"icmp.refusal-code", "icmp.refusal-code6", "icmp.towards"}
    assert plan.restart == [] and set(plan.live) == icmp | {"alarms.warning", "timeouts.port.seconds"}
    running.hired.send({"do": "settle", "settings": reload.prepare(running.state, config.read(after))})
    row = running.state.settings[0]
    assert (row["refusal_code"], row["refusal_code6"], row["quiet"], row["warning"]) == (10, NO_REPLY, 1 << INBOUND, 50)
    assert row["lifetimes"][[UDP, 1 << STATE_BITS | UDP]].tolist() == [300_000, 20_000]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[nat]\nother-protocols = ["gre"]\n', "nat.other-protocols"),
        ('[timeouts]\nport = [{ protocol = "udp", ports = "53", seconds = 10 }]\n', "timeouts.port"),
        ("[limits]\nsessions = 5\n", "limits.sessions"),
    ],
)
def test_what_sessions_rely_on_needs_a_restart(text: str, key: str) -> None:
    assert reload.plan(config.read(BEFORE), config.read(BEFORE + text)) == ([], [key])


def test_other_ports_with_a_lifetime_of_their_own_need_a_restart() -> None:
    """The rows of sessions that live say by its number which of them theirs is."""
    told = BEFORE + '[timeouts]\nport = [{ protocol = "udp", ports = "%s", seconds = 10 }]\n'
    assert reload.plan(config.read(told % "53"), config.read(told % "54")) == ([], ["timeouts.port.ports"])


def test_a_worker_that_cannot_be_told_changes_nothing(run: Run, running: Running, tmp_path: Path) -> None:
    running.hired.reached = False
    assert "cannot be told" in run("config", "apply", written(tmp_path, AFTER)).err
    assert running.state.settings[0]["rules_version"] == 1
    running.hired.reached = True
    assert run("config", "apply", written(tmp_path, AFTER)).status == 0


def test_a_file_that_is_wrong_is_refused_before_anybody_is_asked(run: Run, running: Running, tmp_path: Path) -> None:
    assert run("config", "apply", written(tmp_path, AFTER + "[[bypass]]\n")).status == 78
    assert not running.asked


def test_drained_and_opened_again(run: Run, running: Running) -> None:
    closed = running.state.externals["closed"]
    (row,) = json.loads(run("pool", "drain", "203.0.113.7", "-o", "json").out)
    assert row == {"address": "203.0.113.7", "use": "drained", "mappings": 0, "sessions": 0}
    assert closed.tolist().count(DRAINED) == 1 and running.state.externals["address"][closed > 0] == 0xCB007107
    (pool,) = json.loads(run("pool", "list", "-o", "json").out)
    assert pool["closed"] == 1
    assert json.loads(run("config", "show", "-o", "json").out)["pool"][0]["drain"] == ["203.0.113.7"]
    (row,) = json.loads(run("pool", "undrain", "203.0.113.7", "-o", "json").out)
    assert row["use"] == "open" and not closed.any()
    assert "is in no pool" in run("pool", "drain", "192.0.2.9").err
    assert "leaves nothing" in run("pool", "drain", *(f"203.0.113.{n}" for n in range(16))).err


def test_closed_addresses_of_a_file(running: Running) -> None:
    text = BEFORE.replace("[[pool]]", '[[pool]]\ndrain = ["203.0.113.3"]\nexclude = ["203.0.113.0/31"]', 1)
    reload.close(running.state, config.read(text))
    assert running.state.externals["closed"].tolist()[:5] == [EXCLUDED, EXCLUDED, OPEN, DRAINED, OPEN]
    assert appliance.offline(config.read(text)).externals["closed"].tolist()[:5] == [EXCLUDED, EXCLUDED, OPEN, DRAINED, OPEN]
    assert reload.plan(config.read(BEFORE), config.read(text)) == reload.Plan(["pool.drain", "pool.exclude"], [])
