"""The devices under test of `bench wire`, each in a `Place` of its own: ours, and the three that it is held against.

All their work is done on one CPU, the generator's and the sink's on the other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from bench import veths
from bench.testpmd import Testpmd
from bench.veths import DEVICE_IN, DEVICE_OUT, GATEWAY_IN, GATEWAY_OUT, POOL, SUBSCRIBERS, Place
from krononat import client
from krononat.client import Trouble
from krononat.lab.namespaces import PATH, command, inside

STARTING_TO_FORWARD_S = 0.05  # testpmd, between being told and doing it
STARTING_S = 150.0  # with a cold cache the appliance compiles first

_CONFIG = """
[server]
name = "bench"
cpu = {cpu}

[interfaces.internal]
name = "in0"
address = "{device_in}/24"
gateway = "{gateway_in}"

[interfaces.external]
name = "out0"
address = "{device_out}/24"
gateway = "{gateway_out}"

[[subscribers]]
prefix = "{subscribers}"
pool = "main"

[[pool]]
name = "main"
prefixes = ["{pool}"]
block-size = 64

[io]
busy-poll = {busy}

[memory]
sessions = {sessions}

[control]
socket = "{socket}"
"""


class Device:
    """What every device under test can: come up in its place, and take traffic for a while."""

    def __init__(self, place: Place, cpu: int) -> None:
        self.place, self.cpu = place, cpu

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """It exists meanwhile."""
        yield

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """It forwards meanwhile; otherwise it leaves the CPU to others."""
        yield


class Forwarding(Device):
    """The kernel as a router. Receive packet steering moves its work from the sender's CPU to the device's own."""

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """Routes and neighbours, and forwarding switched on."""
        self.place.address_device()
        veths.settings(self.place.device, {"ipv4/ip_forward": 1})
        for device in ("in0", "out0"):
            veths.steer(self.place.device, device, self.cpu)
        yield


class Masquerade(Forwarding):
    """The kernel as a NAT: nftables' masquerade over connection tracking."""

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """The router, and a rule for what leaves by out0."""
        with super().up():
            chain = "chain post { type nat hook postrouting priority srcnat; oifname out0 masquerade; };"
            command(*inside(self.place.device, ["nft", f"table ip nat {{ {chain} }}"]))
            yield


class TestpmdXdp(Device):
    """testpmd on AF_XDP, rewriting MAC addresses and nothing else."""

    __test__ = False  # no test of pytest's

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """Two ports, stopped; checksums are the senders' business, for it finishes none."""
        place = self.place
        for name, device in ((place.client, "gen0"), (place.server, "sink0")):
            veths.finish_checksums(name, device)
        stations = (veths.mac(place.client, "gen0"), veths.mac(place.server, "sink0"))
        peers = [f"--eth-peer={port},{mac}" for port, mac in enumerate(stations)]
        devices = ["net_af_xdp0,iface=in0", "net_af_xdp1,iface=out0"]
        with Testpmd(self.cpu, devices, ["--forward-mode=mac", *peers], place.device) as self._running:
            yield

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Only then does it poll."""
        self._running.start()
        try:
            time.sleep(STARTING_TO_FORWARD_S)
            yield
        finally:
            self._running.stop()


class Krononat(Device):
    """The appliance as its users run it: supervisor, worker, configuration."""

    busy = "false"

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """It answers on its control socket."""
        self.place.know_neighbours()
        with (
            tempfile.TemporaryDirectory(prefix="krononat-wire-") as folder,
            appliance(self.place.device, Path(folder), configuration(folder, self.cpu, busy=self.busy)),
        ):
            yield


class BusyKrononat(Krononat):
    """The same, never asleep."""

    busy = "true"


def configuration(folder: str | Path, cpu: int, sessions: int = 200_000, busy: str = "false") -> str:
    """A configuration for a place's device; the control socket is in the folder."""
    return _CONFIG.format(
        cpu=cpu, device_in=DEVICE_IN, device_out=DEVICE_OUT, gateway_in=GATEWAY_IN, gateway_out=GATEWAY_OUT,
        subscribers=SUBSCRIBERS, pool=POOL, busy=busy, sessions=sessions, socket=f"{folder}/krononat.sock",
    )  # fmt: skip


class Running(NamedTuple):
    """An appliance that was spawned; it may be on its way up still."""

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    def answers(self) -> None:
        """Return as soon as it answers on its control socket; Trouble if it ended instead, or that takes too long."""
        latest = time.monotonic() + STARTING_S
        while True:
            try:
                client.ask(str(self.socket), {"do": "status"})
                return
            except Trouble as trouble:
                self.check(latest, trouble)
            time.sleep(0.05)

    def check(self, latest: float, cause: Trouble | None = None) -> None:
        """Trouble with the end of its log if it has ended, or if it is past the latest time (of the monotonic clock)."""
        if self.process.poll() is not None or time.monotonic() > latest:
            raise Trouble("the appliance did not start", self.said()) from cause

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-2000:]


@contextlib.contextmanager
def appliance(namespace: str, folder: Path, config: str) -> Iterator[None]:
    """`krononat run` in a namespace, ready; its configuration, its log and its control socket are in a folder."""
    with spawned(namespace, folder, config, {}) as running:
        running.answers()
        yield


@contextlib.contextmanager
def spawned(namespace: str, folder: Path, config: str, environment: Mapping[str, str]) -> Iterator[Running]:
    """The same from its very beginning, with something added to its environment."""
    path, log = folder / "krononat.toml", folder / "log"
    path.write_text(config)
    words = inside(namespace, [sys.executable, "-m", "krononat", "run", "-c", str(path)])
    with log.open("ab") as out:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, "PATH": PATH, **environment},
        )  # fmt: skip
    try:
        yield Running(process, folder / "krononat.sock", log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
