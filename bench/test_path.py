"""The whole path in memory under pytest-benchmark: `pytest bench/test_path.py`. A round is 64 Ki packets."""

from __future__ import annotations

from typing import Any

import pytest

from bench import path, traffic
from shards.verdict import RECEIVED

ROWS = 1 << 16


@pytest.mark.parametrize("flows", [1_000, 50_000])
def test_established_udp(benchmark: Any, flows: int) -> None:
    """Every frame once, outbound and inbound; what came out last is verified."""
    scene = traffic.build(flows, ROWS)
    original, received = scene.frames.copy(), [int(scene.state.counters[RECEIVED, 0])]

    def laid_anew() -> None:
        scene.frames[:] = original
        received.append(ROWS)

    run = (scene.state, scene.frames, scene.burst, ROWS, 2, traffic.NOW + 1000)
    benchmark.pedantic(traffic.run, run, setup=laid_anew, warmup_rounds=1, rounds=20)
    path.verify(scene, original)
    assert int(scene.state.counters[RECEIVED, 0]) == sum(received)
