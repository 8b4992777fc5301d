"""Whether ports have a carrier, by the kernel's word, on real wires."""

from __future__ import annotations

import select
import time

import pytest
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from krononat.carrier import Carriers, News, read
from shards.state import Sizes, State, new_state
from tests.veth import Wires

SIZES = Sizes(**{**dict.fromkeys(Sizes._fields, 1), "extents": 2, "buckets": 4, "neighbours": 4, "ports": 3})


def told(kind: int, index: int, flags: int) -> bytes:
    message = ifinfmsg().load({"header": {"type": kind}, "index": index, "flags": flags})
    message.encode()
    return bytes(message.data)


def test_a_carrier_is_up_and_lower_up() -> None:
    up, lower_up = 1, 1 << 16
    news = [(RTM_NEWLINK, up | lower_up), (RTM_NEWLINK, up), (RTM_NEWLINK, lower_up), (RTM_DELLINK, up | lower_up)]
    messages = b"".join(told(kind, 7 + number, flags) for number, (kind, flags) in enumerate(news))
    assert list(read(messages)) == [News(7, True), News(8, False), News(9, False), News(10, False)]
    assert list(read(b"")) == list(read(bytes(16))) == []
    for length in range(len(told(*(RTM_NEWLINK, 7, 1)))):
        assert list(read(messages[:length])) == []  # cut short: nothing, but no error either


def heard(carriers: Carriers, wanted: list[int]) -> bool:
    """Whether just these rows change within a second; each at most once."""
    rows: list[int] = []
    end = time.monotonic() + 1
    while len(rows) < len(wanted) and time.monotonic() < end:
        select.select([carriers], [], [], 0.05)
        rows += carriers.listen()
    return sorted(rows) == wanted


def lost(state: State) -> list[int]:
    return [int(port["carrier_lost"]) for port in state.ports]


@pytest.mark.lab
def test_what_goes_down_at_either_end_or_goes_away_has_no_carrier() -> None:
    state = new_state(SIZES)
    with Wires((1, 1, 1)) as wires:
        with wires.core.entered():
            wires.peers[2].ip("link set peer2 down")
            carriers = Carriers(state, [wires.core.index(f"port{row}") for row in range(3)])
        assert heard(carriers, [2]) and lost(state) == [0, 0, 1]  # so it was from the start
        wires.peers[0].ip("link set peer0 down")
        assert heard(carriers, [0]) and lost(state) == [1, 0, 1]
        wires.core.ip("link set port1 down")
        assert heard(carriers, [1]) and lost(state) == [1, 1, 1]
        wires.core.ip("link add other type veth peer name another")
        wires.peers[0].ip("link set peer0 up")
        wires.core.ip("link set port1 up")
        assert heard(carriers, [0, 1]) and lost(state) == [0, 0, 1]
        wires.core.ip("link del port1")
        assert heard(carriers, [1]) and lost(state) == [0, 1, 1]
        carriers.close()
