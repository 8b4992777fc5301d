"""The bench of connections counts what it says: a small one runs and verifies itself, and what is missing is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from bench import connections, conntrack, flows, traffic
from bench.report import Result
from shards.jit import PURE

ROWS = 1024 if PURE else 8192


@pytest.mark.parametrize(("remotes", "log"), [(1, "sessions"), (4, "off")])
def test_a_small_cycle_makes_and_ends_every_session(remotes: int, log: str) -> None:
    cycles = connections.rates(remotes, log, ROWS, 1)
    assert len(cycles) == 1 and all(cycle.made > 0 and cycle.ended > 0 for cycle in cycles)


def test_a_session_that_could_not_be_made_is_noticed() -> None:
    scene = connections.build(ROWS, 1, "off")
    scene.state.pools["blocks_free"] = 1
    with pytest.raises(RuntimeError, match="sessions made: counted"):
        connections._cycle(scene, flows.frames_of(np.arange(ROWS), 1), ROWS, connections.NOW)


def test_frames_are_right_and_each_flow_s_own() -> None:
    packets = traffic.packets_of(flows.frames_of(np.arange(4000), 4))
    assert (traffic.ip_sum(packets) == 0xFFFF).all()
    assert len({packet[26:38].tobytes() for packet in packets}) == 4000
    assert len({packet[26:30].tobytes() + packet[34:36].tobytes() for packet in packets}) == 1000


def test_the_pace_of_ends_is_measured_against_that_of_beginnings() -> None:
    slow: Result = connections._pace([connections.Cycle(3.0, 2.0)])
    assert slow.name == "connections/expiry/rate" and slow.ok is False
    assert connections._pace([connections.Cycle(2.0, 3.0)]).ok is True


def test_lost_packets_of_the_churn_are_told() -> None:
    breaths = connections.Churn(np.array([100.0, 900.0, 200.0]), 4_000_000, 3)
    _, longest, alive = connections._steady(breaths)
    assert (longest.value, longest.low) == (900.0, 200.0) and longest.loss == 3 / (3 * 2048)
    assert alive.value == 4.0


@pytest.mark.lab
def test_the_kernel_makes_an_entry_for_every_flow() -> None:
    (result,) = conntrack.results(1)
    assert result.name == "connections/kernel/rate" and result.value > 0
    assert result.loss is not None and result.loss < 0.5
