"""Real ExaBGP, real BIRD, a kernel's routes: what arrives, and how soon what is dead is gone. Figures are printed (-s)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.switch import LOCAL_AS, PEER, PEER_AS, Monitor, Switch, core_address, core_address6, eventually, pair, started
from krononat import config, speaking
from routing.speaker.ask import ask
from routing.speaker.keeper import NICENESS
from shards.state import ACTIVE, PASSIVE

pytestmark = pytest.mark.lab

CORE = """\
[server]
name = "{server}"
core = {core}
[interfaces.both]
name = "up{number}"
address = "{address}/16"
internal-gateway = "{peer}"
external-gateway = "{peer}"
[[subscribers]]
prefix = "100.64.0.0/24"
pool = "main"
[[pool]]
name = "main"
prefixes = ["203.0.113.0/28"]
[bgp]
local-as = {local_as}
preference = "prepend"
communities = ["65010:7"]
shard-addresses = "10.255.0.0/24"
socket = "{socket}"
[[bgp.peer]]
address = "{peer}"
as = {peer_as}
next-hop6 = "{address6}"
"""
PREFIXES = ("203.0.113.0/28", "10.255.0.0/32", "2001:db8:f001::/48")
CORES = {"s1/0": 0, "s1/1": 1, "s2/0": 2}  # number of its address


class Bed:
    """Two servers' speakers in one namespace, one switch, and the cores as processes."""

    def __init__(self, folder: Path, server: str, switch: Switch) -> None:
        self.folder, self.server, self.switch = folder, server, switch
        self.environment = {**os.environ, "PYTHONPATH": os.getcwd(), "NUMBA_DISABLE_JIT": "1"}
        self.files = {name: self._write(name, number) for name, number in CORES.items()}
        self.speakers = {name: self._speaker(name) for name in ("s1", "s2")}
        self.voices: dict[str, subprocess.Popen[str]] = {}

    def socket(self, server: str) -> str:
        """Where its speaker listens."""
        return str(self.folder / f"{server}.bgp")

    def _write(self, name: str, number: int) -> Path:
        server, _, core = name.partition("/")
        path = self.folder / f"{server}-{core}.toml"
        told = {"server": server, "core": core, "number": number, "socket": self.socket(server), "peer": PEER}
        told |= {"address": core_address(number), "address6": core_address6(number), "local_as": LOCAL_AS, "peer_as": PEER_AS}
        path.write_text(CORE.format(**told))
        return path

    def _speaker(self, server: str) -> subprocess.Popen[str]:
        files = [str(path) for name, path in self.files.items() if name.startswith(server)]
        command = [sys.executable, "-m", "krononat", "speaker", "run", *files]
        return started(self.server, *command, env=self.environment, stderr=(self.folder / f"{server}.log").open("w"))

    def speak(self, name: str, role: int, epoch: int = 1) -> None:
        """Have a core announce its one shard in a role."""
        orders = speaking.orders(config.load(self.files[name]), None)
        assert orders
        orders["shards"] = [[0, ["203.0.113.0/28"], ["2001:db8:f001::/48"], 1, name == "s1/0"]]
        socket = self.socket(name.partition("/")[0])
        told = json.dumps({"socket": socket, "orders": orders, "posts": {0: [role, epoch]}, "linger": 0})
        command = [sys.executable, "-m", "tests.voice", told]
        self.voices[name] = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=self.environment)

    def end(self, name: str, by: signal.Signals = signal.SIGKILL) -> float:
        """End a core; when."""
        voice = self.voices.pop(name)
        moment = time.monotonic()
        voice.send_signal(by)
        voice.communicate()
        return moment

    def exabgp(self, server: str) -> int:
        """Process number of a server's ExaBGP."""
        log = (self.folder / f"{server}.log").read_text()
        return int(re.findall(r"ExaBGP is process (\d+)", log)[-1])

    def helper(self, server: str) -> int:
        """Process number of a server's helper."""
        children = Path(f"/proc/{self.exabgp(server)}/task/{self.exabgp(server)}/children").read_text().split()
        return int(children[0])

    def via(self) -> set[str]:
        """Cores that the switch's kernel sends to: by their addresses."""
        return {gateway for gateway in self.switch.kernel().values()}

    def stop(self) -> None:
        """End everything that was started."""
        for name in list(self.voices):
            self.end(name)
        for speaker in self.speakers.values():
            speaker.terminate()
        for speaker in self.speakers.values():
            speaker.wait(10)


def addresses(name: str) -> set[str]:
    """Next hops of a core."""
    return {core_address(CORES[name]), core_address6(CORES[name])}


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Both servers' sessions are up; s1/0 is the primary, s2/0 the backup."""
    folder = tmp_path_factory.mktemp("speaker")
    with pair("kbgp", folder, sorted(CORES.values())) as (server, switch):
        made = Bed(folder, server, switch)
        try:
            eventually(lambda: switch.sessions() == 3, 20)
            yield made
        finally:
            made.stop()


@pytest.fixture
def settled(bed: Bed) -> Bed:
    """s1/0 is the primary, s2/0 the backup, and the switch knows both."""
    for name, role in (("s1/0", ACTIVE), ("s2/0", PASSIVE)):
        if name not in bed.voices:
            bed.speak(name, role)
    eventually(lambda: len(bed.switch.routes(0)) == len(bed.switch.routes(2)) == 3 and bed.via() == addresses("s1/0"), 20)
    return bed


def last_change(monitor: Monitor, moment: float, name: str, count: int = 3) -> float:
    """Milliseconds from the moment until the kernel has sent everything to that core; no route was missing in between."""
    wanted = addresses(name)
    eventually(lambda: sum(any(f"via {each} " in line for each in wanted) for _, line in monitor.since(moment)) >= count)
    found = monitor.since(moment)
    assert not [line for _, line in found if line.startswith("Deleted")], found
    return max(at for at, line in found if any(f"via {each} " in line for each in wanted))


def test_everything_that_is_said_arrives(settled: Bed) -> None:
    first, second = settled.switch.routes(0), settled.switch.routes(2)
    assert set(first) == set(second) == set(PREFIXES)
    for name, found, med, prepended in (("s1/0", first, "100", 2), ("s2/0", second, "200", 8)):
        for prefix, told in found.items():
            number = CORES[name]
            assert told["next_hop"].split()[0] == (core_address6(number) if ":" in prefix else core_address(number))
            assert told["med"] == med
            assert told["as_path"] == " ".join([str(LOCAL_AS)] * (1 + prepended))
            assert told["community"] == "(65010,7)"
            assert told["large_community"] == "(65010, 0, 1)"


def test_status_and_routes_as_people_see_them(settled: Bed) -> None:
    command = [sys.executable, "-m", "krononat", "bgp"]
    socket = ["--socket", settled.socket("s1")]
    done = subprocess.run([*command, "status", *socket], capture_output=True, text=True, env=settled.environment, check=True)
    assert done.stdout.count(" up ") == 2 and "s1/1 is never" in done.stderr
    told = subprocess.run(
        [*command, "routes", *socket, "-o", "json"], capture_output=True, text=True, env=settled.environment, check=True
    )
    rows = json.loads(told.stdout)
    assert {row["prefix"] for row in rows} == set(PREFIXES) and all(row["acknowledged"] for row in rows)


def test_a_withdrawal_does_not_wait_behind_busy_cores(settled: Bed) -> None:
    said = (settled.exabgp("s1"), settled.helper("s1"))
    assert [os.getpriority(os.PRIO_PROCESS, number) for number in said] == [NICENESS, NICENESS]


def test_a_core_that_dies_is_withdrawn_within_milliseconds(settled: Bed) -> None:
    monitor = Monitor(settled.switch.place)
    took = last_change(monitor, settled.end("s1/0"), "s2/0")
    monitor.stop()
    print(f"\nconnection closed -> the kernel's last route changed: {took:.1f} ms")
    assert took < 500


def test_a_core_that_freezes_is_withdrawn_after_its_time_and_comes_back(settled: Bed) -> None:
    monitor = Monitor(settled.switch.place)
    moment = time.monotonic()
    settled.voices["s1/0"].send_signal(signal.SIGSTOP)
    took = last_change(monitor, moment, "s2/0")
    print(f"\nbeats stopped -> the kernel's last route changed: {took:.1f} ms")
    assert 100 < took < 1000
    settled.voices["s1/0"].send_signal(signal.SIGCONT)
    monitor.stop()
    eventually(lambda: settled.via() == addresses("s1/0"))


def test_a_helper_that_is_killed_changes_no_route(settled: Bed) -> None:
    monitor = Monitor(settled.switch.place)
    moment, helper, exabgp = time.monotonic(), settled.helper("s1"), settled.exabgp("s1")
    os.kill(helper, signal.SIGKILL)
    eventually(lambda: Path(settled.socket("s1")).exists() and _alive(settled, "s1/0"), 10)
    back = 1000 * (time.monotonic() - moment)
    time.sleep(2.5)  # longer than what a dead helper said is kept without its core
    assert monitor.since(moment) == [] and settled.exabgp("s1") == exabgp and settled.helper("s1") != helper
    monitor.stop()
    print(f"\nhelper killed -> another one hears the core: {back:.0f} ms; no route changed")
    _say(settled, "s1/0", [PASSIVE, 2])
    eventually(lambda: {told["med"] for told in settled.switch.routes(0).values()} == {"200"})
    _say(settled, "s1/0", [ACTIVE, 1])
    eventually(lambda: {told["med"] for told in settled.switch.routes(0).values()} == {"100"})


def _say(bed: Bed, name: str, post: list[int]) -> None:
    stream = bed.voices[name].stdin
    assert stream
    stream.write(json.dumps({0: post}) + "\n")
    stream.flush()


def _alive(bed: Bed, name: str) -> bool:
    try:
        rows, _ = ask(bed.socket(name.partition("/")[0]), "cores")
    except OSError:
        return False
    return any(row["core"] == name and row["state"] == "alive" and row["wanted"] and row["acknowledged"] for row in rows)


def test_exabgp_killed_moves_everything_to_the_backup_and_back(settled: Bed) -> None:
    """All routes of the server go, as TCP ends; the backup's stand there, so no destination is ever without a route."""
    monitor = Monitor(settled.switch.place)
    moment = time.monotonic()
    os.kill(settled.exabgp("s1"), signal.SIGKILL)
    took = last_change(monitor, moment, "s2/0")
    eventually(lambda: settled.via() == addresses("s1/0"), 20)
    back = 1000 * (time.monotonic() - moment)
    assert not [line for _, line in monitor.since(moment) if line.startswith("Deleted")]
    monitor.stop()
    print(f"\nExaBGP killed -> the backup's routes: {took:.1f} ms, started anew and back: {back:.0f} ms, never without a route")
    assert settled.voices["s1/0"].poll() is None


def test_a_switch_that_was_away_hears_everything_again(settled: Bed) -> None:
    settled.switch.stop()
    eventually(lambda: _session(settled)["since_ms"] > 3000 and not _session(settled)["up"], 10)
    status = _session(settled)
    assert not status["up"] and status["why"]
    moment = time.monotonic()
    settled.switch.start()
    eventually(lambda: settled.via() == addresses("s1/0") and len(settled.switch.kernel()) == 3, 10)
    print(f"\nBIRD started again -> all routes: {1000 * (time.monotonic() - moment):.0f} ms ({status['why']})")


def _session(bed: Bed) -> dict[str, Any]:
    """What a speaker says of its first session."""
    told: dict[str, Any] = ask(bed.socket("s1"), "sessions")[0][0]
    return told


def test_a_speaker_that_ends_leaves_nothing(settled: Bed) -> None:
    speaker = settled.speakers["s2"]
    pids = [settled.exabgp("s2"), settled.helper("s2")]
    speaker.terminate()
    assert speaker.wait(10) == 0
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert not Path(settled.socket("s2")).exists() and not Path(settled.socket("s2") + ".d").exists()
    assert settled.switch.routes(2) == {}
    settled.speakers["s2"] = settled._speaker("s2")


def test_a_speaker_that_is_killed_takes_its_exabgp_with_it(settled: Bed) -> None:
    speaker = settled.speakers["s2"]
    pids = [settled.exabgp("s2"), settled.helper("s2")]
    speaker.kill()
    speaker.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
