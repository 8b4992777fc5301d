"""`krononat bench routes`: how soon a switch's kernel follows when shards move, through ExaBGP to a real BIRD.

Two servers with a speaker each (ExaBGP, its helper) and 40 cores that beat as workers do, in one namespace; BIRD in another,
whose kernel's table is watched by `ip monitor route`. One server's cores are primary for 128 shards of two prefixes (the
external one and the shard address), the other's keep the copies. Then these say "promoted" all at once, and when the kernel
has followed the first ones step back: a whole server's swap of preference. The clock runs from the first message to a helper to
the first and the last change of the 256 routes. Next time it is the other way round.

    routes/40sessions/first_ms, last_ms   a session for each core            routes/1session/...   one for each server
    routes/40sessions/one_ms              the same of one shard
    routes/40sessions/killed_ms           one server's ExaBGP is killed: until the kernel has the other's 256 routes
    routes/40sessions/gaps                routes that were missing for a moment; must be none

No packet flows here: `bench migrate` and `bench failover` have those.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.report import Result, Told
from bench.switch import LOCAL_AS, PEER, PEER_AS, Monitor, core_address, eventually, pair, started
from krononat.announcer import BEAT, ROUTES_AT_ONCE
from routing import announcements
from routing.announcements import Policy, Role, Standing
from routing.speaker import sessions
from routing.speaker.ask import ask
from routing.speaker.sessions import Plan, Session, Voice, Way

KIND = "veth"
NAME = "krt"
CORES, SHARDS = 40, 128
ROUNDS, QUICK_ROUNDS = 20, 4
SWAP_GOAL_MS, ONE_GOAL_MS = 350.0, 50.0
PATIENCE_S = 30.0
_DEAD_AFTER_MS = 2000  # this process beats for 80 cores, and may be late
_POLICY = Policy(LOCAL_AS, "med", shard_addresses="10.255.0.0/24")
_KEEPER = """
import os, signal, sys
from pathlib import Path
from routing.speaker import sessions
from routing.speaker.keeper import Keeper
folder = Path(sys.argv[1])
keeper = Keeper(sessions.read((folder / "told.json").read_text()), folder, os.environ, lambda line: print(line, flush=True))
signal.signal(signal.SIGTERM, lambda *_: keeper.stop())
keeper.run()
"""


class Server:
    """A speaker and its cores, whose addresses begin with the `first` one."""

    def __init__(self, place: str, folder: Path, first: int, single: bool) -> None:
        folder.mkdir()
        self.folder, self.cores = folder, range(first, first + CORES)
        self.plan = _plan(folder, self.cores, single)
        (folder / "told.json").write_text(sessions.write(self.plan))
        self._log = (folder / "log").open("w")
        root = str(Path(__file__).parent.parent)
        command = [sys.executable, "-c", _KEEPER, str(folder)]
        environment = {**os.environ, "PYTHONPATH": root}
        self._process = started(place, *command, env=environment, stdout=self._log, stderr=self._log)
        self._streams: dict[int, socket.socket] = {}
        self._number = 0

    def connect(self) -> None:
        """All cores whose connection is not there, or not any more."""
        for core in self.cores:
            if core not in self._streams:
                eventually(lambda core=core: self._reach(core), PATIENCE_S)  # type: ignore[misc]

    def _reach(self, core: int) -> bool:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            stream.connect(self.plan.socket)
        except OSError:
            stream.close()
            return False
        self._streams[core] = stream
        self._tell(core, {"core": f"s/{core}", "linger": 0})
        return True

    def say(self, roles: Sequence[Role]) -> None:
        """Every core its shards, in the roles that stand here by shard."""
        self._number += 1
        for place, core in enumerate(self.cores):
            told = [Standing(shard, roles[shard], 1, (_external(shard),)) for shard in range(place, SHARDS, CORES)]
            wanted = announcements.routes(told, _POLICY)
            assert len(wanted) <= ROUTES_AT_ONCE
            self._tell(core, {"routes": wanted, "n": self._number})

    def beat(self) -> None:
        """Each core once."""
        for core in list(self._streams):
            self._tell(core, {"beat": 1})

    def _tell(self, core: int, message: object) -> None:
        stream = self._streams.get(core)
        try:
            if stream:
                stream.send(json.dumps(message).encode())
        except OSError:
            self._streams.pop(core, None)

    def kill(self) -> None:
        """ExaBGP, at once; its keeper starts another one."""
        pid = re.findall(r"ExaBGP is process (\d+)", (self.folder / "log").read_text())[-1]
        os.kill(int(pid), signal.SIGKILL)

    def is_alone(self) -> bool:
        """Whether all connections have ended."""
        return not self._streams

    def settled(self) -> bool:
        """Whether all sessions are up, and everything that was said is acknowledged."""
        try:
            links, cores = (ask(self.plan.socket, what)[0] for what in ("sessions", "cores"))
        except OSError:
            return False
        return all(row["up"] for row in links) and all(row["acknowledged"] and row["wanted"] for row in cores)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
        self._log.close()
        for stream in self._streams.values():
            stream.close()


def _plan(folder: Path, cores: range, single: bool) -> Plan:
    made = [Session(PEER, core_address(core), PEER_AS, LOCAL_AS) for core in cores]
    ways = [Way(made[0 if single else at].name, "both", core_address(core)) for at, core in enumerate(cores)]
    voices = {f"s/{core}": Voice(_DEAD_AFTER_MS, (way,)) for core, way in zip(cores, ways, strict=True)}
    return Plan(str(folder / "socket"), str(folder / "said.json"), tuple(made[: 1 if single else None]), voices)


def _external(shard: int) -> str:
    return f"203.0.113.{2 * shard}/31"


class Fabric(contextlib.ExitStack):
    """Both servers and the switch; all is said, the first server is the primary of everything."""

    def __init__(self, single: bool) -> None:
        super().__init__()
        self._single, self._over = single, threading.Event()
        self._owner = [0] * SHARDS

    def __enter__(self) -> Fabric:
        folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="krononat-routes-")))
        speaking = [0, CORES] if self._single else range(2 * CORES)
        place, self.switch = self.enter_context(pair(NAME, folder, range(2 * CORES), speaking))
        self.servers = [Server(place, folder / str(n), n * CORES, self._single) for n in range(2)]
        for server in self.servers:
            self.callback(server.stop)
        for server in self.servers:
            server.connect()
        threading.Thread(target=self._beat, daemon=True).start()
        self.callback(self._over.set)
        self._say_all()
        self._settle()
        return self

    def _beat(self) -> None:
        while not self._over.wait(BEAT / 1000):
            for server in self.servers:
                server.beat()

    def _say_all(self) -> None:
        for number, server in enumerate(self.servers):
            server.say(["primary" if owner == number else "backup" for owner in self._owner])

    def _settle(self) -> None:
        """Everything is acknowledged, and the kernel has it."""
        eventually(lambda: all(server.settled() for server in self.servers), PATIENCE_S)
        cores = [core_address(self.servers[owner].cores[shard % CORES]) for shard, owner in enumerate(self._owner)]
        eventually(lambda: [self.switch.kernel().get(_external(shard)) for shard in range(SHARDS)] == cores, PATIENCE_S)

    def swap(self, shards: range) -> tuple[float, float, int]:
        """(ms to the first change, to the last one, routes that were missing meanwhile) when shards go to the other server."""
        to = 1 - self._owner[shards[0]]
        promoted: list[Role] = ["primary" if owner == to else "backup" for owner in self._owner]
        for shard in shards:
            promoted[shard], self._owner[shard] = "promoted", to
        monitor = Monitor(self.switch.place)
        moment = time.monotonic()
        self.servers[to].say(promoted)
        found = self._followed(monitor, moment, self.servers[to], 2 * len(shards))
        self._say_all()
        self._settle()
        missing = _missing(monitor, moment)
        monitor.stop()
        return found[0], found[-1], missing

    def kill(self) -> tuple[float, float, int]:
        """(ms to the first and the last change, routes that were missing) when the primary's ExaBGP is killed; it returns."""
        dead, other = self.servers
        monitor = Monitor(self.switch.place)
        moment = time.monotonic()
        dead.kill()
        found = self._followed(monitor, moment, other, 2 * SHARDS)
        eventually(dead.is_alone, PATIENCE_S)
        dead.connect()
        self._say_all()
        self._settle()
        missing = _missing(monitor, moment)
        monitor.stop()
        return found[0], found[-1], missing

    def _followed(self, monitor: Monitor, moment: float, to: Server, count: int) -> list[float]:
        gateways = {core_address(core) for core in to.cores}

        def changes() -> list[float]:
            return [at for at, line in monitor.since(moment) if _gateway(line) in gateways and not line.startswith("Deleted")]

        eventually(lambda: len(changes()) >= count, PATIENCE_S)
        return changes()


def _gateway(line: str) -> str:
    found = re.search(r" via (\S+)", line)
    return found[1] if found else ""


def _missing(monitor: Monitor, moment: float) -> int:
    return sum(line.startswith("Deleted") for _, line in monitor.since(moment))


def run(quick: bool, told: Told) -> list[Result]:
    """Both profiles; Trouble where root or programs are missing."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    results = []
    for name, single in (("40sessions", False), ("1session", True)):
        told(f"{name}: two servers of {CORES} cores come up")
        with Fabric(single) as fabric:
            results += _figures(f"routes/{name}", fabric, rounds, told)
    return results


def _figures(name: str, fabric: Fabric, rounds: int, told: Told) -> list[Result]:
    told(f"{name}: {rounds} swaps of {SHARDS} shards, as many of one")
    many = [fabric.swap(range(SHARDS)) for _ in range(rounds)]  # an even number: the first server ends as the owner
    one = [fabric.swap(range(7, 8)) for _ in range(rounds)]
    told(f"{name}: ExaBGP is killed")
    killed = [fabric.kill() for _ in range(max(rounds // 4, 1))]
    missing = [gaps for *_, gaps in (*many, *one, *killed)]
    return [
        report.measured(f"{name}/first_ms", "ms", [first for first, _, _ in many]),
        report.measured(f"{name}/last_ms", "ms", [last for _, last, _ in many], SWAP_GOAL_MS),
        report.measured(f"{name}/one_ms", "ms", [last for _, last, _ in one], ONE_GOAL_MS),
        report.measured(f"{name}/killed_ms", "ms", [last for _, last, _ in killed]),
        report.measured(f"{name}/gaps", "count", [sum(missing)], 0),
    ]


routes = report.command("routes", KIND, run, "Routes that follow when shards move, through ExaBGP to BIRD.")

if __name__ == "__main__":
    routes()
