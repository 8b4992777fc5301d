"""A laboratory's life: up, down, and what another process finds of it.

What exists is written to ``/run/krononat-lab/NAME.json`` *before* it is made, so that whatever is killed whenever, the next
`up` or `down` of the same name clears it away.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from krononat import client
from krononat.client import NOT_FOUND, Trouble
from krononat.lab import cluster, fabric, leaks, legs, namespaces, overview, routers, servers, steering, stores, switches
from krononat.lab.cluster import Wanted
from krononat.lab.topology import ROUTER, TOPOLOGIES, Topology, home
from routing.fabric import OUTSIDE

RUN = Path("/run/krononat-lab")
STORE = Path("/var/lib/krononat-lab")
NAME = "[a-z][a-z0-9-]{0,9}"
PROGRAMS = ("ip", "ethtool", "nginx", "dnsmasq", "iperf3", "ping", "dig", "curl", "traceroute")
PATIENCE_S = 20.0
KRONONAT = (sys.executable, "-m", "krononat")  # the CLI of this very installation
APPLIANCE_PATIENCE_S = 120.0  # with a cold cache it compiles first

Tell = Callable[[str], None]


class Lab:
    """Namespaces called NAME-NODE, the programs in them, and a folder for their files."""

    def __init__(self, name: str = "kn", topology: Topology = ROUTER, wanted: Wanted | None = None) -> None:
        if not re.fullmatch(NAME, name):
            raise ValueError(f"{name!r} is no name for a laboratory")
        self.name = name
        self.topology = topology
        self.wanted = wanted  # of a cluster
        self.folder = STORE / name
        self.namespace = {node: f"{name}-{node}" for node in topology.nodes}
        self.socket, self.config = self.socket_of(self.first), self.config_of(self.first)

    @classmethod
    def of_cluster(cls, name: str, wanted: Wanted) -> Lab:
        """A cluster as it is wanted."""
        draw = fabric.topology if wanted.routed else cluster.topology
        return cls(name, draw(wanted, STORE / name), wanted)

    @property
    def first(self) -> str:
        """Label of the appliance, or of the first one: its node, or NODE.CORE where a node may have several."""
        return next(iter(self.topology.appliances))

    def label(self, core: str) -> str:
        """Label of the appliance that is a core, SERVER/CORE, of a cluster."""
        return cluster.label(self.wanted or Wanted(), core)

    def label_in(self, node: str) -> str:
        """Label of the first appliance in a node; of the first one at all where the node has none."""
        return next((label for label in self.topology.appliances if home(label) == node), self.first)

    def socket_of(self, label: str) -> Path:
        """Control socket of an appliance."""
        return self.folder / f"{label}.sock"

    def config_of(self, label: str) -> Path:
        """Configuration of an appliance."""
        return self.folder / f"{label}.toml"

    # --- what another process finds ---------------------------------------------------------------------------------

    @property
    def _record(self) -> Path:
        return RUN / f"{self.name}.json"

    @classmethod
    def find(cls, name: str) -> Lab:
        """The laboratory of this name that is up, or was when its process died; Trouble (exit 4) if there is none."""
        try:
            told: dict[str, Any] = json.loads((RUN / f"{name}.json").read_text())
        except FileNotFoundError:
            raise Trouble(f'no laboratory "{name}" is up', "", f"krononat lab up --name {name}", NOT_FOUND) from None
        except ValueError as error:
            path = RUN / f"{name}.json"
            raise Trouble(f"{path} is damaged", str(error), f"remove it and the namespaces {name}-*") from None
        if told.get("wanted"):
            return cls.of_cluster(name, Wanted(**told["wanted"]))
        return cls(name, TOPOLOGIES[told["topology"]])

    def namespace_of(self, node: str) -> str:
        """Name of the node's namespace; Trouble (exit 4) names the nodes if there is no such one."""
        if node not in self.namespace:
            raise Trouble(f'no node "{node}"', "", f"there are: {', '.join(self.namespace)}", NOT_FOUND)
        return self.namespace[node]

    def nodes(self) -> list[dict[str, str]]:
        """What there is: node, namespace, addresses, processes."""
        here = namespaces.existing()
        return [
            {
                "node": node,
                "namespace": name,
                "addresses": " ".join(namespaces.addresses(name)) if name in here else "gone",
                "processes": " ".join(namespaces.programs(name)) if name in here else "gone",
            }
            for node, name in self.namespace.items()
        ]

    # --- up and down ------------------------------------------------------------------------------------------------

    def up(self, appliance: bool = True, tell: Tell = lambda _: None) -> None:
        """Build it all, after clearing away what an earlier run of this name left; whatever fails, nothing stays behind."""
        more = (*switches.programs(self.wanted), *stores.programs(self.wanted)) if self.wanted else ()
        namespaces.need(*PROGRAMS, *more)
        if self._record.exists():
            tell("clearing away what an earlier run left")
            Lab.find(self.name).down()
        taken = set(self.namespace.values()) & namespaces.existing()
        if taken:
            raise Trouble("namespaces of somebody else are in the way", ", ".join(sorted(taken)), "choose another --name")
        RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
        wanted = self.wanted._asdict() if self.wanted else None
        self._record.write_text(json.dumps({"topology": self.topology.name, "wanted": wanted, "process": os.getpid()}))
        try:
            self._build(appliance, tell)
        except BaseException:
            self.down()
            raise

    def _build(self, appliance: bool, tell: Tell) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for label, config in self.topology.appliances.items():
            self.config_of(label).write_text(f'{config}\n[control]\nsocket = "{self.socket_of(label)}"\n')
        tell(f"{len(self.namespace)} namespaces, {len(self.topology.links)} veth pairs")
        namespaces.build(self.topology, self.namespace)
        if self.wanted:
            self._build_cluster(self.wanted, tell)
        self._serve(tell)
        if appliance:
            self.start_speakers()
            tell(f"krononat run: {', '.join(self.topology.appliances)}")
            self.start_appliances()
            overview.until_ready(self, tell)

    def _build_cluster(self, wanted: Wanted, tell: Tell) -> None:
        cluster.furnish(wanted, self.folder, (fabric if wanted.routed else cluster).shunts(wanted))
        if wanted.etcd:
            tell("the map is in etcd")
            stores.start(self)
            stores.fill(self, self.folder / "map.toml")
        if not wanted.routed:
            steering.prepare(self.namespace, wanted)
            return
        tell(f"switches: {', '.join(fabric.nodes(wanted))} ({wanted.tor}), routers: {', '.join(routers.NODES)} (bird)")
        leaks.start(self, [legs.uplink(switch, OUTSIDE).device for switch in fabric.switches(wanted)])
        switches.start(self)

    def _serve(self, tell: Tell) -> None:
        tell("servers: nginx, dnsmasq, iperf3")
        servers.payload(self.folder)
        started = servers.of(self.topology, self.folder)
        for server in started:
            self.start(server.node, server.label, server.words)
        for server in started:
            self._wait_listening(server)

    def down(self) -> None:
        """End every process in the namespaces, the appliances first and gently, and remove everything."""
        here = set(self.namespace.values()) & namespaces.existing()
        appliances = {self.namespace[home(label)] for label in self.topology.appliances}
        for patience_s, number in ((10.0, signal.SIGTERM), (5.0, signal.SIGKILL)):
            for group in (here & appliances, here - appliances):
                _end(group, number, patience_s)
        namespaces.delete(here)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._record.unlink(missing_ok=True)
        for folder in (RUN, STORE):
            with contextlib.suppress(OSError):  # another laboratory is up
                folder.rmdir()

    # --- programs ---------------------------------------------------------------------------------------------------

    def log(self, label: str) -> Path:
        """Where a program's output goes."""
        return self.folder / f"{label}.log"

    def start(self, node: str, label: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program that stays; it has a process group of its own, so that Ctrl-C reaches `lab` and not the laboratory.

        Not a session: Linux shares CPUs out by sessions first (sched(7), autogroup), and niceness counts within one only: a
        switch's daemon that is hurried would not be.
        """
        with self.log(label).open("ab") as log:
            return subprocess.Popen(
                namespaces.inside(self.namespace_of(node), words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                env={**os.environ, "PATH": namespaces.PATH},
            )

    def run(self, node: str, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; neither a failure nor a timeout is an exception (the exit status of a timeout is 124)."""
        line = namespaces.inside(self.namespace_of(node), words)
        environment = {**os.environ, "PATH": namespaces.PATH}
        try:
            return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(line, 124, "", f"no end after {timeout_s:.0f} s")

    def krononat(self, *words: str, node: str = "") -> subprocess.CompletedProcess[str]:
        """Run our own CLI as an operator would, against the appliance of this label (the first one)."""
        label = node or self.first
        return self.run(home(label), *KRONONAT, *words, "--socket", str(self.socket_of(label)), timeout_s=30.0)

    def status(self, label: str = "") -> dict[str, Any]:
        """What an appliance (the first one) says of itself; Trouble if it does not answer."""
        status: dict[str, Any] = client.ask(str(self.socket_of(label or self.first)), {"do": "status"})["status"]
        return status

    def worker(self, label: str = "") -> int:
        """Process number of an appliance's worker."""
        return int(self.status(label)["worker"]["pid"])

    def start_appliances(self, *labels: str) -> None:
        """`krononat run -c FILE` for these appliances (all), ready when their control sockets answer."""
        started = [
            (label, self.start(home(label), f"appliance-{label}", (*KRONONAT, "run", "-c", str(self.config_of(label)))))
            for label in labels or self.topology.appliances
        ]
        deadline = time.monotonic() + APPLIANCE_PATIENCE_S
        for label, process in started:
            self._wait_answering(label, process, deadline)

    def start_speakers(self, *servers: str) -> None:
        """`krononat speaker run` in these servers (all) of a cluster whose switches route."""
        if self.wanted is None or not self.wanted.routed:
            return
        for node in servers or sorted({home(label) for label in self.topology.appliances}):
            configs = [str(self.config_of(label)) for label in self.topology.appliances if home(label) == node]
            self.start(node, f"speaker-{node}", (*KRONONAT, "speaker", "run", *configs))

    def _wait_answering(self, label: str, process: subprocess.Popen[bytes], deadline: float) -> None:
        while True:
            try:
                self.status(label)
                return
            except Trouble as trouble:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Trouble("the appliance did not start", tail(self.log(f"appliance-{label}"))) from trouble
            time.sleep(0.05)

    def _wait_listening(self, server: servers.Server) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.run(server.node, "ss", "-Hltn", f"sport = :{server.port}").stdout.strip():
            if time.monotonic() > deadline:
                raise Trouble(f"{server.label} does not listen on port {server.port}", tail(self.log(server.label)))
            time.sleep(0.02)


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a program's output."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _end(group: set[str], number: signal.Signals, patience_s: float) -> None:
    for process in _processes(group):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
    deadline = time.monotonic() + patience_s
    while _processes(group) and time.monotonic() < deadline:
        time.sleep(0.02)


def _processes(group: set[str]) -> list[int]:
    return [process for namespace in sorted(group) for process in namespaces.processes(namespace)]


@contextlib.contextmanager
def laboratory(name: str = "kn", topology: Topology = ROUTER, tell: Tell = lambda _: None) -> Iterator[Lab]:
    """A laboratory for the length of a `with`; SIGTERM and SIGHUP end it as Ctrl-C does."""
    with living(Lab(name, topology), tell) as lab:
        yield lab


@contextlib.contextmanager
def living(lab: Lab, tell: Tell = lambda _: None) -> Iterator[Lab]:
    """The same with a laboratory that is described already."""
    with ending_in_order():
        try:
            lab.up(tell=tell)
            yield lab
        finally:
            lab.down()


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Who is told to end meanwhile (SIGTERM, SIGHUP) takes back first what was made, as with Ctrl-C."""
    before = {number: signal.signal(number, _terminated) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminated(number: int, _: object) -> None:
    raise SystemExit(128 + number)
