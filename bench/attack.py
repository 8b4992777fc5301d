"""`krononat bench attack`: three subscribers misbehave, two thousand others go on. Who notices, and is it told who it was?

One appliance on AF_XDP in wires of its own (`bench.veths`), with limits as an operator would have them. Every second frame or
more is an attacker's:

    opener     one host opens 200,000 flows, one after the other and again and again
    fragments  one sends fragments: firsts that nothing follows, and others that no first goes before
    scan       one sends SYNs to every address and port behind the appliance

The others send UDP, half of it of flows that were there before, half of flows that begin meanwhile. What of theirs arrives is
counted at the far end, frame by frame; before the attack they are alone, at the same pace. The pace of it all is far below what
a veth bears on this machine (`bench wire`), so that a loss is the attackers' doing; what the kernel found no room for in the
socket's ring is told beside it, for on a machine whose CPUs others use it is not.

    attack/calm/loss, attack/good/loss     share of the others' packets that did not arrive, before and during the attack
    attack/good/refused                    of their packets, by the appliance's own counters
    attack/*/refused                       of each attacker's
    attack/named                           of the three who were refused most, as `krononat subscribers top` has them: attackers
    attack/opener/sessions                 that the opener holds in the end; his limit is the goal
    attack/told                            ICMP errors about all those refusals: ten a second each at most
    attack/events                          lines of the log about them: one a second each at most
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import devices, generator, report, traffic, veths
from bench.generator import FRAME_BYTES, Flow, frames_of
from bench.report import Result, Told
from bench.sink import Sink
from krononat import client, natlog, usage, view
from krononat.client import Trouble
from shards.refusals import ANSWER_TICKS
from shards.state import TCP, UDP, Array, State
from shards.verdict import ORIGINATED

KIND = "veth"
ATTACKERS = {"opener": "100.64.0.66", "fragments": "100.64.0.77", "scan": "100.64.0.88"}
PARTS = 1 + len(ATTACKERS)  # of the frames the others have one in so many
SESSIONS = 2000  # that a subscriber may have
LIMITS = f"""
[limits]
sessions = {SESSIONS}
ports = 1000
rate = 500
burst = 1000
tcp = {{ reserve = 100 }}
icmp = {{ reserve = 10 }}
"""
_REMOTE = 0xC633640A  # 198.51.100.10
_ELSEWHERE = 9  # where the attackers talk to: not counted
_SETTLING_S = 0.2


class Plan(NamedTuple):
    """How much of it. `flows`: that the opener opens; `pace`: frames a second, the attackers' among them."""

    flows: int = 200_000
    seconds: float = 30.0
    pace: int = 60_000
    calm_s: float = 5.0
    known: int = 20_000  # flows of the others that are there before


def run(quick: bool, told: Told) -> list[Result]:
    """All of it."""
    if not {veths.OUR_CPU, veths.DEVICE_CPU} <= os.sched_getaffinity(0):
        raise Trouble("bench attack needs CPUs 0 and 1", "one makes the traffic, on the other is what is attacked")
    return attack(Plan(seconds=14.0, calm_s=3.0) if quick else Plan(), told)


def attack(plan: Plan, told: Told, name: str = "attack") -> list[Result]:
    """The same of any size."""
    with contextlib.ExitStack() as undoing:
        told("wires and appliance")
        scene = Scene(plan, name, undoing)
        told("the others alone")
        calm = scene.calm()
        told("the attack")
        before = scene.counters()
        good = scene.attack()
        return [*_losses(calm, good), *_verdicts(scene, plan, before)]


# --- frames ---------------------------------------------------------------------------------------------------------------


def good_frames(flow: Flow, count: int, first_port: int) -> Array:
    """A packet of each of `count` flows of the others; their internal ports count from `first_port`."""
    frames = frames_of(flow, count)
    traffic.put(frames, 34, first_port + np.arange(count) // generator.SUBSCRIBERS, 2)
    traffic.write_checksums(frames)
    return frames


def opener_frames(flow: Flow, count: int) -> Array:
    """A packet of each of `count` flows of one host."""
    number = np.arange(count)
    frames = _of("opener", flow, count)
    traffic.put(frames, 30, _REMOTE + number // 50_000, 4)
    traffic.put(frames, 34, 10_000 + number % 50_000, 2)
    traffic.write_checksums(frames)
    return frames


def fragment_frames(flow: Flow, count: int) -> Array:
    """First fragments that nothing follows, and last ones that no first goes before."""
    number = np.arange(count)
    frames = _of("fragments", flow, count)
    first = number % 2 == 0
    traffic.put(frames, 16, np.where(first, 44, 46), 2)
    traffic.put(frames, 18, number // 2, 2)
    traffic.put(frames, 20, np.where(first, 0x2000, 100), 2)
    traffic.put(frames, 34, np.full(count, 4000), 2)
    traffic.put(frames, 38, np.full(count, 826), 2)
    traffic.write_checksums(frames)
    return frames


def scan_frames(flow: Flow, count: int) -> Array:
    """SYNs to every address and port."""
    number = np.arange(count)
    frames = _of("scan", flow, count)
    frames[:, 23] = TCP
    traffic.put(frames, 30, _REMOTE + number % 200, 4)
    traffic.put(frames, 34, np.full(count, 40_000), 2)
    traffic.put(frames, 36, 1 + number // 200, 2)
    frames[:, 38:54] = np.frombuffer(bytes([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xFF, 0xFF, 0, 0, 0, 0]), np.uint8)
    traffic.write_checksums(frames, TCP)
    return frames


def _of(who: str, flow: Flow, count: int) -> Array:
    frames = frames_of(flow, count, _ELSEWHERE)
    traffic.put(frames, 26, np.full(count, int(IPv4Address(ATTACKERS[who]))), 4)
    assert frames[0, 23] == UDP
    return frames


def mixed(flow: Flow, plan: Plan) -> Array:
    """One of the others, one of each attacker, and so on; of the others' by turns a flow that was there, and a new one."""
    frames = np.zeros((plan.flows, PARTS, FRAME_BYTES), np.uint8)
    known, new = good_frames(flow, plan.known, 2000), good_frames(flow, plan.flows // 2, 10_000)
    number = np.arange(plan.flows)
    frames[0::2, 0] = known[number[0::2] // 2 % plan.known]
    frames[1::2, 0] = new[: len(number[1::2])]
    for part, made in enumerate((opener_frames, fragment_frames, scan_frames), 1):
        frames[:, part] = made(flow, plan.flows)
    return frames.reshape(-1, FRAME_BYTES)


# --- the scene ------------------------------------------------------------------------------------------------------------


class Counted(NamedTuple):
    """Of the others: packets that left and that arrived; packets a second of all."""

    sent: int
    arrived: int
    rate: float

    @property
    def loss(self) -> float:
        """Share that did not arrive."""
        return 1 - self.arrived / self.sent


class Scene:
    """An appliance that is up, and what is sent through it."""

    def __init__(self, plan: Plan, name: str, undoing: contextlib.ExitStack) -> None:
        self.plan = plan
        place = undoing.enter_context(veths.Place(name))
        place.know_neighbours()
        folder = Path(undoing.enter_context(tempfile.TemporaryDirectory(prefix="krononat-attack-")))
        text = devices.configuration(folder, veths.DEVICE_CPU, sessions=400_000)
        text = text.replace("[io]", f"{LIMITS}\n[io]\nframes = 65536")
        undoing.enter_context(devices.appliance(place.device, folder, text))
        self._socket = str(folder / "krononat.sock")
        self.state = _memory(self._socket)
        undoing.enter_context(veths.pinned())
        flow = Flow(_mac(place.client, "gen0"), _mac(place.device, "in0"))
        index = veths.ifindex(place.client, "gen0")
        alone, together = good_frames(flow, plan.known, 2000), mixed(flow, plan)
        self._alone = undoing.enter_context(generator.generator(place.client, index, alone))
        self._together = undoing.enter_context(generator.generator(place.client, index, together))
        with veths.entered(place.server):
            self._sink = undoing.enter_context(Sink(veths.ifindex(place.server, "sink0"), generator.PORT))

    def calm(self) -> Counted:
        """The others alone, at the pace that they have under attack; first all of their flows begin."""
        pace = self.plan.pace // PARTS
        self._send(self._alone, 1.1 * self.plan.known / pace, pace, 1)
        return self._send(self._alone, self.plan.calm_s, pace, 1)

    def attack(self) -> Counted:
        """All together."""
        return self._send(self._together, self.plan.seconds, self.plan.pace, PARTS)

    def _send(self, source: generator.Generator, seconds: float, pace: int, parts: int) -> Counted:
        before = self._sink.count()
        sent = source.send(seconds, pace)
        time.sleep(_SETTLING_S)
        return Counted(-(-sent.frames // parts), self._sink.count() - before, sent.frames / sent.seconds)

    def counters(self) -> dict[str, int]:
        """ICMP errors of the appliance's own, and frames for which a ring had no room."""
        ports = client.ask(self._socket, {"do": "status"})["status"]["ports"]
        full = sum(port["sockets"]["rx_ring_full"] for port in ports)
        return {"told": int(self.state.counters[ORIGINATED, 0]), "ring_full": full}


def _mac(namespace: str, device: str) -> bytes:
    return bytes.fromhex(veths.mac(namespace, device).replace(":", ""))


def _memory(socket: str) -> State:
    descriptor = client.memory(socket)
    try:
        return view.open_view(descriptor)
    finally:
        os.close(descriptor)


# --- results --------------------------------------------------------------------------------------------------------------


def _losses(calm: Counted, good: Counted) -> list[Result]:
    return [
        report.measured("attack/calm/loss", "share", [calm.loss]),
        report.measured("attack/good/loss", "share", [good.loss], 0.0, loss=good.loss),
        report.measured("attack/good/lost", "count", [good.sent - good.arrived], 0),
        report.measured("attack/offered", "M/s", [good.rate / 1e6]),
    ]


def _verdicts(scene: Scene, plan: Plan, before: dict[str, int]) -> list[Result]:
    """What limits and counters say."""
    after, found = scene.counters(), {row.prefix.partition("/")[0]: row for row in usage.accounts(scene.state)}
    guilty = {name: found[address] for name, address in ATTACKERS.items()}
    others = sum(row.refused for address, row in found.items() if address not in ATTACKERS.values())
    named = [row.prefix.partition("/")[0] in ATTACKERS.values() for row in usage.top(scene.state, "refused", len(ATTACKERS))]
    events = sum(bool(natlog.event(row).reason) for row in natlog.Reader(scene.state).rows())
    at_most = len(ATTACKERS) * (plan.seconds + 2)
    return [
        report.measured("attack/good/refused", "count", [others], 0),
        *(report.measured(f"attack/{name}/refused", "packets", [row.refused], 1) for name, row in guilty.items()),
        report.measured("attack/named", "hosts", [sum(named)], len(ATTACKERS)),
        report.measured("attack/opener/sessions", "count", [guilty["opener"].sessions], SESSIONS),
        report.measured("attack/told", "count", [after["told"] - before["told"]], at_most * 1000 / ANSWER_TICKS),
        report.measured("attack/events", "count", [events], at_most),
        report.measured("attack/ring_full", "count", [after["ring_full"] - before["ring_full"]]),
    ]


attack_bench = report.command("attack", KIND, run, "Three subscribers misbehave; the others lose nothing.")

if __name__ == "__main__":
    attack_bench()
