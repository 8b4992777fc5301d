"""`krononat bench path`: the whole packet path in memory, one core, beside the bare lookup of the same packets' keys.

Established UDP and TCP flows in random order, frames of 60 bytes (64 on the wire), even rows outbound, odd ones inbound; the
index at load 0.8, half of the sessions a backup's (see `traffic`). Frames come as a card delivers them: into a memory of
16 Ki frames, used again and again, so they lie in the second or third level of cache and sessions do not.

Each repetition translates a million frames; then all that came out is verified: nothing lost, every checksum right, TTL one
less, each outbound source the external endpoint of its session. Laying frames down is not timed. By turns with it, the
same keys in the same order are looked up and nothing else, from two columns that already hold them: `.../lookup/rate`.
`.../ratio` is the share of that rate which the path keeps, though it also reads and writes every frame and every session.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bench import report, traffic
from bench.report import Result, Told
from shards import cuckoo, nat, parse
from shards.burst import BURST, Burst
from shards.jit import hot
from shards.state import TCP, UDP, Array, State
from shards.verdict import FORWARDED_IN, FORWARDED_OUT

Clock = Callable[[], float]

KIND = "memory"
GOALS = {"10k": None, "1M": 0.6, "8M": 0.5}  # of the bare lookup's rate
LADDER = {"10k": 10_000, "1M": 1_000_000, "8M": 8_000_000}
ROWS = 1 << 20
DELIVERED = 1 << 14  # frames at once; 4 MiB, of which headers are a quarter
BATCHES = (64, 128, 256)  # of the bare lookup, which is given its best


class Turns(NamedTuple):
    """Rates by turns, M/s, and the share of packets that did not come out."""

    path: list[float]
    lookup: list[float]
    loss: float


def run(quick: bool, told: Told) -> list[Result]:
    """Rates of the path and of the lookup, and their ratio, by protocol and number of sessions."""
    results = []
    for protocol, name in ((UDP, "udp"), (TCP, "tcp")):
        for size, flows in LADDER.items():
            if quick and (protocol, size) == (TCP, "8M"):
                continue
            told(f"{name}, {size} sessions")
            turns = measure(traffic.flows_at_load(flows), protocol, 5 if quick else 15)
            results += _results(f"path/{name}/{size}", turns, GOALS[size])
    return results


def _results(name: str, turns: Turns, goal: float | None) -> list[Result]:
    return [
        report.measured(f"{name}/rate", "M/s", turns.path, loss=turns.loss),
        report.measured(f"{name}/lookup/rate", "M/s", turns.lookup),
        report.ratio(f"{name}/ratio", turns.path, turns.lookup, goal, turns.loss),
    ]


def measure(
    flows: int, protocol: int, repetitions: int, rows: int = ROWS, clock: Callable[[], float] = time.perf_counter
) -> Turns:
    """Translate all frames, then look all their keys up, by turns; RuntimeError where a frame comes out wrong."""
    scene = traffic.build(flows, rows, protocol=protocol)
    before, refs = traffic.packets_of(scene.frames).copy(), np.zeros(rows, np.int64)
    after = np.zeros_like(before)
    key0, key1 = np.zeros((2, rows), np.uint64)
    keys_of(scene.state, scene.frames, scene.burst, rows, key0, key1)
    batch = max(BATCHES, key=lambda size: _lookup_rate(scene.state, key0, key1, refs, size, clock))
    paths, lookups, lost = [], [], 0
    for _ in range(repetitions + 1):
        forwarded = _forwarded(scene)
        paths.append(rows / translate(scene, before, after, clock) / 1e6)
        lookups.append(_lookup_rate(scene.state, key0, key1, refs, batch, clock))
        lost += rows - (_forwarded(scene) - forwarded)
        verify(scene, before, after)
        _expect("lookups", refs > 0)
    return Turns(paths[1:], lookups[1:], lost / (rows * (repetitions + 1)))  # the first one warms


def translate(scene: traffic.Scene, before: Array, after: Array, clock: Clock) -> float:
    """Seconds that all packets of `before` took; what came out is in `after`: uint8 (rows, PACKET_BYTES) both.

    Little is copied, for what the copying leaves dirty in the caches is written to memory while the clock runs: whole slots of
    256 bytes took a third of the rate.
    """
    memory, spent = np.zeros(DELIVERED * traffic.FRAME_BYTES, np.uint8), 0.0
    delivered = traffic.packets_of(memory)
    for at in range(0, len(before), DELIVERED):
        some = before[at : at + DELIVERED]
        delivered[: len(some)] = some
        begun = clock()
        traffic.run(scene.state, memory, scene.burst, len(some), 2, traffic.NOW + 1000)
        spent += clock() - begun
        after[at : at + len(some)] = delivered[: len(some)]
    return spent


@hot
def keys_of(state: State, frames: Array, burst: Burst, rows: int, key0: Array, key1: Array) -> None:
    """The keys that the path would look up for each frame."""
    for row in range(rows):
        burst.at[0] = row * traffic.FRAME_BYTES + traffic.HEADROOM
        burst.length[0] = traffic.PACKET_BYTES
        burst.port[0] = row % 2
        parse.parse(state, frames, burst, 0)
        nat.choose_key(state, burst, 0)
        key0[row] = burst.key0[0]
        key1[row] = burst.key1[0]


@hot
def look_up(state: State, key0: Array, key1: Array, refs: Array, verdicts: Array, batch: int) -> None:
    """Look up every key, `batch` at a time."""
    for at in range(0, len(key0), batch):
        end = min(at + batch, len(key0))
        cuckoo.lookup_bulk(state, key0[at:end], key1[at:end], refs[at:end], verdicts, end - at)


def _lookup_rate(state: State, key0: Array, key1: Array, refs: Array, batch: int, clock: Clock) -> float:
    verdicts = np.zeros(BURST, np.int64)
    look_up(state, key0[:batch], key1[:batch], refs[:batch], verdicts, batch)  # compiles, the first time
    begun = clock()
    look_up(state, key0, key1, refs, verdicts, batch)
    return len(key0) / (clock() - begun) / 1e6


def _forwarded(scene: traffic.Scene) -> int:
    return int(scene.state.counters[FORWARDED_OUT, 0]) + int(scene.state.counters[FORWARDED_IN, 0])


def verify(scene: traffic.Scene, before: Array, after: Array) -> None:
    """RuntimeError unless every frame is a right translation of what it was."""
    _expect("IPv4 checksums", traffic.ip_sum(after) == 0xFFFF)
    _expect("UDP and TCP checksums", traffic.transport_sum(after) == 0xFFFF)
    _expect("TTL one less", after[:, 22] == traffic.TTL - 1)
    _expect("payloads untouched", (after[:, 54:] == before[:, 54:]).all(axis=1))
    _expect("remote endpoints untouched", _same(before[0::2], after[0::2], (30, 34), (36, 38)))
    _expect("remote endpoints untouched, inbound", _same(before[1::2], after[1::2], (26, 30), (34, 36)))
    _expect_inverse(scene, after)


def _same(before: Array, after: Array, *spans: tuple[int, int]) -> Array:
    fine = np.ones(len(before), bool)
    for low, high in spans:
        fine &= (before[:, low:high] == after[:, low:high]).all(axis=1)
    return fine


def _expect_inverse(scene: traffic.Scene, after: Array) -> None:
    """Each flow has one external endpoint, no two flows the same, and what comes back reaches the flow's own subscriber."""
    out_flows, in_flows = scene.order[0::2], scene.order[1::2]
    external = np.zeros(scene.flows, np.uint64)
    external[out_flows] = _endpoint(after[0::2], 26, 34)
    _expect("one external endpoint a flow", external[out_flows] == _endpoint(after[0::2], 26, 34))
    used = np.sort(external[external > 0])
    _expect("no external endpoint twice", used[1:] != used[:-1])
    internal = np.zeros(scene.flows, np.uint64)
    internal[in_flows] = _endpoint(after[1::2], 30, 36)
    expected = traffic.internal_endpoint(in_flows)
    _expect("answers reach their subscriber", internal[in_flows] == expected)


def _endpoint(packets: Array, address: int, port: int) -> Array:
    value = np.zeros(len(packets), np.uint64)
    for at in (*range(address, address + 4), port, port + 1):
        value = value << np.uint64(8) | packets[:, at].astype(np.uint64)
    return value


def _expect(what: str, fine: Array) -> None:
    if not fine.all():
        raise RuntimeError(f"{what}: wrong in {int((~fine).sum())} of {len(fine)} frames")


path = report.command("path", KIND, run, "The packet path in memory, beside the bare lookup of its keys.")

if __name__ == "__main__":
    path()
