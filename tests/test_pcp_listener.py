"""The server at its sockets: who is answered, how often, what a fault costs. Over the loopback, at an address of our own."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from krononat import config, interfaces, pcp, pcp_orders
from krononat.pcp import UDP
from krononat.pcp_listener import Budget, Listener
from shards.account_rows import REASONS
from shards.verdict import PCP_DROPPED, PCP_GRANTED, PCP_REFUSED, PCP_REQUESTS
from tests.bare_core import Core
from tests.bed import Bed
from tests.frames import address
from tests.model_pcp import header, map_request, read_answer
from tests.pair import EPOCH
from tests.test_config import RIGHT

ME = f"127.{os.getpid() >> 16 & 255}.{os.getpid() >> 8 & 255}.{os.getpid() & 255 | 1}"
HOST, STRANGER = "127.200.0.7", "127.201.0.7"
LOOPBACK = socket.if_nametoindex("lo")
ORDERS: dict[str, Any] = {
    "addresses": [ME], "interfaces": [LOOPBACK], "minimum_s": 120, "maximum_s": 3600, "nat_pmp": True, "third_party": False,
    "each": 64, "rate": 100, "each_rate": 10,
}  # fmt: skip
RATE = REASONS.index("rate")


class Line:
    """A listener and a client of it. Nothing waits: what is sent over the loopback is there at once."""

    def __init__(self, turns: int = 1, **orders: Any) -> None:
        bed = Bed()
        for line in ("pool 203.0.113.0/31 block 128 blocks 8", "subscribers 127.200.0.0/24"):
            bed.say(line)
        self.state = Core(bed.complete(), EPOCH).state
        self.listener = Listener(self.state, {**ORDERS, **orders}, EPOCH)
        for _ in range(turns):
            self.turn(EPOCH)

    def turn(self, now: int, called: bool = True) -> None:
        """One turn of the worker."""
        self.listener.turn(now, now, called)

    def ask(self, datagram: bytes, source: str = HOST, now: int = EPOCH + 60, times: int = 1) -> list[bytes]:
        """Answers to a datagram that a host sends so often."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((source, 0))
            for _ in range(times):
                client.sendto(datagram, (ME, pcp.PORT))
                self.turn(now)
            client.setblocking(False)
            return list(_waiting(client))

    def counted(self, meter: int) -> int:
        """Packets of a meter."""
        return int(self.state.counters[meter, 0])

    def close(self) -> None:
        """Let go of the sockets."""
        self.listener.close()


def _waiting(client: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield client.recv(2000)
        except BlockingIOError:
            return


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def test_rfc6888_req9_a_subscribers_request_is_answered_by_the_address_that_it_was_sent_to(line: Line) -> None:
    (answered,) = line.ask(map_request(HOST, UDP, 5000))
    assert read_answer(answered).result == pcp.SUCCESS
    assert [line.counted(meter) for meter in (PCP_REQUESTS, PCP_GRANTED, PCP_REFUSED, PCP_DROPPED)] == [1, 1, 0, 0]


def test_who_is_no_subscriber_is_not_answered_and_neither_is_what_is_no_request(line: Line) -> None:
    assert line.ask(map_request(STRANGER, UDP, 5000), STRANGER) == []
    assert line.ask(b"\2\x81" + bytes(22)) == [] and line.ask(b"") == []
    assert line.counted(PCP_DROPPED) == 3


def test_where_another_core_has_the_authority_nobody_is_answered(line: Line) -> None:
    line.state.shards[0]["creates"] = 0
    assert line.ask(map_request(HOST, UDP, 5000)) == []


def test_what_comes_in_by_another_interface_is_not_answered() -> None:
    other = Line(interfaces=[LOOPBACK + 1])
    assert other.ask(map_request(HOST, UDP, 5000)) == [] and other.counted(PCP_DROPPED) == 1
    other.close()


def test_who_asks_too_often_is_not_answered_and_others_are(line: Line) -> None:
    assert len(line.ask(header(pcp.ANNOUNCE, HOST), times=30)) == 10
    assert len(line.ask(header(pcp.ANNOUNCE, "127.200.0.8"), "127.200.0.8")) == 1
    assert len(line.ask(header(pcp.ANNOUNCE, HOST), now=EPOCH + 260, times=30)) == 2
    assert line.counted(PCP_DROPPED) == 20 + 28


def test_all_together_are_answered_so_often() -> None:
    slow = Line(rate=5, each_rate=3)
    answered = [len(slow.ask(header(pcp.ANNOUNCE, host), host, times=9)) for host in ("127.200.0.8", "127.200.0.9")]
    assert answered == [3, 2]
    slow.close()


def lane(host: str) -> int:
    """The one that the kernel is to choose."""
    return (address(host) * 0x9E3779B1 & 0xFFFFFFFF) >> 29


@pytest.mark.parametrize("host", ["127.200.0.8", "127.200.0.9", "127.200.0.77"])
def test_rfc6887_sec8_2_who_sends_more_than_can_be_read_is_in_nobodys_way_on_another_lane(line: Line, host: str) -> None:
    """What the kernel had no room for is counted, too, and whose it was is told."""
    assert lane(host) != lane(HOST)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        flood.bind((HOST, 0))
        for _ in range(3000):
            flood.sendto(header(pcp.ANNOUNCE, HOST), (ME, pcp.PORT))
        assert len(line.ask(header(pcp.ANNOUNCE, host), host)) == 1
        for turn in range(60):
            line.turn(EPOCH + 61 + turn)
        flood.sendto(header(pcp.ANNOUNCE, HOST), (ME, pcp.PORT))
        line.turn(EPOCH + 121)
        flood.setblocking(False)
        assert 10 <= len(list(_waiting(flood))) <= 12
    assert line.counted(PCP_REQUESTS) == 3002 and line.counted(PCP_DROPPED) >= 3002 - 13
    refused = line.state.accounts["refused"][:, RATE]
    assert 0 < refused.max() == refused.sum() < 3000


def test_one_look_at_the_lanes_is_short(line: Line) -> None:
    """So many answers or drops; the rest waits for the next."""
    hosts = [f"127.200.0.{10 + number}" for number in range(20)]
    clients = []
    for host in hosts:
        clients.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        clients[-1].bind((host, 0))
        clients[-1].sendto(header(pcp.ANNOUNCE, host), (ME, pcp.PORT))
    counts = []
    for turn in range(4):
        line.turn(EPOCH + 100 + turn)
        counts.append(line.counted(PCP_REQUESTS))
    assert counts[0] < 16 and counts == sorted(counts) and counts[-1] == 20
    for client in clients:
        client.setblocking(False)
        assert len(list(_waiting(client))) == 1
        client.close()


def test_one_look_drops_so_many(line: Line) -> None:
    """Whoever they are of: they cost time in which nothing is forwarded. Whatever calls, the next look waits then."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        flood.bind(("127.201.0.7", 0))
        for _ in range(40):
            flood.sendto(header(pcp.ANNOUNCE, "127.201.0.7"), (ME, pcp.PORT))
    counts = []
    for ticks in (100, 101, 104, 105, 109, 110, 111):
        line.turn(EPOCH + ticks)
        counts.append(line.counted(PCP_DROPPED))
    assert counts == [16, 16, 16, 32, 32, 40, 40]
    assert len(line.ask(header(pcp.ANNOUNCE, HOST), HOST, now=EPOCH + 111)) == 1, "there is nothing to drop any more"


def test_lanes_are_the_kernels_choice_by_who_sends(line: Line) -> None:
    told = [made.socket for made in line.listener._lanes.values()]  # what no client sees
    for number in range(1, 40):
        host = f"127.200.0.{number}"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((host, 0))
            client.sendto(b"", (ME, pcp.PORT))
        assert told[lane(host)].recv(10) == b""


def test_rfc6887_sec8_5_the_first_answer_of_all_tells_the_epoch() -> None:
    """Whoever asks before the first turn has been."""
    line = Line(turns=0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((HOST, 0))
        client.sendto(header(pcp.ANNOUNCE, HOST), (ME, pcp.PORT))
        for _ in range(2):
            line.turn(EPOCH)
        client.setblocking(False)
        (answered,) = _waiting(client)
    assert read_answer(answered).epoch_s == 0
    line.state.shards[0]["epoch"] += 1  # another core had it, between two turns
    assert [read_answer(told).epoch_s for told in line.ask(header(pcp.ANNOUNCE, HOST), now=EPOCH + 9_000)] == [0]
    line.close()


def test_a_busy_table_has_its_turn_soon(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krononat.pcp_table.EXTENTS_AT_ONCE", 1)
    line.ask(map_request(HOST, UDP, 5000))
    for turn in range(200):
        line.turn(EPOCH + 100 + 5 * turn)
    assert line.listener.due() > 50
    line.state.shards[0]["epoch"] += 1
    line.turn(EPOCH + 2000)
    assert line.listener.due() <= 5


def test_while_packets_keep_the_worker_awake_it_looks_now_and_then(line: Line) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((HOST, 0))
        line.turn(EPOCH + 100)
        client.sendto(header(pcp.ANNOUNCE, HOST), (ME, pcp.PORT))
        answered = []
        for later in range(1, 7):
            line.turn(EPOCH + 100 + later, called=False)
            client.setblocking(False)
            answered.append(len(list(_waiting(client))))
    assert answered == [0, 0, 0, 0, 1, 0]


def test_a_budget_saves_a_seconds_worth_and_no_more() -> None:
    budget = Budget(3, 0)
    assert [budget.spend(0) for _ in range(4)] == [True, True, True, False]
    assert [budget.spend(100_000) for _ in range(4)] == [True, True, True, False]
    assert not budget.spend(100_333) and budget.spend(100_334)


def test_a_fault_of_ours_ends_nothing(line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patched:
        patched.setattr("krononat.pcp_server.answer", fail)
        assert line.ask(map_request(HOST, UDP, 5000), times=3) == []
    assert capsys.readouterr().err.count("Traceback") == 1
    assert len(line.ask(map_request(HOST, UDP, 5000))) == 1


def test_rfc6887_sec14_hosts_of_adopted_mappings_hear_of_the_new_epoch(line: Line) -> None:
    line.ask(map_request(HOST, UDP, 5000))
    line.state.shards[0]["epoch"] += 1  # another core had it meanwhile
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((HOST, pcp.CLIENT_PORT))
        for turn in range(60):
            line.turn(EPOCH + 1000 + 50 * turn)
        client.setblocking(False)
        (told,) = _waiting(client)
    assert (read_answer(told).opcode, read_answer(told).result) == (pcp.ANNOUNCE, pcp.SUCCESS)
    assert read_answer(told).epoch_s <= 3


def test_a_port_that_is_taken_is_told_and_nothing_else_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((ME, pcp.PORT))
        line = Line()
        assert line.listener.descriptors() == []
        line.turn(EPOCH + 100)
    assert f"nobody is answered at {ME} port 5351: Address already in use" in capsys.readouterr().err


def test_what_the_worker_is_told_is_what_the_file_says() -> None:
    told = config.read(RIGHT)
    assert pcp_orders.orders(told, [4, 5]) is None
    said = pcp_orders.orders(config.read(f"{RIGHT}\n[pcp]\nenabled = true\nanycast = true\nmappings-each = 3\n"), [4, 5])
    assert said and said["interfaces"] == [4] and said["each"] == 3
    assert said["addresses"] == [str(next(iter(told.interfaces.named()))[1].address.ip), "192.0.0.9"]


@pytest.mark.parametrize("anycast", [True, False])
def test_rfc7723_the_anycast_address_is_the_cores_own_where_it_is_wanted(anycast: bool) -> None:
    told = config.read(f"{RIGHT}\n[pcp]\nenabled = true\nanycast = {str(anycast).lower()}\n")
    facts = interfaces.Facts(4, bytes(6), 1500, True, "veth", 1, frozenset(), {}, {})
    host = interfaces.Host({"inside0": facts, "outside0": facts}, frozenset(), {})
    steps = [step for step in interfaces.decide(told, host) if step.interface == "lo"]
    assert steps == ([interfaces.Step("address", "lo", "", "192.0.0.9/32")] if anycast else [])
    there = host._replace(loopback=frozenset({"192.0.0.9/32"}))
    assert not [step for step in interfaces.decide(told, there) if step.interface == "lo"]


def test_answers_fit_nat_pmp_too(line: Line) -> None:
    (answered,) = line.ask(b"\0\0")
    assert struct.unpack("!BBHI", answered[:8])[:3] == (0, 128, 0) and answered[8:] != bytes(4)
