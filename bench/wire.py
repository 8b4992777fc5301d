"""`krononat bench wire`: AF_XDP on veth, ours beside testpmd on AF_XDP, the kernel's forwarding, and its nft masquerade.

Each of the four stands in wires of its own, all alike (`bench.veths`), and gets the same frames from the same generator
(`bench.generator`): 64-byte UDP of 40,000 flows, outbound. They are measured in turn, again and again.

**What is counted.** A rate is the highest at which no more than 0.5 % is lost (CSIT's partial drop rate, `bench.search`):
offered is what the generator sent by its own count, delivered what a counter saw at the far end; the loss stands beside it. A
saturating load would be unfair: the kernel, drowned by a second CPU, forwards a third of what it can.

**Who pays for what.** CPU 0 has the generator, and since on a veth the receiver's softirq runs where the sender does, it also
pays for what a driver does: for users of AF_XDP the XDP program and the copy into the socket's frame, for the kernel an skb and
GRO. Receive packet steering then hands over to CPU 1, as the socket's ring does. CPU 1 has the device: everything from there to
the far end's counter. So each gets the same help from the other CPU, and on none of them anything else runs.

**Latency** is under 20,000 probes/s, from `send` on a packet socket to the return of `recv` (`bench.probes`). "ours" sleeps
when there is nothing to do, as configured by default; "ours-busy" is the same with `busy-poll = true`, as testpmd always is.

**TCP** is iperf3's, one connection. The kernel's two forward super-packets of 64 KiB (GSO), AF_XDP sees every segment.
testpmd finishes no checksums, so its end points do that themselves; the others' leave it to the device.

Figures on veth are functional: never to be mixed with those of memif, memory or a network card.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator

import numpy as np

from bench import generator, report, testpmd, veths
from bench.devices import BusyKrononat, Device, Forwarding, Krononat, Masquerade, TestpmdXdp
from bench.probes import PORT as PROBES_PORT
from bench.probes import Probes
from bench.report import Result, Told
from bench.search import Trial, highest
from bench.sink import Sink
from krononat.client import Trouble
from krononat.lab.namespaces import inside

KIND = "veth"
GOALS = {"testpmd": 0.9, "masquerade": 1.2}

LOWEST, HIGHEST = 200_000.0, 1_600_000.0  # packets/s: what the first search lies between
NEAR = 1.3  # the searches after it: that far around what was found
TRIAL_S, SETTLING_S = 0.25, 0.02
PROBES_A_SECOND = 20_000
WARMING_RATE = 100_000


class Subject:
    """A device under test with all that is needed to try it."""

    def __init__(self, name: str, kind: type[Device], undoing: contextlib.ExitStack) -> None:
        self.place = undoing.enter_context(veths.Place(name))
        self.device = kind(self.place, veths.DEVICE_CPU)
        undoing.enter_context(self.device.up())
        flow = generator.Flow(self._mac(self.place.client, "gen0"), self._mac(self.place.device, "in0"))
        index = veths.ifindex(self.place.client, "gen0")
        frames = generator.frames_of(flow)
        self._generator = undoing.enter_context(generator.generator(self.place.client, index, frames))
        with veths.entered(self.place.server):
            self._sink = undoing.enter_context(Sink(veths.ifindex(self.place.server, "sink0"), generator.PORT))
        self._probes = Probes(self.place, generator.frames_of(flow, PROBES_A_SECOND // 10, PROBES_PORT))
        undoing.callback(self._probes.close)
        self._found = 0.0

    @staticmethod
    def _mac(namespace: str, device: str) -> bytes:
        return bytes.fromhex(veths.mac(namespace, device).replace(":", ""))

    def warm(self) -> None:
        """Every flow once, slowly, so that all of them are known."""
        with self.device.working():
            self.attempt(WARMING_RATE, 1.2 * generator.FLOWS / WARMING_RATE)

    def attempt(self, rate: int, seconds: float = TRIAL_S) -> Trial:
        """Offer so many packets a second for a while."""
        before = self._sink.count()
        sent = self._generator.send(seconds, rate)
        time.sleep(SETTLING_S)
        return Trial(sent.frames / sent.seconds, (self._sink.count() - before) / sent.seconds)

    def search(self, steps: int) -> Trial:
        """The highest rate it bears; the next search begins near what this one found."""
        low, high = (self._found / NEAR, self._found * NEAR) if self._found else (LOWEST, HIGHEST)
        with self.device.working():
            trial = highest(self.attempt, low, high, steps)
        self._found = trial.offered
        return trial

    def probe(self, seconds: float) -> tuple[float, float, float]:
        """Median and 99th percentile of the time under way in µs, and the loss."""
        with self.device.working():
            times, loss = self._probes.measure(seconds, PROBES_A_SECOND)
        if not len(times):
            raise Trouble("no probe came through", f"{self.place.device} forwarded none of them")
        return float(np.percentile(times, 50)), float(np.percentile(times, 99)), loss

    def tcp(self, seconds: int) -> float:
        """Gbit/s of one TCP connection, client to server."""
        with self.device.working(), _iperf_server(self.place.server):
            words = ["iperf3", "-J", "-c", veths.SERVER, "-B", veths.CLIENT, "-t", str(seconds)]
            done = subprocess.run(inside(self.place.client, words), capture_output=True, text=True, timeout=60, check=False)
        told = json.loads(done.stdout or "{}")
        if "end" not in told or "sum_received" not in told["end"]:
            raise Trouble("iperf3 got nothing through", str(told.get("error", done.stderr)))
        return float(told["end"]["sum_received"]["bits_per_second"]) / 1e9


@contextlib.contextmanager
def _iperf_server(namespace: str) -> Iterator[None]:
    words = inside(namespace, ["iperf3", "-s", "-1"])
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        time.sleep(0.2)  # until it listens
        yield
    finally:
        server.terminate()
        server.wait(5)


DEVICES: dict[str, type[Device]] = {
    "ours": Krononat,
    "testpmd": TestpmdXdp,
    "forwarding": Forwarding,
    "masquerade": Masquerade,
}


def run(quick: bool, told: Told) -> list[Result]:
    """All of it. Trouble where something that it needs is missing."""
    need()
    with testpmd.cleaning_up(), contextlib.ExitStack() as undoing:
        subjects = {}
        for name, kind in DEVICES.items():
            told(f"{name}: wires and device")
            subjects[name] = Subject(name, kind, undoing)
        with veths.pinned():
            for subject in subjects.values():
                subject.warm()
            results = _rates(subjects, 2 if quick else 7, told)
            latencies = _latencies(subjects, 0.3 if quick else 2.0, told)
            streams = _streams(subjects, (1,) if quick else (5, 5, 5), told)
        told("ours-busy: wires and device")  # last: it leaves the CPU to nobody
        busy = {"ours-busy": Subject("busy", BusyKrononat, undoing)}
        with veths.pinned():
            latencies += _latencies(busy, 0.3 if quick else 2.0, told)
    return results + latencies + streams


def need() -> None:
    """Trouble unless this machine has what is compared, and two CPUs."""
    testpmd.need()
    missing = [program for program in ("ip", "nft", "ethtool", "iperf3") if not shutil.which(program)]
    if missing:
        packages = {"ip": "iproute2", "nft": "nftables"}
        told = " ".join(packages.get(program, program) for program in missing)
        raise Trouble(f"bench wire lacks {', '.join(missing)}", "", f"apt-get install --no-install-recommends {told}")
    if not {veths.OUR_CPU, veths.DEVICE_CPU} <= os.sched_getaffinity(0):
        raise Trouble("bench wire needs CPUs 0 and 1", "one makes the traffic, on the other is what is measured")


def _rates(subjects: dict[str, Subject], rounds: int, told: Told) -> list[Result]:
    trials: dict[str, list[Trial]] = {name: [] for name in subjects}
    for number in range(rounds):
        for name, subject in subjects.items():
            told(f"64-byte UDP, round {number + 1} of {rounds}: {name}")
            trials[name].append(subject.search(4 if number else 6))
    results = []
    rates = {name: [trial.delivered / 1e6 for trial in tried] for name, tried in trials.items()}
    for name, tried in trials.items():
        loss = statistics.median(trial.loss for trial in tried)
        results.append(report.measured(f"wire/udp64/{name}/rate", "M/s", rates[name], loss=loss))
    for name in ("testpmd", "masquerade", "forwarding"):
        results.append(report.ratio(f"wire/udp64/vs_{name}", rates["ours"], rates[name], GOALS.get(name)))
    return results


def _latencies(subjects: dict[str, Subject], seconds: float, told: Told) -> list[Result]:
    results = []
    for name, subject in subjects.items():
        told(f"latency: {name}")
        tries = [subject.probe(seconds) for _ in range(3)]
        loss = statistics.median(lost for _, _, lost in tries)
        for column, percentile in enumerate(("p50", "p99")):
            samples = [times[column] for times in tries]
            results.append(report.measured(f"wire/latency/{name}/{percentile}", "us", samples, loss=loss))
    return results


def _streams(subjects: dict[str, Subject], seconds: tuple[int, ...], told: Told) -> list[Result]:
    results = []
    for name, subject in subjects.items():
        told(f"TCP: {name}")
        results.append(report.measured(f"wire/tcp/{name}/rate", "Gbit/s", [subject.tcp(each) for each in seconds]))
    return results


wire = report.command("wire", KIND, run, "AF_XDP on veth, beside the kernel and testpmd.")

if __name__ == "__main__":
    wire()
