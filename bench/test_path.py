"""The whole path in memory under pytest-benchmark: `pytest bench/test_path.py`. A round is 64 Ki packets."""

from __future__ import annotations

from typing import Any

import pytest

from bench import path, traffic
from shards.state import TCP, UDP
from shards.verdict import RECEIVED

ROWS = 1 << 16


@pytest.mark.parametrize("flows", [1_000, 50_000])
@pytest.mark.parametrize("protocol", [UDP, TCP], ids=["udp", "tcp"])
def test_established(benchmark: Any, protocol: int, flows: int) -> None:
    """Every frame once, outbound and inbound; what came out last is verified."""
    scene = traffic.build(flows, ROWS, protocol=protocol)
    original = scene.frames.copy()

    def laid_anew() -> None:
        scene.frames[:] = original

    before = int(scene.state.counters[RECEIVED, 0])
    run = (scene.state, scene.frames, scene.burst, ROWS, 2, traffic.NOW + 1000)
    benchmark.pedantic(traffic.run, run, setup=laid_anew, warmup_rounds=1, rounds=20)
    path.verify(scene, traffic.packets_of(original), traffic.packets_of(scene.frames))
    rounds, rest = divmod(int(scene.state.counters[RECEIVED, 0]) - before, ROWS)
    assert rounds > 0 and rest == 0
