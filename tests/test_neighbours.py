"""Next hops through the kernel: a real namespace with a veth, whose other end answers ARP, moves, and falls silent."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest
from pyroute2.netlink import NLMSG_DONE, nlmsg

from krononat import neighbours
from krononat.neighbours import Neighbours, read
from shards import neighbours as table
from shards.state import FAILED, REACHABLE, WANTED, Sizes, State, new_state
from tests.netns import Namespace, namespace
from tests.place import until

THERE = 0x0A63_0002


def test_what_is_not_a_neighbour_message_is_passed_over() -> None:
    done = nlmsg().load({"header": {"type": NLMSG_DONE}})
    done.encode()
    message = neighbours.question(7, IPv4Address(THERE))
    for nothing in (b"", bytes(16), bytes(done.data) * 2):
        assert list(read(nothing, [7])) == []
        assert [news[:2] for news in read(message + nothing + message, [7])][:1] == [(7, IPv4Address(THERE))]
    assert list(read(message, [8])) == []
    for length in range(len(message)):
        assert list(read(message[:length], [7])) == []  # cut short: nothing, but no error either


def test_a_row_knows_whose_address_it_has() -> None:
    state, low = a_state(), 0xFE80_0000_0A63_0002
    four = table.want(state, 0, THERE, 0)
    six, other = (table.want6(state, 0, np.uint64(high), np.uint64(low), 0) for high in (0xFE80 << 48, 0x2600 << 48))
    assert len({four, six, other}) == 3
    told = [neighbours.address_of(state.neighbours[row]) for row in (four, six, other)]
    assert told == [IPv4Address(THERE), *(IPv6Address(high << 112 | low) for high in (0xFE80, 0x2600))]
    assert table.find6(state, 0, np.uint64(0xFE80 << 48), np.uint64(low)) == six and table.find(state, 0, THERE) == four
    for port, high in ((1, 0xFE80 << 48), (0, 0)):
        assert table.find6(state, port, np.uint64(high), np.uint64(low)) == 0
    asked = neighbours.question(7, IPv6Address(0xFE80 << 112 | low))
    assert [news.address for news in read(asked, [7])] == [IPv6Address(0xFE80 << 112 | low)]


@pytest.fixture
def wire() -> Iterator[tuple[Namespace, Namespace]]:
    with namespace("krnnb-a") as here, namespace("krnnb-b") as there:
        here.ip("link add va type veth peer name vb netns krnnb-b")
        here.ip("addr add 10.99.0.1/24 dev va")
        there.ip("addr add 10.99.0.2/24 dev vb")
        here.ip("link set va up")
        there.ip("link set vb up")
        here.ip("route add 10.98.0.0/24 via 10.99.0.2")
        yield here, there


def a_state() -> State:
    return new_state(Sizes(1, 64, 1, 4, 1, 1, 1, 1, 1, 1, 2, 1, 1, 256))


def serve_until(service: Neighbours, reached: Callable[[], bool], seconds: float, ahead: int = 0) -> bool:
    """`ahead`: ticks by which the service's clock is; the kernel has its own."""
    end = time.monotonic() + seconds
    while not reached() and time.monotonic() < end:
        select.select([service], [], [], 0.05)
        now = time.monotonic_ns() // 1_000_000 + ahead
        service.listen(now)
        service.serve(now)
    return reached()


def mac_of(state: State, row: int) -> str:
    return ":".join(f"{byte:02x}" for byte in state.neighbours[row]["own_mac"])


@pytest.mark.lab
def test_neighbours_are_resolved_move_and_fail(wire: tuple[Namespace, Namespace]) -> None:
    here, there = wire
    state = a_state()
    with here.entered():
        service = Neighbours(state, [here.index("va")])
    try:
        row, silent = table.want(state, 0, THERE, 0), table.want(state, 0, THERE + 9, 0)
        rows = state.neighbours
        assert serve_until(service, lambda: bool(rows[row]["own_state"] == REACHABLE), 5)
        assert mac_of(state, row) == there.mac("vb")
        assert rows[silent]["own_state"] == WANTED
        assert state.core[0]["neighbours_version"] > 0

        there.ip("link set vb address 02:00:00:00:0b:0b")
        there.run("python3", "-c", GRATUITOUS, "vb", "02:00:00:00:0b:0b", "10.99.0.2")
        assert serve_until(service, lambda: mac_of(state, row) == "02:00:00:00:0b:0b", 3)
        assert rows[row]["own_state"] == REACHABLE

        assert serve_until(service, lambda: bool(rows[silent]["own_state"] == FAILED), 10)
        there.ip("addr add 10.99.0.11/24 dev vb")
        assert serve_until(service, lambda: bool(rows[silent]["own_state"] == REACHABLE), 15, ahead=5000)
    finally:
        service.close()


@pytest.mark.lab
def test_what_the_kernel_knows_already_is_taken_at_once(wire: tuple[Namespace, Namespace]) -> None:
    here, _ = wire
    here.ip("neigh add 10.99.0.77 lladdr 02:00:00:00:00:77 dev va nud permanent")
    state = a_state()
    with here.entered():
        service = Neighbours(state, [here.index("va")])
    try:
        service.listen(0)
        row = table.want(state, 0, 0x0A63_004D, 0)
        assert service.serve(0)
        assert (mac_of(state, row), int(state.neighbours[row]["own_state"])) == ("02:00:00:00:00:77", REACHABLE)
    finally:
        service.close()


@pytest.mark.lab
def test_a_large_table_is_taken_in_over_several_calls(wire: tuple[Namespace, Namespace]) -> None:
    here, _ = wire
    count = 3 * neighbours.PORTION
    adding = "for i in $(seq %d); do echo neigh add 10.98.$((i / 250)).$((i %% 250)) lladdr 02:00:00:00:00:77 dev va; done"
    here.run("sh", "-c", f"({adding % count}) | ip -batch -")
    state = a_state()
    with here.entered():
        service = Neighbours(state, [here.index("va")])
    try:
        last = table.want(state, 0, 0x0A62_0000 + (count // 250 << 8) + count % 250, 0)
        service.listen(0)
        assert select.select([service], [], [], 0)[0]
        assert serve_until(service, lambda: bool(state.neighbours[last]["own_state"] == REACHABLE), 5)
    finally:
        service.close()


@pytest.mark.lab
def test_many_neighbours_are_walked_in_portions(wire: tuple[Namespace, Namespace]) -> None:
    here, there = wire
    for last in range(20, 60):
        there.ip(f"addr add 10.99.0.{last}/24 dev vb")
    state = a_state()
    with here.entered():
        service = Neighbours(state, [here.index("va")])
    try:
        rows = np.array([table.want(state, 0, 0x0A63_0000 + last, 0) for last in range(20, 60)])
        assert serve_until(service, lambda: bool((state.neighbours[rows]["own_state"] == REACHABLE).all()), 5)
        assert len(service.describe()) == 40
    finally:
        service.close()


# A gratuitous ARP request (RFC 5227 3: an announcement), as a station sends whose MAC has changed.
GRATUITOUS = """
import socket, sys
name, mac, address = sys.argv[1:]
mac, address = bytes.fromhex(mac.replace(":", "")), socket.inet_aton(address)
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x806))
raw.bind((name, 0))
raw.send(b"\\xff" * 6 + mac + bytes.fromhex("08060001080006040001") + mac + address + bytes(6) + address)
"""


@pytest.mark.lab
def test_a_gateway_must_answer_again_once_its_carrier_is_back(wire: tuple[Namespace, Namespace]) -> None:
    here, there = wire
    state = a_state()
    with here.entered():
        service = Neighbours(state, [here.index("va")])
    try:
        row, other = table.want(state, 0, THERE, 0), table.want(state, 0, THERE + 9, 0)
        state.neighbours[row]["kept"] = 1
        reachable = lambda: bool(state.neighbours[row]["own_state"] == REACHABLE)  # noqa: E731
        assert serve_until(service, reachable, 5)
        there.ip("link set vb down")
        until(lambda: "NO-CARRIER" in here.ip("link show va"), 3)
        service.doubt(0)
        assert state.neighbours[row]["own_state"] == state.neighbours[other]["own_state"] == WANTED
        assert mac_of(state, row) == there.mac("vb") and not serve_until(service, reachable, 0.3)
        there.ip("link set vb address 02:00:00:00:0b:0c")
        there.ip("link set vb up")
        until(lambda: "NO-CARRIER" not in here.ip("link show va"), 3)
        service.doubt(0)
        assert serve_until(service, reachable, 5)
        assert mac_of(state, row) == "02:00:00:00:0b:0c"
        version = int(state.core[0]["neighbours_version"])
        service.doubt(0)  # nothing has happened: what the kernel believes in is believed at once, and it is told so
        assert state.core[0]["neighbours_version"] > version and serve_until(service, reachable, 5)
    finally:
        service.close()


@pytest.mark.lab
def test_neighbours_of_ipv6_are_resolved_by_discovery(wire: tuple[Namespace, Namespace]) -> None:
    here, there = wire
    here.ip("addr add 2600:99::1/64 dev va nodad")
    there.ip("addr add 2600:99::2/64 dev vb nodad")
    there.ip("addr add fe80::77/64 dev vb nodad")
    state = a_state()
    with here.entered():
        service = Neighbours(state, [here.index("va")])
    try:
        rows = [
            table.want6(state, 0, np.uint64(high), np.uint64(low), 0)
            for high, low in ((0x2600_0099 << 32, 2), (0xFE80 << 48, 0x77), (0x2600_0099 << 32, 9))
        ]
        assert serve_until(service, lambda: bool((state.neighbours[rows[:2]]["own_state"] == REACHABLE).all()), 8)
        assert mac_of(state, rows[0]) == mac_of(state, rows[1]) == there.mac("vb")
        assert serve_until(service, lambda: bool(state.neighbours[rows[2]]["own_state"] == FAILED), 10)
        assert {told["address"] for told in service.describe()} == {"2600:99::2", "fe80::77", "2600:99::9"}
    finally:
        service.close()
