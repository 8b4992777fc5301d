"""`krononat bench path`: packets a second of the whole path in memory, one core, established UDP flows in random order.

Frames are 60 bytes (64 on the wire), 256 bytes apart, and more than the last-level cache holds; even rows are outbound,
odd ones inbound.

Each repetition translates every frame once; then all that came out is verified: nothing lost, every checksum right,
TTL one less, each outbound source the external endpoint of its session. Laying the frames anew is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np

from bench import report, traffic
from bench.report import Result
from shards.state import Array
from shards.verdict import FORWARDED_IN, FORWARDED_OUT

GOAL = 10.0  # M packets/s at 1 M sessions
LADDER = {"10k": 10_000, "1M": 1_000_000}
ROWS = 1 << 20  # 256 MiB of frames


@click.command()
@click.option("-o", "output", type=click.Choice(["json", "table"]), default="table", help="How to print.")
@click.option("--quick", is_flag=True, help="Fewer repetitions; under 50 s.")
def path(output: str, quick: bool) -> None:
    """Measure the in-memory path: packets/s, with environment and loss.

    Example: krononat bench path -o json
    """
    env = report.environment()
    results = [measure(name, flows, 3 if quick else 9) for name, flows in LADDER.items()]
    if output == "json":
        click.echo(report.as_json(results, env))
    else:
        report.show(results, env)
    if any(result.loss for result in results):
        raise SystemExit(1)


def measure(name: str, flows: int, repetitions: int, clock: Callable[[], float] = time.perf_counter) -> Result:
    """Rate over the repetitions (median, lowest, highest) and the loss over all of them."""
    scene = traffic.build(flows, ROWS)
    original = scene.frames.copy()
    rates, lost = [], 0
    for _ in range(repetitions + 1):
        scene.frames[:] = original
        forwarded = _forwarded(scene)
        begun = clock()
        traffic.run(scene.state, scene.frames, scene.burst, ROWS, 2, traffic.NOW + 1000)
        rates.append(ROWS / (clock() - begun) / 1e6)
        lost += ROWS - (_forwarded(scene) - forwarded)
        verify(scene, original)
    counted = sorted(rates[1:])  # the first one warms
    value = counted[len(counted) // 2]
    goal = GOAL if flows == 1_000_000 else None
    fine = None if goal is None else value >= goal
    loss = lost / (ROWS * (repetitions + 1))
    return Result(f"path/udp/{name}/rate", value, "M/s", counted[0], counted[-1], goal, fine, loss)


def _forwarded(scene: traffic.Scene) -> int:
    return int(scene.state.counters[FORWARDED_OUT, 0]) + int(scene.state.counters[FORWARDED_IN, 0])


def verify(scene: traffic.Scene, original: Array) -> None:
    """RuntimeError unless every frame is a right translation of what it was."""
    before, after = traffic.packets_of(original), traffic.packets_of(scene.frames)
    _expect("IPv4 checksums", traffic.ip_sum(after) == 0xFFFF)
    _expect("UDP checksums", traffic.udp_sum(after) == 0xFFFF)
    _expect("TTL one less", after[:, 22] == traffic.TTL - 1)
    _expect("payloads untouched", (after[:, 42:] == before[:, 42:]).all(axis=1))
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
    used = external[external > 0]
    _expect("no external endpoint twice", np.array([len(np.unique(used)) == len(used)]))
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
