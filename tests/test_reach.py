"""What reaches another core, over real wires of different MTU."""

from __future__ import annotations

import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from krononat.reach import EACH, PATIENCE, Reach
from shards.state import Sizes, new_state
from tests.veth import Wires

pytestmark = pytest.mark.lab

SIZES = Sizes(**{**dict.fromkeys(Sizes._fields, 1), "extents": 2, "buckets": 4, "neighbours": 4, "peers": 4})


def test_the_largest_size_that_comes_back(wires: Wires) -> None:
    """Wires of 2,000 and of 1,500 bytes, and one with nobody at its other end; the first becomes narrower."""
    state = new_state(SIZES)
    state.peers["address"][1:] = [int(IPv4Address(f"10.7.{row}.2")) for row in range(3)]
    with selectors.DefaultSelector() as selector:
        with wires.core.entered():
            reach = Reach(state, IPv4Address("10.7.9.1"), selector)
        now = 1_000_000
        _ask(reach, selector, now)
        assert state.peers["mtu"].tolist() == [0, 1600, 1500, 0]
        wires.peers[0].ip("link set peer0 mtu 1544")
        wires.core.ip("link set port0 mtu 1544")
        for _ in range(PATIENCE // EACH + 1):
            now += EACH
            _ask(reach, selector, now)
        assert state.peers["mtu"].tolist() == [0, 1544, 1500, 0]
        reach.close()


def test_of_several_legs_the_narrowest_that_lives_counts(wires: Wires) -> None:
    """One core beyond both wires; by its kernel's own choice it would always be the first."""
    state = new_state(SIZES)
    state.peers["address"][1] = int(IPv4Address("10.8.0.2"))
    for row in range(2):
        wires.peers[row].ip("addr add 10.8.0.2/32 dev lo")
        wires.core.ip(f"route add 10.8.0.2/32 via 10.7.{row}.2 metric {row + 1}")
    with selectors.DefaultSelector() as selector:
        with wires.core.entered():
            reach = Reach(state, IPv4Address("10.7.9.1"), selector, ["port0", "port1"])
        now = 1_000_000
        _ask(reach, selector, now)
        assert state.peers["mtu"][1] == 1500
        wires.peers[1].ip("link set peer1 down")
        for _ in range(PATIENCE // EACH + 1):
            now += EACH
            _ask(reach, selector, now)
        assert state.peers["mtu"][1] == 1600
        reach.close()


def _ask(reach: Reach, selector: selectors.BaseSelector, now: int) -> None:
    """A question, its answers, and the conclusion."""
    reach.turn(now)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        for key, _ in selector.select(0.05):
            key.data()
    reach.turn(now + EACH)


@pytest.fixture
def wires() -> Iterator[Wires]:
    with Wires((1, 1, 1)) as made:
        made.core.ip("addr add 10.7.9.1/32 dev lo")
        for row, mtu in enumerate((2000, 1500, 1500)):
            made.core.ip(f"addr add 10.7.{row}.1/24 dev port{row}")
            made.core.ip(f"link set port{row} mtu {mtu}")
            made.peers[row].ip(f"link set peer{row} mtu {mtu}")
            if row < 2:
                made.peers[row].ip(f"addr add 10.7.{row}.2/24 dev peer{row}")
                made.peers[row].ip(f"route add 10.7.9.1/32 via 10.7.{row}.1")
        yield made


def test_loading_the_supervisor_loads_no_compiler() -> None:
    """It says that it compiles nothing only when it runs; a compiler that is there before would be half on, half off."""
    told = "import sys, krononat.supervisor; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told]).returncode == 0
