"""The benches measure what they say: small ones, for their verification and their shape; never for their speed."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bench import path, report, traffic
from shards.jit import PURE


def small() -> traffic.Scene:
    return traffic.build(64, 256) if PURE else traffic.build(1000, 4096)


def test_every_flow_is_translated_and_verified() -> None:
    scene = small()
    original = scene.frames.copy()
    rows = len(scene.order)
    traffic.run(scene.state, scene.frames, scene.burst, rows, 2, traffic.NOW + 1000)
    path.verify(scene, original)


@pytest.mark.parametrize("at", [22, 24, 30, 41, 55])
def test_a_wrong_byte_is_seen(at: int) -> None:
    scene = small()
    original = scene.frames.copy()
    traffic.run(scene.state, scene.frames, scene.burst, len(scene.order), 2, traffic.NOW + 1000)
    traffic.packets_of(scene.frames)[6, at] ^= 1
    with pytest.raises(RuntimeError, match="wrong in 1 of"):
        path.verify(scene, original)


def test_results_have_one_shape() -> None:
    result = report.Result("path/udp/10k/rate", 1.5, "M/s", 1.0, 2.0, loss=0.0)
    told = json.loads(report.as_json([result], report.environment()))
    assert told["results"] == [asdict(result)]
    assert set(told["results"][0]) == {"name", "value", "unit", "low", "high", "goal", "ok", "loss"}
    assert told["env"]["cpu"] and told["env"]["kind"] == "memory"
