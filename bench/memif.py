"""`krononat bench memif`: the loop with I/O over shared memory, ours where testpmd's macswap stands, on the same two cores.

**memif/macswap/rate**: testpmd's flowgen on CPU 0 (memif's server) to testpmd's macswap on CPU 1 (its client, which copies each
frame from one buffer into another). **memif/nat/rate**: the same flowgen, and Krononat in place of macswap: the client as well,
with buffers that are its own, so it copies nothing; a router on a stick, so frames come in and go out, translated, by one port.
Both count what flowgen gets back a second; rings have the same size, flows the same number; one pair after the other forwards,
again and again. flowgen neither paces nor looks at what returns, so what it offers above that is no loss worth a figure. Both
have their packets on 2 MiB pages: **memif/pages/...** is the share of them that is on 4 KiB ones.

**memif/paced/loss**: our own generator in flowgen's place (`bench.paced`: both directions, 100,000 subscribers, every frame
verified) offers 0.9 of the rate just seen: nothing may be lost. **memif/paced/rate** is what it offered,
**memif/paced/lossless** the highest of a few lower rates of which nothing was lost. Beside them stands
**memif/machine/longest_gap_us**: for how long a loop that only looks at the clock is kept from running on the appliance's CPU
while that sleeps. A ring of 4,096 bridges 340 us at 12 M/s; what a virtual machine takes away for longer is lost.

As a reference, and no more than that: Krononat's authors published 6.4 M packets/s a core. They had a network card under it,
which is more work than shared memory; it is not beaten by any figure here.

flowgen's frames come from 10.254.0.0 and go to as many addresses from 10.253.0.0 on as there are flows; it answers no ARP, so
the stations are permanent neighbours of the appliance's tap.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import clock, environment, paced, report, testpmd, veths
from bench.devices import appliance
from bench.report import Result, Told
from bench.testpmd import Testpmd
from krononat import client
from krononat.client import Trouble
from krononat.lab import namespaces
from krononat.lab.namespaces import command
from krononat.memif import Refused, Server

KIND = "memif"
GOAL = 0.8
PACED_SHARE = 0.9
SHARES = (0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)  # of that

GENERATOR_CPU, LOOP_CPU = 0, 1
FLOWS = 50_000  # flowgen has one subscriber, who may have 64 Ki sessions
SETTLING_S, WINDOW_S = 0.2, 0.5
LOG2_ENTRIES = 12  # a fifth of a millisecond at 20 M packets/s: what a virtual machine may be away
NAMESPACE = "wir-memif"
INSIDE, OUTSIDE = (bytes([2, 0, 0, 0, 1, n]) for n in (2, 3))  # stations on the appliance's link
APPLIANCE = bytes.fromhex("000102030401")  # written into flowgen: where all of its frames go
STATIONS = paced.Stations(APPLIANCE, INSIDE, OUTSIDE)
LEARNING_RATE = 1_000_000
CALLING_S = 10.0  # until the appliance has called the next server

_CONFIG = """
[server]
name = "memif"
cpu = {cpu}

[interfaces.both]
name = "port0"
address = "10.0.0.1/24"
internal-gateway = "10.0.0.2"
external-gateway = "10.0.0.3"

[interfaces.both.memif]
socket = "{folder}/memif.sock"
ring-size = {entries}

[io]
frames = 16384

[[subscribers]]
prefix = "10.254.0.0/24"
pool = "main"

[[subscribers]]
prefix = "100.64.0.0/15"
pool = "main"

[[pool]]
name = "main"
prefixes = ["203.0.113.0/24"]
block-size = 64

[memory]
sessions = 500000

[control]
socket = "{folder}/krononat.sock"
"""


class Pair(NamedTuple):
    """flowgen, and the testpmds that must be told to work: itself, and before it macswap, if that sends its frames back."""

    flowgen: Testpmd
    testpmds: tuple[Testpmd, ...]

    def rate(self) -> float:
        """What flowgen gets back, M/s; nobody works before or afterwards."""
        for each in self.testpmds:
            each.start()
        time.sleep(SETTLING_S)
        before = self.flowgen.counts()
        time.sleep(WINDOW_S)
        after = self.flowgen.counts()
        for each in self.testpmds:
            each.stop()
        if after.received == before.received:
            raise Trouble("nothing came back to flowgen", f"it sent {after.sent - before.sent} packets meanwhile")
        return (after.received - before.received) / (after.at - before.at) / 1e6


def run(quick: bool, told: Told) -> list[Result]:
    """All of it. Trouble where something that it needs is missing."""
    need()
    with contextlib.ExitStack() as undoing:
        undoing.enter_context(testpmd.cleaning_up())
        folder = undoing.enter_context(tempfile.TemporaryDirectory(prefix="krononat-memif-"))
        undoing.enter_context(_namespace())
        told("testpmd and testpmd")
        base = undoing.enter_context(_testpmds(f"{folder}/base.sock"))
        told("testpmd and Krononat")
        generator = undoing.enter_context(_flowgen(f"{folder}/memif.sock"))
        worker = undoing.enter_context(_krononat(Path(folder)))
        results = _alternated(base, Pair(generator, (generator,)), 5 if quick else 15, told)
        results += _pages(worker, base.testpmds[0].pid)  # of what they have touched by now
        generator.close()
        nat = next(result.value for result in results if result.name == "memif/nat/rate")
        return results + _paced(f"{folder}/memif.sock", int(PACED_SHARE * nat * 1e6), 5 if quick else 15, told)


def need() -> None:
    """Trouble unless this machine has testpmd, and two CPUs."""
    testpmd.need()
    if not {GENERATOR_CPU, LOOP_CPU} <= os.sched_getaffinity(0):
        raise Trouble("bench memif needs CPUs 0 and 1", "one makes the traffic, on the other is what is measured")


@contextlib.contextmanager
def _namespace() -> Iterator[None]:
    """A network namespace with the appliance's tap, which must have the address that flowgen sends to."""
    namespaces.delete([NAMESPACE])
    command("ip", "netns", "add", NAMESPACE)
    try:
        veths.settings(NAMESPACE, {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        command("ip", "-n", NAMESPACE, "tuntap", "add", "dev", "port0", "mode", "tap")
        command("ip", "-n", NAMESPACE, "link", "set", "port0", "address", APPLIANCE.hex(":"))
        yield
    finally:
        namespaces.delete([NAMESPACE])


def _device(role: str, socket: str) -> str:
    return f"net_memif0,role={role},id=0,socket={socket},socket-abstract=no,rsize={LOG2_ENTRIES}"


def _flowgen(socket: str) -> Testpmd:
    return Testpmd(GENERATOR_CPU, [_device("server", socket)], ["--forward-mode=flowgen", f"--flowgen-flows={FLOWS}"])


@contextlib.contextmanager
def _testpmds(socket: str) -> Iterator[Pair]:
    macswap = Testpmd(LOOP_CPU, [_device("client", socket)], ["--forward-mode=macswap"])
    with _flowgen(socket) as flowgen, macswap:
        yield Pair(flowgen, (macswap, flowgen))


@contextlib.contextmanager
def _krononat(folder: Path) -> Iterator[int]:
    """The appliance, which calls at memif.sock until somebody answers there; process number of its worker."""
    config = _CONFIG.format(cpu=LOOP_CPU, folder=folder, entries=1 << LOG2_ENTRIES)
    with appliance(NAMESPACE, folder, config):
        for address, station in (("10.0.0.2", INSIDE), ("10.0.0.3", OUTSIDE)):
            words = ("neighbour", "replace", address, "lladdr", station.hex(":"), "dev", "port0", "nud", "permanent")
            command("ip", "-n", NAMESPACE, *words)
        yield int(client.ask(f"{folder}/krononat.sock", {"do": "status"})["status"]["worker"]["pid"])


def _pages(worker: int, macswap: int) -> list[Result]:
    """Both sides of the ratio have their packets on 2 MiB pages, or the ratio says so."""
    return [
        report.measured("memif/pages/krononat", "share", [environment.small_share(worker, "krononat-frames")], 0.0),
        report.measured("memif/pages/macswap", "share", [environment.small_share(macswap, "memfd:seg_")], 0.0),
    ]


def _alternated(base: Pair, ours: Pair, rounds: int, told: Told) -> list[Result]:
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        told(f"round {number + 1} of {rounds}")
        for pair, found in zip((base, ours), rates, strict=True):
            found.append(pair.rate())
    macswap, nat = rates
    return [
        report.measured("memif/macswap/rate", "M/s", macswap),
        report.measured("memif/nat/rate", "M/s", nat),
        report.ratio("memif/nat/ratio", nat, macswap, GOAL),
    ]


def _paced(socket: str, rate: int, rounds: int, told: Told) -> list[Result]:
    """Offer `rate` packets/s, several times, then less, until nothing is lost."""
    with _on_cpu(LOOP_CPU):
        gaps = [clock.longest_gap(int(WINDOW_S * 1e9), clock.new_box()) / 1000 for _ in range(rounds)]
    told("the paced generator learns")
    with _on_cpu(GENERATOR_CPU), _learnt(socket) as (link, rows):
        outcomes = []
        for number in range(rounds):
            told(f"the paced generator, round {number + 1} of {rounds}")
            outcomes.append(paced.measure(link, rows, rate, WINDOW_S))
        lower = [paced.measure(link, rows, int(rate * share), WINDOW_S) for share in SHARES]
    if wrong := sum(outcome.wrong for outcome in outcomes + lower):
        raise Trouble(f"{wrong} frames came back wrong", "the translation is not what it was when it was learnt")
    loss = [outcome.loss for outcome in outcomes]
    lossless = max([outcome.rate for outcome in outcomes + lower if outcome.loss == 0], default=0.0)
    return [
        report.measured("memif/paced/rate", "M/s", [outcome.rate for outcome in outcomes], loss=max(loss)),
        report.measured("memif/paced/loss", "share", loss, 0.0),
        report.measured("memif/paced/lossless", "M/s", [lossless], loss=0.0),
        report.measured("memif/machine/longest_gap_us", "us", gaps),
    ]


@contextlib.contextmanager
def _on_cpu(cpu: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _learnt(socket: str) -> Iterator[tuple[paced.Link, paced.Rows]]:
    """The appliance as client of our generator, which knows what must come back for each of its frames."""
    try:
        with Server(socket) as server, contextlib.closing(server.accept(CALLING_S)) as peer:
            link = paced.link(peer)
            rows = paced.new_rows(STATIONS)
            paced.learn(link, rows, LEARNING_RATE)
            paced.answer(rows, STATIONS)
            yield link, rows
    except (Refused, TimeoutError, RuntimeError) as error:
        raise Trouble("the paced generator got nowhere", str(error)) from error


memif = report.command("memif", KIND, run, "The loop with I/O over memif, beside testpmd.")

if __name__ == "__main__":
    memif()
