"""A whole appliance that announces its pools: its worker is killed, its speaker, itself. Figures are printed (-s)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.switch import LOCAL_AS, PEER, PEER_AS, Monitor, Switch, core_address, core_address6, eventually, pair, started
from krononat import client
from krononat.config import read
from krononat.models import Pool
from routing.speaker.ask import ask
from tests.test_speaker_lab import CORE

pytestmark = pytest.mark.lab

PATIENCE_S = 240  # a cold cache is compiled first
PREFIXES = {"203.0.113.0/28", "10.255.0.0"}


class Appliance:
    """`krononat run` and `krononat speaker run` in a namespace, one core."""

    def __init__(self, folder: Path, place: str, switch: Switch) -> None:
        self.folder, self.place, self.switch = folder, place, switch
        self.socket = str(folder / "s1.bgp")
        told = {"server": "krnan", "core": 0, "number": 0, "socket": self.socket, "peer": PEER, "address": core_address(0)}
        told |= {"address6": core_address6(0), "local_as": LOCAL_AS, "peer_as": PEER_AS}
        control = f'\n[control]\nsocket = "{folder}/krnan.sock"\n[memory]\nsessions = 10000\n'
        (folder / "core.toml").write_text(CORE.format(**told) + control)
        self.process = self.start("run", "-c", str(folder / "core.toml"), log="core.log")
        self.speaker = self.start("speaker", "run", str(folder / "core.toml"), log="speaker.log")

    def start(self, *words: str, log: str) -> subprocess.Popen[str]:
        """One of our commands."""
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        command = [sys.executable, "-m", "krononat", *words]
        return started(self.place, *command, env=environment, stderr=(self.folder / log).open("w"))

    def said(self) -> str:
        """What the appliance has said."""
        return (self.folder / "core.log").read_text()

    def last(self, pattern: str) -> int:
        """The last number that the appliance has said in such a sentence."""
        return int(re.findall(pattern, self.said())[-1])

    def pool(self) -> Pool:
        """What it is given."""
        return read((self.folder / "core.toml").read_text()).pool[0]

    def hears(self, routes: int = 2) -> bool:
        """Whether the speaker hears the core, and has said everything."""
        try:
            (row,) = ask(self.socket, "cores")[0]
        except OSError:
            return False
        return bool(row["state"] == "alive" and row["wanted"] == routes and row["acknowledged"])

    def there(self) -> bool:
        """Whether the switch has all routes."""
        return set(self.switch.kernel()) == PREFIXES

    def worker(self) -> int:
        """Process number of the worker."""
        return self.last(r"worker (\d+) has taken over")

    def stop(self) -> None:
        """End what still runs."""
        for process in (self.process, self.speaker):
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """All is well, and a spare stands by."""
    folder = tmp_path_factory.mktemp("announcing")
    with pair("kbgpa", folder, [0]) as (place, switch):
        made = Appliance(folder, place, switch)
        try:
            eventually(lambda: made.there() and "stands by" in made.said(), PATIENCE_S)
            yield made
        finally:
            made.stop()


def test_a_worker_that_dies_while_a_spare_stands_by_changes_no_route(appliance: Appliance) -> None:
    before, monitor = appliance.worker(), Monitor(appliance.switch.place)
    moment = time.monotonic()
    os.kill(before, signal.SIGKILL)
    eventually(lambda: appliance.worker() != before and appliance.hears())
    time.sleep(0.5)
    assert monitor.since(moment) == []
    monitor.stop()
    print(f"\n{appliance.said().splitlines()[-3:]}")


def test_a_prefix_that_is_added_is_announced_and_the_next_worker_knows_it(appliance: Appliance) -> None:
    eventually(lambda: appliance.said().count("stands by") >= 2 and appliance.hears(), PATIENCE_S)
    socket, new, before = f"{appliance.folder}/krnan.sock", "198.18.0.0/31", appliance.worker()
    told = {"do": "pool", "pool": appliance.pool().name, "prefixes": [new]}
    assert client.ask(socket, {**told, "verb": "add"})["applied"]
    eventually(lambda: set(appliance.switch.kernel()) == PREFIXES | {new})
    monitor, moment = Monitor(appliance.switch.place), time.monotonic()
    os.kill(before, signal.SIGKILL)
    eventually(lambda: appliance.worker() != before and appliance.hears(3))
    time.sleep(0.5)
    assert monitor.since(moment) == []
    monitor.stop()
    client.ask(socket, {"do": "close", "addresses": ["198.18.0.0", "198.18.0.1"]})
    assert client.ask(socket, {**told, "verb": "remove"})["applied"]
    eventually(lambda: appliance.there() and appliance.hears())


def test_a_worker_that_is_replaced_changes_no_route(appliance: Appliance) -> None:
    eventually(lambda: appliance.said().count("stands by") >= 3 and appliance.hears(), PATIENCE_S)
    before, monitor, moment = appliance.worker(), Monitor(appliance.switch.place), time.monotonic()
    client.ask(f"{appliance.folder}/krnan.sock", {"do": "replace"})
    eventually(lambda: appliance.worker() != before and appliance.hears(), PATIENCE_S)
    time.sleep(0.5)
    assert f"worker {before} has retired" in appliance.said() and monitor.since(moment) == []
    monitor.stop()


def test_without_a_spare_the_routes_go_at_once_and_come_back(appliance: Appliance) -> None:
    eventually(lambda: appliance.said().count("stands by") >= 4, PATIENCE_S)
    before, monitor = appliance.worker(), Monitor(appliance.switch.place)
    os.kill(appliance.last(r"spare worker (\d+) stands by"), signal.SIGKILL)
    eventually(lambda: "cannot stand by" in appliance.said())
    time.sleep(0.05)
    moment = time.monotonic()
    os.kill(before, signal.SIGKILL)
    eventually(lambda: len([1 for _, line in monitor.since(moment) if line.startswith("Deleted")]) == 2)
    gone = max(at for at, _ in monitor.since(moment))
    eventually(appliance.there, PATIENCE_S)
    monitor.stop()
    print(f"\nworker killed, no spare -> withdrawn: {gone:.1f} ms")
    assert gone < 500


def test_a_helper_that_is_killed_is_not_noticed(appliance: Appliance) -> None:
    eventually(appliance.hears, 20)
    monitor, worker, moment = Monitor(appliance.switch.place), appliance.worker(), time.monotonic()
    log = (appliance.folder / "speaker.log").read_text()
    exabgp = re.findall(r"ExaBGP is process (\d+)", log)[-1]
    helper = Path(f"/proc/{exabgp}/task/{exabgp}/children").read_text().split()[0]
    os.kill(int(helper), signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{helper}").exists() and appliance.hears(), 20)
    time.sleep(2.5)
    assert monitor.since(moment) == [] and appliance.worker() == worker
    monitor.stop()


def test_a_speaker_started_anew_is_told_everything(appliance: Appliance) -> None:
    appliance.speaker.terminate()
    appliance.speaker.wait(10)
    eventually(lambda: not appliance.switch.kernel())
    appliance.speaker = appliance.start("speaker", "run", str(appliance.folder / "core.toml"), log="speaker.log")
    eventually(appliance.there, 20)


def test_an_appliance_that_ends_is_withdrawn_before(appliance: Appliance) -> None:
    """So others have the time to look elsewhere while it still forwards."""
    eventually(appliance.hears, 20)
    monitor, worker, moment = Monitor(appliance.switch.place), appliance.worker(), time.monotonic()
    appliance.process.terminate()
    eventually(lambda: not Path(f"/proc/{worker}").exists())
    ended = 1000 * (time.monotonic() - moment)
    gone = max(at for at, line in monitor.since(moment) if line.startswith("Deleted"))
    monitor.stop()
    assert appliance.process.wait(20) == 0
    print(f"\nSIGTERM -> withdrawn: {gone:.1f} ms, worker ends: {ended:.0f} ms")
    assert gone + 100 < ended
