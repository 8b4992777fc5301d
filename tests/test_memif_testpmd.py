"""Real clients and servers whose packets come and go by memif, through Debian's testpmd: used, killed, restarted."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from krononat import client
from tests import dpdk
from tests.netns import Namespace, namespace
from tests.place import PATIENCE_S, until

pytestmark = [pytest.mark.lab, pytest.mark.company]

MEGABYTES = 32
CONFIG = """
[server]
name = "krnmf"
[interfaces.internal]
name = "in0"
address = "100.64.0.1/24"
memif = { socket = "SOCKET/memif.sock", id = 0 }
[interfaces.external]
name = "out0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
OUTSIDE
[memory]
sessions = 10000
[[subscribers]]
prefix = "100.64.0.0/24"
pool = "main"
[[pool]]
name = "main"
prefixes = ["192.0.2.64/30"]
[control]
socket = "SOCKET/krnmf.sock"
"""


class Place:
    """A client, testpmd, the core and a server, each in its namespace; `xdp`: the outside is a veth of the core itself."""

    def __init__(self, folder: Path, xdp: bool, held: ExitStack) -> None:
        self.folder, self.xdp, self.held = folder, xdp, held
        self.inside, self.switch, self.core, self.outside = (
            held.enter_context(namespace(f"krnmf{os.getpid()}{'x' * xdp}-{name}")) for name in ("c", "t", "n", "s")
        )
        self._wire(self.switch, "to-in", self.inside)
        self._wire(*((self.core, "out0") if xdp else (self.switch, "to-out")), self.outside)
        self.inside.ip("addr add 100.64.0.9/24 dev eth0")
        self.outside.ip("addr add 192.0.2.1/24 dev eth0")
        self.inside.ip("route add default via 100.64.0.1")
        self.payload = random.Random(1).randbytes(MEGABYTES << 20)
        (folder / "www").mkdir()
        (folder / "www" / "payload").write_bytes(self.payload)
        serving = ("python3", "-m", "http.server", "-d", str(folder / "www"), "80")
        self._start(held, self.outside, *serving, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        told = "" if xdp else f'memif = {{ socket = "{folder}/memif.sock", id = 1 }}'
        (folder / "krnmf.toml").write_text(CONFIG.replace("SOCKET", str(folder)).replace("OUTSIDE", told))

    @staticmethod
    def _wire(near: Namespace, device: str, far: Namespace) -> None:
        """A veth whose ends finish their checksums themselves: nobody between them would."""
        near.ip(f"link add {device} type veth peer name eth0 netns {far.name}")
        for where, name in ((near, device), (far, "eth0")):
            where.run("ethtool", "-K", name, "tx", "off", "rx", "off", "gro", "off")
            where.ip(f"link set {name} up promisc on")

    @staticmethod
    def _start(held: ExitStack, where: Namespace, *command: str, **options: Any) -> subprocess.Popen[str]:
        process = where.start(*command, **options)
        held.callback(process.wait, 20)
        held.callback(process.terminate)
        return process

    def run(self) -> None:
        """Start the appliance; the memif server may come later."""
        command = (sys.executable, "-m", "krononat", "run", "-c", str(self.folder / "krnmf.toml"))
        log = (self.folder / "krnmf.log").open("w")
        process = self._start(self.held, self.core, *command, stdout=log, stderr=log)
        until(lambda: self.answers() or process.poll() is not None, PATIENCE_S)
        assert process.poll() is None, (self.folder / "krnmf.log").read_text()

    def testpmd(self) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """The memif server, with its own log."""
        devices = ["to-in"] if self.xdp else ["to-in", "to-out"]
        return dpdk.serving(self.switch, self.folder / "memif.sock", devices, self.folder / "testpmd.log")

    def answers(self) -> bool:
        """Whether the appliance is there."""
        with contextlib.suppress(client.Trouble):
            return bool(self.status())
        return False

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        told: dict[str, Any] = client.ask(str(self.folder / "krnmf.sock"), {"do": "status"})["status"]
        return told

    def links(self) -> list[str]:
        """Whether each memif port is connected."""
        return [port["memif"]["link"] for port in self.status()["ports"] if "memif" in port]

    def until_connected(self) -> None:
        """The server has come, and so have the neighbours' addresses."""
        until(lambda: set(self.links()) == {"up"}, 60)
        until(lambda: self.ping("192.0.2.1", 1) == 1, 30)

    def ping(self, address: str, count: int = 3) -> int:
        """Answers that the client gets."""
        told = self.inside.run("ping", "-c", str(count), "-i", "0.1", "-W", "2", address, check=False).stdout
        return told.count("bytes from")

    def download(self) -> subprocess.Popen[str]:
        """The client fetches the payload; slowly enough that something can happen meanwhile."""
        command = ("curl", "-sS", "-m", "60", "--limit-rate", "16M", "http://192.0.2.1/payload", "-o", str(self.folder / "got"))
        return self.inside.start(*command)

    def got(self, download: subprocess.Popen[str]) -> bool:
        """Whether all of it arrived."""
        assert download.wait(70) == 0
        return hashlib.sha256((self.folder / "got").read_bytes()).digest() == hashlib.sha256(self.payload).digest()


@pytest.fixture(scope="module", params=["memif", "xdp"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Running, with nobody at the other end yet."""
    with ExitStack() as held:
        made = Place(tmp_path_factory.mktemp("krnmf"), request.param == "xdp", held)
        made.run()
        yield made


def test_it_is_used_killed_and_restarted(place: Place) -> None:
    ports = 1 if place.xdp else 2
    assert place.links() == ["down"] * ports
    with place.testpmd():
        place.until_connected()
        assert place.ping("100.64.0.1") == place.ping("192.0.2.2") == 3  # the core's own addresses, by its taps
        assert place.ping("192.0.2.1") == 3
        assert place.got(place.download())

        worker = place.status()["worker"]
        download = place.download()
        until(lambda: (place.folder / "got").stat().st_size > 1 << 20, 20)
        os.kill(worker["pid"], signal.SIGKILL)
        assert place.got(download)
        assert place.status()["worker"]["restarts"] == worker["restarts"] + 1
        _is_accounted_for(place)
    until(lambda: place.links() == ["down"] * ports, 10)
    worker = place.status()["worker"]
    with place.testpmd():
        place.until_connected()
        assert place.got(place.download())
        status = place.status()
        assert status["worker"]["pid"] == worker["pid"]
        assert [port["memif"]["connections"] for port in status["ports"] if "memif" in port] == [2] * ports
        assert status["worker"]["late_compilations"] == 0


def _is_accounted_for(place: Place) -> None:
    status = place.status()
    inside = status["ports"][0]
    assert inside["xdp_mode"] == "memif" and "testpmd" not in inside["memif"]["peer"]
    assert inside["memif"]["peer"].startswith("DPDK")
    assert inside["steering"]["not_ip"] > 0 and inside["steering"]["own_address"] >= 3 and inside["memif"]["from_kernel"] >= 3
    assert inside["memif"]["bad_descriptors"] == 0
    packets = status["packets"]
    fates = sum(packets.get(fate, 0) for fate in ("forward", "punt", "shunt", "hold", "control", "drop"))
    assert packets["received"] == fates
    assert packets["punt"] == sum(
        count for port in status["ports"] for name, count in port["steering"].items() if name not in ("redirected", "no_socket")
    )


def test_a_neighbour_that_does_not_answer_can_be_told(place: Place) -> None:
    """As generators are: they know no ARP, and their address is written into the kernel's table on the tap."""
    with place.testpmd():
        place.until_connected()
        place.core.ip("neigh replace 100.64.0.77 lladdr 02:00:00:00:00:77 dev in0 nud permanent")
        assert "PERMANENT" in place.core.ip("neigh show dev in0")
