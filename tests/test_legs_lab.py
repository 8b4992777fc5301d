"""Two legs of each side to two routers, on real wires: a link goes down under traffic, and comes back.

            ┌─ ra ─┐ ina   outa ┌─ ra ─┐
    client ─┤      ├─── core ───┤      ├─ server
            └─ rb ─┘ inb   outb └─ rb ─┘

The client and the server send by rb alone, so what is lost is lost by the core; and all that the core sends by ra answers what
came by rb. Each packet of 32 flows (sixteen subscribers, two remotes) is numbered, and comes back once.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from krononat import client
from tests.netns import Namespace, namespace
from tests.place import PATIENCE_S, until

pytestmark = pytest.mark.lab

CONFIG = """
[server]
name = "krnlg"
[[interfaces.internal]]
name = "ina"
address = "10.1.0.2/24"
gateway = "10.1.0.1"
[[interfaces.internal]]
name = "inb"
address = "10.1.1.2/24"
gateway = "10.1.1.1"
[[interfaces.external]]
name = "outa"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
[[interfaces.external]]
name = "outb"
address = "198.18.0.2/24"
gateway = "198.18.0.1"
[interfaces.loopback]
address = "10.254.0.1/24"
[memory]
sessions = 10000
[[subscribers]]
prefix = "100.64.0.0/24"
pool = "main"
[[pool]]
name = "main"
prefixes = ["203.0.113.0/28"]
[control]
socket = "SOCKET"
"""
SUBSCRIBERS = [f"100.64.0.{host}" for host in range(16, 32)]  # so many that not all fall to one leg
REMOTES = ["198.51.100.9", "198.51.100.10"]

ECHO = """
import select, socket, sys
sockets = []
for address in sys.argv[1:]:
    sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sockets[-1].bind((address, 7))
print("ready", flush=True)
while True:
    for each in select.select(sockets, [], [])[0]:
        each.sendto(*each.recvfrom(2048))
"""

# One packet of every flow each 10 ms until told to stop; then a line of JSON: by flow, ms of the clock at which each that did
# not come back was sent, and how many were sent at all.
STREAM = """
import json, select, socket, sys, time
subscribers, remotes = sys.argv[1].split(","), sys.argv[2].split(",")
flows = []
for address in subscribers:
    for remote in remotes:
        flows.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        flows[-1].bind((address, 0))
        flows[-1].connect((remote, 7))
        flows[-1].setblocking(False)
out, sent, due, end = [{} for _ in flows], 0, time.monotonic(), None
while end is None or time.monotonic() < end:
    if end is None and select.select([sys.stdin], [], [], 0)[0]:
        end = time.monotonic() + 0.5
    if end is None:
        for flow, unanswered in zip(flows, out):
            unanswered[sent] = time.monotonic()
            try:
                flow.send(str(sent).encode())
            except OSError:
                pass
        sent += 1
    due += 0.01
    while (left := due - time.monotonic()) > 0:
        for flow in select.select(flows, [], [], left)[0]:
            out[flows.index(flow)].pop(int(flow.recv(64)), None)
for flow, unanswered in zip(flows, out):
    while select.select([flow], [], [], 0)[0]:
        unanswered.pop(int(flow.recv(64)), None)
print(json.dumps({"sent": sent * len(flows), "lost": [sorted(unanswered.values()) for unanswered in out]}))
"""


class Place:
    """The five namespaces and an appliance."""

    def __init__(self, folder: Path, spaces: dict[str, Namespace]) -> None:
        self.spaces, self.core = spaces, spaces["core"]
        self.socket, self.log = str(folder / "krnlg.sock"), folder / "krnlg.log"
        self.config = folder / "krnlg.toml"
        self.config.write_text(CONFIG.replace("SOCKET", self.socket))
        for end, other, number in (("c", "ra", 0), ("c", "rb", 1), ("s", "ra", 2), ("s", "rb", 3)):
            self._wire(end, f"{other}0", f"10.3.{number}.2/24", other, f"{end}0", f"10.3.{number}.1/24")
        for name, router, net in (
            ("ina", "ra", "10.1.0"),
            ("inb", "rb", "10.1.1"),
            ("outa", "ra", "192.0.2"),
            ("outb", "rb", "198.18.0"),
        ):
            self._wire("core", name, "", router, name, f"{net}.1/24")
        for host in (*SUBSCRIBERS, *REMOTES):
            spaces["c" if host in SUBSCRIBERS else "s"].ip(f"addr add {host}/32 dev lo")
        for router, number, inner, outer in (("ra", 0, "10.1.0.2", "192.0.2.2"), ("rb", 1, "10.1.1.2", "198.18.0.2")):
            told = spaces[router]
            told.ip(f"route add 100.64.0.0/24 via 10.3.{number}.2")
            told.ip(f"route add 198.51.100.0/24 via 10.3.{2 + number}.2")
            told.ip(f"route add 203.0.113.0/28 via {outer}")
            told.ip(f"route add default via {inner} table 100")
            told.ip("rule add iif c0 lookup 100")
        spaces["c"].ip("route add default via 10.3.1.1")
        spaces["s"].ip("route add default via 10.3.3.1")

    def _wire(self, left: str, name: str, address: str, right: str, other: str, its: str) -> None:
        here, there = self.spaces[left], self.spaces[right]
        here.ip(f"link add {name} type veth peer name {other} netns {there.name}")
        there.ip(f"addr add {its} dev {other}")
        there.ip(f"link set {other} up")
        if address:
            here.ip(f"addr add {address} dev {name}")
            here.ip(f"link set {name} up")

    @contextlib.contextmanager
    def appliance(self) -> Iterator[None]:
        """A running one."""
        with self.log.open("w") as log:
            process = self.core.start(sys.executable, "-m", "krononat", "run", "-c", str(self.config), stdout=log, stderr=log)
        try:
            until(lambda: self.answers() or process.poll() is not None, PATIENCE_S)
            assert process.poll() is None, self.log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(20)

    def answers(self) -> bool:
        """Whether it is ready."""
        with contextlib.suppress(client.Trouble):
            return bool(self.status())
        return False

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        told: dict[str, Any] = client.ask(self.socket, {"do": "status"})["status"]
        return told

    def legs(self) -> dict[str, str]:
        """How each port is doing."""
        return {port["interface"]: port["leg"] for port in self.status()["ports"]}

    def sent_by(self, *names: str) -> list[int]:
        """Packets that have left the core by ports, as the other ends count them."""
        told = [self.spaces["ra" if name.endswith("a") else "rb"].ip(f"-s -j link show {name}") for name in names]
        return [int(json.loads(text)[0]["stats64"]["rx"]["packets"]) for text in told]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        spaces = {name: stack.enter_context(namespace(f"krnlg-{name}")) for name in ("core", "ra", "rb", "c", "s")}
        for name, space in spaces.items():
            space.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
            space.run("sysctl", "-qw", f"net.ipv4.ip_forward={int(name in ('ra', 'rb'))}")
        yield Place(tmp_path, spaces)


class Stream:
    """The flows, while the block lasts; then what they have lost."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __enter__(self) -> Stream:
        pipe = subprocess.PIPE
        self._echo = self._place.spaces["s"].start(sys.executable, "-c", ECHO, *REMOTES, stdout=pipe)
        assert self._echo.stdout and self._echo.stdout.readline() == "ready\n"
        told = ",".join(SUBSCRIBERS), ",".join(REMOTES)
        self._flows = self._place.spaces["c"].start(sys.executable, "-c", STREAM, *told, stdin=pipe, stdout=pipe)
        return self

    def __exit__(self, *_: object) -> None:
        told, _error = self._flows.communicate("stop\n", timeout=30)
        self._echo.kill()
        self._echo.communicate()
        self.sent, self._lost = json.loads(told)["sent"], json.loads(told)["lost"]

    def lost(self, since: float, until: float) -> int:
        """Packets that were sent in an interval of the monotonic clock, and did not come back."""
        return sum(since <= at < until for flow in self._lost for at in flow)


def test_a_link_goes_down_under_traffic_and_comes_back(place: Place) -> None:
    """What was under way on the wire is lost, and what the kernel takes to tell of it; on the way back nothing is."""
    ra = place.spaces["ra"]
    with place.appliance():
        with Stream(place) as stream:
            time.sleep(1)
            begun, before = time.monotonic(), place.sent_by("ina", "inb", "outa", "outb")
            time.sleep(1)
            quiet, during = time.monotonic(), place.sent_by("ina", "inb", "outa", "outb")
            assert all(now > then + 50 for then, now in zip(before, during, strict=True)), (before, during)
            for name in ("outa", "ina"):
                ra.ip(f"link set {name} down")
            until(lambda: place.legs() == {"ina": "no carrier", "outa": "no carrier", "inb": "up", "outb": "up"}, 5)
            time.sleep(1)
            down = time.monotonic()
            for name, route in (("outa", "203.0.113.0/28 via 192.0.2.2"), ("ina", "default via 10.1.0.2 table 100")):
                ra.ip(f"link set {name} up")
                ra.ip(f"route replace {route}")
            until(lambda: set(place.legs().values()) == {"up"}, 5)
            after = place.sent_by("ina", "outa")
            until(lambda: all(now > then + 100 for then, now in zip(after, place.sent_by("ina", "outa"), strict=True)), 5)
            time.sleep(1)
            end = time.monotonic()
        told = {"before": stream.lost(begun, quiet), "down": stream.lost(quiet, down), "back": stream.lost(down, end)}
        print(f"{stream.sent} packets sent and awaited, 3200 a second; lost {told}")
        assert told["before"] == told["back"] == 0
        assert told["down"] < 320  # 100 ms of all flows; it is a few ms where the CPUs are not shared
        said = place.log.read_text()
        assert said.count("the carrier is lost") == said.count("the carrier is there") == 2


def test_a_leg_that_is_set_down_here_gets_its_routes_again_and_the_core_answers_by_each(place: Place) -> None:
    with place.appliance():
        assert [line.split()[2] for line in place.core.ip("route show default").splitlines()] == ["192.0.2.1", "198.18.0.1"]
        place.core.ip("link set outa down")
        until(lambda: place.legs()["outa"] == "no carrier", 5)
        assert _answers(place.spaces["rb"], "198.18.0.2")
        place.core.ip("link set outa up")
        until(lambda: place.legs()["outa"] == "up", 5)
        until(lambda: place.core.ip("route show default").count("default") == 2, 5)
        for router, address in (("ra", "192.0.2.2"), ("ra", "10.1.0.2"), ("rb", "10.1.1.2"), ("rb", "198.18.0.2")):
            assert _answers(place.spaces[router], address), address
        place.spaces["rb"].ip("route add 10.254.0.1/32 via 10.1.1.2")
        assert _answers(place.spaces["rb"], "10.254.0.1")
        place.spaces["rb"].ip("route replace 10.254.0.1/32 via 198.18.0.2")
        assert not _answers(place.spaces["rb"], "10.254.0.1"), "an internal address of the core, from outside"
    assert place.core.ip("-o addr show lo").count("10.254.0.1") == 0


def _answers(where: Namespace, address: str) -> bool:
    return "1 received" in where.run("ping", "-c1", "-W1", address, check=False).stdout
