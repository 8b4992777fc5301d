"""BFD as it is configured and shown: which sessions follow from a file, their rows at the start, what is told of them."""

from __future__ import annotations

from ipaddress import IPv4Address

import numpy as np

from krononat import appliance, bfd, config
from krononat.checks_bfd import sessions
from shards import bfd as protocol
from tests.test_config import RIGHT

PEERS = '[bfd]\ninterval-ms = 30\nmultiplier = 4\npeers = ["192.0.2.1", "100.64.0.9"]\n'
BGP = """
[bgp]
local-as = 65010
shard-addresses = "10.255.0.0/24"
[[bgp.peer]]
address = "192.0.2.1"
as = 65000
[[bgp.peer]]
address = "100.64.0.9"
as = 65000
"""
INSIDE, OUTSIDE = (0, IPv4Address("100.64.0.9")), (1, IPv4Address("192.0.2.1"))


def test_sessions_are_those_named_or_with_every_bgp_peer() -> None:
    assert sessions(config.read(RIGHT)) == []
    assert sessions(config.read(RIGHT + PEERS)) == [OUTSIDE, INSIDE]
    assert sessions(config.read(RIGHT + BGP)) == [OUTSIDE, INSIDE]
    assert sessions(config.read(RIGHT + BGP + '[bfd]\npeers = ["192.0.2.9"]\n')) == [(1, IPv4Address("192.0.2.9"))]
    assert sessions(config.read(RIGHT + BGP + "[bfd]\nenabled = false\n")) == []


def test_rows_begin_down_slow_and_with_numbers_of_their_own() -> None:
    read = config.read(RIGHT + PEERS)
    state = appliance.offline(read, random=b"0123456789abcdef")
    rows = state.bfd
    assert len(rows) == 2 and rows["port"].tolist() == [1, 0]
    assert rows["interval"].tolist() == [30_000] * 2 and rows["desired"].tolist() == [protocol.SLOW] * 2
    assert rows["multiplier"].tolist() == [4, 4] and rows["remote_required"].tolist() == [1, 1]
    assert (rows["state"] == protocol.DOWN).all() and rows["random"].all()
    assert len({*rows["discriminator"].tolist(), 0}) == 3
    other = appliance.offline(read, random=b"another 16 bytes")
    assert not set(rows["discriminator"].tolist()) & set(other.bfd["discriminator"].tolist())


def test_without_sessions_there_is_a_row_that_is_none() -> None:
    state = appliance.offline(config.read(RIGHT))
    assert state.bfd["address"].tolist() == [0]
    assert bfd.rows(state, ["in0", "out0"], 0) == [] and not bfd.is_unhealthy(state)


def test_words_and_figures_are_those_of_the_protocol() -> None:
    assert (bfd.STATES, bfd.DIAGNOSTICS, bfd.SLOW) == (protocol.STATES, protocol.DIAGNOSTICS, protocol.SLOW)
    state = appliance.offline(config.read(RIGHT + PEERS))
    for desired, multiplier in ((1_000_000, 3), (10_001, 5), (1, 1)):
        state.bfd["remote_desired"], state.bfd["remote_multiplier"] = desired, multiplier
        assert bfd.detection_ms(state.bfd[0]) == protocol.detection_ticks(state.bfd[0])


def test_what_is_told() -> None:
    state = appliance.offline(config.read(RIGHT + PEERS))
    row = state.bfd[0]
    given = {
        "state": protocol.UP, "remote_state": protocol.UP, "changed_at": 1000, "watched": 1, "remote_multiplier": 3,
        "remote_desired": 50_000, "remote_required": 40_000, "desired": 30_000, "ever_up": 1, "flaps": 2,
    }  # fmt: skip
    for name, value in given.items():
        row[name] = value
    told, silent = bfd.rows(state, ["in0", "out0"], 3500)
    shown = (
        "peer",
        "interface",
        "state",
        "since_s",
        "detect_ms",
        "transmit_ms",
        "receive_ms",
        "flaps",
        "diagnostic",
        "remote_state",
    )
    assert tuple(told[name] for name in shown) == ("192.0.2.1", "out0", "up", 2.5, 150, 40, 50, 2, "none", "up")
    assert (silent["state"], silent["since_s"], silent["detect_ms"], silent["remote_state"]) == ("down", None, None, None)
    assert bfd.summary(state, ["in0", "out0"]) == {"192.0.2.1 at out0": "up", "100.64.0.9 at in0": "down"}


def test_a_core_whose_sessions_are_all_down_is_not_well() -> None:
    state = appliance.offline(config.read(RIGHT + PEERS))
    assert not bfd.is_unhealthy(state), "none was up yet"
    state.bfd["ever_up"] = 1
    assert bfd.is_unhealthy(state)
    state.bfd["state"] = np.array([protocol.UP, protocol.DOWN])
    assert not bfd.is_unhealthy(state)


def test_doubts() -> None:
    quick = RIGHT + '[bfd]\ninterval-ms = 10\npeers = ["192.0.2.1"]\n'
    assert "30 ms of silence" in "\n".join(config.warnings(config.read(quick), quick, "nat.toml"))
    text = RIGHT.replace('name = "outside0"', 'name = "outside0"\nmemif = { socket = "@mf" }') + PEERS
    assert "one ring for all" in "\n".join(config.warnings(config.read(text), text, "nat.toml"))
    assert config.warnings(config.read(RIGHT + PEERS), RIGHT + PEERS, "nat.toml") == []
