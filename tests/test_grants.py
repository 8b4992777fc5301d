"""Mappings that are asked for, in a core's own rows: they are reached, they stay, they end, and another core has them too."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from krononat import pcp, pcp_index, pcp_server, pcp_table, view_mappings
from krononat.cli.mappings import mappings as command
from krononat.pcp import TCP, UDP
from krononat.pcp_server import Policy
from krononat.pcp_table import GrantTable
from shards import grants, invariants, recovery
from shards.grant_rows import GRANTED
from shards.jit import PURE
from shards.state import ACTIVE, PASSIVE, Array, State
from tests.bare_core import Core
from tests.bed import Bed
from tests.frames import address, dissect, spell, split_frame
from tests.model_pcp import NONCE, Plain, Told, map_request, option, pmp_request, read_answer
from tests.pair import EPOCH
from tests.test_apply import ready, say
from tests.twins import Twins

HOST, OTHER, STRANGER = "100.64.0.7", "100.64.0.8", "192.0.2.70"
PLAIN = """
pool 203.0.113.0/31 block 128 blocks 2
subscribers 100.64.0.0/24
hold-down 120
"""
DAY_S = 86_400


def bed(text: str = PLAIN) -> Bed:
    given = Bed()
    for line in filter(None, text.splitlines()):
        given.say(line)
    return given.complete()


class Server:
    """A core with its table; its clock is `now`, a tick."""

    def __init__(self, core: Core, each: int = 16, now: int = EPOCH) -> None:
        self.core, self.state, self.now, self.each = core, core.state, now, each
        self.table = GrantTable(core.state, each, DAY_S, now)
        self.table.turn(now)

    def restart(self) -> None:
        """Another worker goes on with the memory."""
        self.table = GrantTable(self.state, self.each, DAY_S, self.now)

    def pass_time(self, seconds: float) -> None:
        """Later, with everything done that was due until then."""
        self.now += int(1000 * seconds)
        self.core.pass_time(self.now)
        self.turns()

    def turns(self) -> None:
        """Enough for one walk over all rows."""
        for _ in range(2 * len(self.state.mappings) // 8192 + 6):
            self.table.turn(self.now)

    def ask(self, datagram: bytes, source: str = HOST, policy: Policy = Policy()) -> bytes:  # noqa: B008
        """Answer to what a host sends."""
        self.table.now = self.now
        return pcp_server.answer(policy, self.table, datagram, address(source), self.now // 1000).datagram

    def map(self, port: int, source: str = HOST, protocol: int = UDP, **more: Any) -> Told:
        """What a host is told that asks for a mapping."""
        return read_answer(self.ask(map_request(source, protocol, port, **more), source))

    def listed(self) -> list[tuple[str, int, str, int | None]]:
        """(host, port, origin, seconds left) of each mapping, as `krononat mappings list` has them."""
        return sorted(
            (told.internal, told.internal_port, told.origin, told.expires_s)
            for told in view_mappings.mappings(self.state, now=self.now)
        )


def server(text: str = PLAIN, each: int = 16, room: int = 32) -> Server:
    given = bed(text)
    given.grants = room
    made = Server(Core(given, EPOCH), each)
    ready(made.core)
    return made


def reached(server: Server, told: Told, protocol: str = "udp", port: int = 9999) -> str | None:
    """Internal endpoint that a stranger's packet to an external endpoint comes to, None where it is dropped."""
    flags = " syn" if protocol == "tcp" else ""
    host = ".".join(map(str, told.external.to_bytes(4, "big")))
    result = say(server.core, f"{protocol} {STRANGER}:{port} > {host}:{told.external_port}{flags}", server.now, "outside")
    return ends(result.sent)[1] if result.sent else None


def ends(frame: bytes) -> tuple[str, str]:
    """Source and destination of the packet in a frame."""
    packet = dissect(split_frame(frame)[4])
    return spell(packet.source, packet.source_port), spell(packet.destination, packet.destination_port)


# --- asked for, reached, kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filtering", ["endpoint-independent", "address-and-port-dependent"])
def test_rfc6888_req9_a_mapping_that_was_asked_for_is_reached_unasked_by_everyone(filtering: str) -> None:
    """Whatever the pool filters: that is what it is asked for (RFC 6887 11)."""
    given = server(PLAIN.replace("blocks 2", f"blocks 2 filtering {filtering}"))
    for protocol, number in (("udp", UDP), ("tcp", TCP)):
        told = given.map(5000, protocol=number)
        assert told.result == pcp.SUCCESS
        assert reached(given, told, protocol) == f"{HOST}:5000"


def test_rfc6887_sec15_a_mapping_lives_without_a_packet_until_its_lifetime_is_over() -> None:
    given = server()
    told = given.map(5000, lifetime_s=7200)
    given.pass_time(7190)
    assert reached(given, told) == f"{HOST}:5000"
    given.pass_time(11)
    assert reached(given, told) is None and given.listed() == [] and len(given.table) == 0


def test_rfc6887_sec15_a_renewal_lets_it_live_on() -> None:
    given = server()
    told = given.map(5000, lifetime_s=600)
    given.pass_time(500)
    assert given.map(5000, lifetime_s=600).external_port == told.external_port
    given.pass_time(500)
    assert given.listed() == [(HOST, 5000, "pcp", 100)]
    given.pass_time(101)
    assert given.listed() == []


def test_rfc6887_sec15_1_what_a_session_uses_outlives_the_end_as_that_sessions_mapping() -> None:
    given = server()
    told = given.map(5000)
    say(given.core, f"udp {HOST}:5000 > {STRANGER}:53", given.now)
    assert given.map(5000, lifetime_s=0).result == pcp.SUCCESS
    assert given.listed() == [(HOST, 5000, "dynamic", None)]
    assert given.map(5000, lifetime_s=0).result == pcp.SUCCESS  # the answer was lost: the same request is told the same
    assert given.map(5000, lifetime_s=0, nonce=bytes(12)).result == pcp.NOT_AUTHORIZED
    assert given.listed() == [(HOST, 5000, "dynamic", None)]
    given.pass_time(301)
    assert given.listed() == []
    assert reached(given, told) is None


def test_rfc6887_sec11_3_the_mapping_of_a_session_is_the_one_that_is_granted() -> None:
    given = server()
    result = say(given.core, f"udp {HOST}:5000 > {STRANGER}:53", given.now)
    assert result.sent
    told = given.map(5000)
    assert ends(result.sent)[0] == f"203.0.113.{told.external & 255}:{told.external_port}"
    given.pass_time(301)
    assert given.listed() == [(HOST, 5000, "pcp", 3600 - 301)]


def test_rfc6888_req8_the_port_rests_after_its_mapping_has_ended() -> None:
    given = server()
    told = given.map(5000)
    given.map(5000, lifetime_s=0)
    wanted = f"0.0.0.0:{told.external_port}"
    assert given.map(5001, wanted=wanted).external_port != told.external_port
    given.pass_time(122)
    assert given.map(5002, wanted=wanted).external_port == told.external_port


def test_rfc6887_sec15_a_port_that_rests_is_given_to_the_client_that_had_it() -> None:
    """Same host, port and nonce; whoever else wants it waits. It rests on if a session went on to use it."""
    given = server()
    told = given.map(5000)
    wanted = f"0.0.0.0:{told.external_port}"
    given.map(5000, lifetime_s=0)
    assert given.map(5000, wanted=wanted, nonce=bytes(12)).external_port != told.external_port
    given.map(5000, lifetime_s=0, nonce=bytes(12))
    again = server()
    told = again.map(5000, lifetime_s=120)
    wanted = f"0.0.0.0:{told.external_port}"
    again.pass_time(121)
    assert again.listed() == [] and again.map(5000, wanted=wanted).external_port == told.external_port
    say(again.core, f"udp {HOST}:5000 > {STRANGER}:53", again.now)
    again.map(5000, lifetime_s=0)
    again.pass_time(301)
    assert again.listed() == [] and again.map(5000, wanted=wanted).external_port != told.external_port
    assert invariants.complaints(again.state) == []


def test_rfc6887_sec11_3_the_ports_of_pcp_itself_are_nobodys_outside() -> None:
    """5350 and 5351 of UDP; a packet may have made one of them a mapping's, and that stays what it is."""
    given = server(PLAIN.replace("blocks 2", "blocks 1 ports 5312-5375").replace("block 128", "block 64"), each=99, room=99)
    assert given.map(1, protocol=TCP, wanted="0.0.0.0:5351").external_port == 5351
    assert given.map(1, wanted="0.0.0.0:5351").external_port not in (5350, 5351)
    exact = given.map(2, wanted="0.0.0.0:5350", options=option(pcp.PREFER_FAILURE))
    assert exact.result == pcp.CANNOT_PROVIDE_EXTERNAL
    told = [given.map(port) for port in range(2, 70)]
    ports = [answer.external_port for answer in told if answer.result == pcp.SUCCESS]
    assert len(set(ports)) == len(ports) > 50 and not {5350, 5351} & set(ports)
    assert {answer.result for answer in told} == {pcp.SUCCESS, pcp.NO_RESOURCES}
    for port in range(100, 120):
        say(given.core, f"udp {HOST}:{port} > {STRANGER}:53", given.now)
    outside = {int(row["external_port"]): int(row["internal_port"]) for row in _living(given.state) if row["static"] == 0}
    assert given.map(outside[5350]).result == pcp.NO_RESOURCES
    assert invariants.complaints(given.state) == []


def test_rfc6888_req2_all_of_a_subscribers_mappings_are_on_one_external_address() -> None:
    given = server(PLAIN.replace("block 128", "block 64").replace("203.0.113.0/31", "203.0.113.0/28"))
    assert len({given.map(5000 + number, protocol=protocol).external for number in range(7) for protocol in (UDP, TCP)}) == 1


def test_rfc6888_req4_limits_of_a_subscriber_hold_for_what_he_asks_for() -> None:
    """Those of the file, and that of [pcp]; each refusal deletes nothing."""
    given = server(each=2)
    results = [given.map(5000 + number).result for number in range(3)]
    assert results == [pcp.SUCCESS, pcp.SUCCESS, pcp.USER_EX_QUOTA]
    other = server(PLAIN.replace("/24", "/24 ports 3"))
    assert [other.map(5000 + number).result for number in range(4)] == [*3 * [pcp.SUCCESS], pcp.USER_EX_QUOTA]
    assert len(given.listed()) == 2 and len(other.listed()) == 3


def test_a_table_that_is_full_says_so_and_forgets_nobody() -> None:
    given = server(each=64)
    results = [given.map(5000 + number).result for number in range(33)]
    assert results == [*32 * [pcp.SUCCESS], pcp.NO_RESOURCES]
    given.map(5000, lifetime_s=0)
    assert given.map(6000).result == pcp.SUCCESS


def test_mappings_are_listed_with_who_keeps_them_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    given = server(f"{PLAIN}\nstatic tcp 203.0.113.0:8080 to 100.64.0.7:80")
    given.map(5000, lifetime_s=600)
    given.ask(pmp_request(2, 5001, 0, 300))
    say(given.core, f"udp {HOST}:5002 > {STRANGER}:53", given.now)
    monkeypatch.setattr("krononat.cli.mappings.open_memory", lambda _: given.state)
    monkeypatch.setattr("krononat.clock.ticks", lambda: given.now)
    shown = [line.split() for line in CliRunner().invoke(command, ["list"]).output.splitlines()]
    assert shown[0] == ["PROTO", "INTERNAL", "EXTERNAL", "ORIGIN", "SESSIONS", "EXPIRES", "S"]
    assert sorted((words[0], words[1], *words[3:]) for words in shown[1:]) == [
        ("tcp", f"{HOST}:5001", "nat-pmp", "0", "300"), ("tcp", f"{HOST}:80", "static", "0", "-"),
        ("udp", f"{HOST}:5000", "pcp", "0", "600"), ("udp", f"{HOST}:5002", "dynamic", "1", "-"),
    ]  # fmt: skip
    told = json.loads(CliRunner().invoke(command, ["list", "--origin", "pcp", "-o", "json"]).output)
    assert [(row["internal_port"], row["expires_s"]) for row in told] == [(5000, 600)]
    few = CliRunner().invoke(command, ["list", "--limit", "1", "-o", "jsonl", "--subscriber", HOST])
    assert "more than 1 fit" in few.output


# --- suggestions ----------------------------------------------------------------------------------------------------------


def test_rfc6887_sec11_3_a_free_port_that_is_suggested_is_given_with_its_block() -> None:
    given = server(PLAIN.replace("203.0.113.0/31", "203.0.113.1/32"))
    assert given.map(5000, wanted="0.0.0.0:30000").external_port == 30000
    assert given.map(5001, source=OTHER, wanted="0.0.0.0:30000").external_port != 30000
    assert given.map(5002, source=OTHER, wanted="0.0.0.0:30001").external_port != 30001  # of a block that is another's
    assert given.map(5001, wanted="0.0.0.0:30001").external_port == 30001
    assert invariants.complaints(given.state) == []


@pytest.mark.parametrize("port", [80, 1023, 65535])
def test_a_port_that_is_nobodys_to_have_is_not_given(port: int) -> None:
    given = server(PLAIN.replace("blocks 2", "blocks 2 ports 1024-60000"))
    refused = given.map(5000, wanted=f"0.0.0.0:{port}", options=option(pcp.PREFER_FAILURE))
    assert refused.result == pcp.CANNOT_PROVIDE_EXTERNAL
    assert given.listed() == [] and int(given.state.chunks["account"].sum()) == 0  # no block is left behind
    assert given.map(5000, wanted=f"0.0.0.0:{port}").result == pcp.SUCCESS


def test_a_subscriber_gets_no_more_blocks_by_suggestions_than_he_may_have() -> None:
    given = server()
    told = [given.map(5000 + number, wanted=f"0.0.0.0:{20_000 + 1000 * number}") for number in range(4)]
    assert [answer.result for answer in told] == 4 * [pcp.SUCCESS]
    assert len({answer.external_port // 128 for answer in told}) == 2
    assert invariants.complaints(given.state) == []


def test_rfc7422_in_a_deterministic_pool_a_suggestion_takes_nobody_elses_ports() -> None:
    given = server(PLAIN.replace("blocks 2", "blocks 2 ratio 128"))
    first = given.map(5000)
    second = given.map(5001, wanted=f"0.0.0.0:{(first.external_port + 1000) % 64000 + 1024}")
    assert first.external_port // 128 == second.external_port // 128


# --- NAT-PMP --------------------------------------------------------------------------------------------------------------


def test_rfc6886_the_address_that_is_told_is_the_one_that_mappings_have() -> None:
    given = server(PLAIN.replace("203.0.113.0/31", "203.0.113.0/28"))
    for last in range(7, 17):
        host = f"100.64.0.{last}"
        shown = int.from_bytes(given.ask(pmp_request(0), host)[8:12], "big")
        given.ask(pmp_request(1, 5000), host)
        assert given.map(5001, source=host).external == shown != 0
    assert invariants.complaints(given.state) == []


# --- another worker, another core -----------------------------------------------------------------------------------------


def test_rfc6887_sec8_5_another_worker_goes_on_with_nonces_lifetimes_and_epoch() -> None:
    given = server()
    given.pass_time(50)
    told = given.map(5000, lifetime_s=600)
    given.pass_time(100)
    if not PURE:  # a walk over all rows
        recovery.attach(given.state, given.now)
    given.restart()
    given.turns()
    assert given.listed() == [(HOST, 5000, "pcp", 500)]
    assert given.map(5000, nonce=bytes(12)).result == pcp.NOT_AUTHORIZED
    again = given.map(5000, lifetime_s=600)
    assert again.external_port == told.external_port and again.epoch_s == told.epoch_s + 100
    assert list(given.table.told) == []
    given.pass_time(601)
    assert given.listed() == []


def twin_servers() -> tuple[Twins, Server]:
    """Two cores, the first one has the authority."""
    twins = Twins(bed(), EPOCH)
    ready(twins.one, twins.other)
    return twins, Server(twins.one)


def hand_over(twins: Twins, now: int) -> None:
    """The other core has the authority from now on."""
    twins.role(twins.one, PASSIVE, 0, 2)
    twins.role(twins.other, ACTIVE, 0, 2)
    assert twins.other.state.shards[0]["creates"]


def test_rfc6887_sec14_who_takes_a_shard_over_has_the_mappings_and_begins_an_epoch() -> None:
    """What does not come along is the nonce, and the rest of the lifetime: both come with the next request."""
    twins, one = twin_servers()
    told = one.map(5000)
    one.pass_time(40)
    twins.settle(one.now)
    twins.check()
    hand_over(twins, one.now)
    other = Server(twins.other, now=one.now)
    other.turns()
    assert other.listed() == [(HOST, 5000, "adopted", DAY_S)]
    assert list(other.table.told) == [address(HOST)]  # it will be told of the new epoch
    assert reached(other, told) == f"{HOST}:5000"
    other.pass_time(5)
    again = other.map(5000, nonce=bytes(12))
    assert (again.result, again.external_port, again.epoch_s) == (pcp.SUCCESS, told.external_port, 5)
    assert other.map(5000).result == pcp.NOT_AUTHORIZED  # the nonce is the new one
    assert one.ask(map_request(HOST, UDP, 6000))[3] == pcp.NETWORK_FAILURE
    one.turns()
    assert len(one.table) == 0 and one.listed() == [(HOST, 5000, "adopted", None)]


def test_an_end_is_known_to_the_copy_and_so_is_what_becomes_of_a_mapping() -> None:
    twins, one = twin_servers()
    one.map(5000)
    one.map(5001)
    say(one.core, f"udp {HOST}:5001 > {STRANGER}:53", one.now)
    twins.settle(one.now)
    assert [int(row["static"]) for row in _living(twins.other.state)] == [GRANTED, GRANTED]
    one.map(5000, lifetime_s=0)
    one.map(5001, lifetime_s=0)
    twins.settle(one.now)
    assert [int(row["static"]) for row in _living(twins.other.state)] == [0]
    twins.check()


@pytest.mark.parametrize("seed", range(2 if PURE else 8))
def test_a_copy_is_the_same_after_whatever_was_asked_sent_ended_and_lost(seed: int) -> None:
    dice = random.Random(seed)
    twins, one = twin_servers()
    for _ in range(150):
        host, port = dice.choice((HOST, OTHER)), dice.randrange(5000, 5006)
        deed = dice.randrange(10)
        if deed < 4:
            one.map(port, host, dice.choice((UDP, TCP)), lifetime_s=dice.choice((0, 200, 600)))
        elif deed < 8:
            say(one.core, f"udp {host}:{port} > {STRANGER}:{dice.randrange(50, 60)}", one.now)
        elif deed < 9:
            one.now += dice.choice((1000, 90_000))
            one.core.pass_time(one.now)
            one.table.turn(one.now)
        twins.sender.changes(one.now)
        if dice.random() < 0.03:  # the link was cut
            twins.sender.way.clear()
            twins.sender.snapshot(one.now)
        twins.deliver(one.now, dice.randrange(4))
    twins.settle(one.now)
    twins.check()
    shown = [told[:2] for told in one.listed() if told[2] in ("pcp", "nat-pmp")]
    other = [(told.internal, told.internal_port) for told in view_mappings.mappings(twins.other.state, origin="adopted")]
    assert shown == sorted(other)


def test_a_shard_that_comes_back_in_the_same_epoch_has_lost_nothing() -> None:
    """So it is where a worker begins anew, until it knows that nobody took its shards meanwhile."""
    given = server()
    told = given.map(5000)
    given.state.shards[0]["creates"] = 0
    given.pass_time(10)
    given.state.shards[0]["creates"] = 1
    given.turns()
    assert given.map(5000).epoch_s == told.epoch_s + 10
    assert given.map(5000, nonce=bytes(12)).result == pcp.NOT_AUTHORIZED


def test_where_nobody_may_ask_what_others_granted_is_let_go() -> None:
    given = server()
    given.map(5000)
    given.state.grants[:] = 0
    given.state.shards[0]["granting_epoch"] = 99
    given.table = GrantTable(given.state, 16, 0, given.now)
    given.turns()
    assert given.listed() == []


def _living(state: State) -> Array:
    return state.mappings[invariants.halves(state)]


# --- no turn is long ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn does two of everything."""
    for name in ("WORK_AT_ONCE", "ENDED_AT_ONCE", "LOADED_AT_ONCE", "KNOWN_AT_ONCE", "LOOKED_AT_ONCE"):
        monkeypatch.setattr(pcp_table, name, 2)


def rows(given: Server) -> list[int]:
    """Who asked for what each row is about; 0: the row is free."""
    told: list[int] = given.state.grants["origin"].tolist()
    return told


def changes(given: Server, act: Callable[[], object]) -> int:
    """How many rows are others after it."""
    before = rows(given)
    act()
    return sum(was != now for was, now in zip(before, rows(given), strict=True))


def six(given: Server, **more: Any) -> list[Told]:
    """Mappings that a host asks for."""
    return [given.map(5000 + number, **more) for number in range(6)]


@pytest.mark.usefixtures("slow")
def test_what_is_due_at_once_is_ended_in_some_turns() -> None:
    given = server()
    six(given, lifetime_s=120)
    given.now += 121_000
    assert [changes(given, lambda: given.table.turn(given.now)) for _ in range(4)] == [2, 2, 2, 0]
    assert given.listed() == []


@pytest.mark.usefixtures("slow")
def test_rfc6887_sec8_5_a_shard_that_others_had_is_forgotten_at_once_and_freed_in_some_turns() -> None:
    """No nonce of before is asked for from then on, and no lifetime is over that was told before."""
    given = server()
    told = six(given, lifetime_s=120)
    given.state.shards[0]["epoch"] += 1
    given.table.begin(given.now)
    assert rows(given).count(1) == 6 and len(given.table) == 0
    again = given.map(5003, nonce=bytes(12))
    assert (again.result, again.external_port) == (pcp.SUCCESS, told[3].external_port)
    turns = [changes(given, lambda: given.table.turn(given.now)) for _ in range(40)]
    assert max(turns) == 2 and turns[-1] == 0
    assert sorted(filter(None, rows(given))) == [1, *5 * [3]] and len(given.table) == 6
    given.pass_time(121)
    assert len(given.listed()) == 6


@pytest.mark.usefixtures("slow")
def test_a_table_that_is_full_is_adopted_whole_though_its_rows_are_yet_to_be_freed() -> None:
    given = server(each=99)
    told = [given.map(5000 + number) for number in range(32)]
    given.state.shards[0]["epoch"] += 1
    given.table.begin(given.now)
    assert given.map(5031).external_port == told[31].external_port
    for _ in range(60):
        given.table.turn(given.now)
    assert [told[1:3] for told in given.listed()] == [*((5000 + number, "adopted") for number in range(31)), (5031, "pcp")]
    assert given.map(6000).result == pcp.NO_RESOURCES


@pytest.mark.usefixtures("slow")
def test_what_was_granted_elsewhere_is_adopted_in_some_turns_and_for_who_asks_at_once() -> None:
    twins, one = twin_servers()
    told = six(one)
    twins.settle(one.now)
    hand_over(twins, one.now)
    other = Server(twins.other, now=one.now)
    assert all(reached(other, answer) for answer in told)  # whatever is known of it
    assert other.map(5005).external_port == told[5].external_port
    turns = [changes(other, lambda: other.table.turn(other.now)) for _ in range(40)]
    assert max(turns) == 2 and sum(turns) >= 5
    assert [told[2] for told in other.listed()] == [*5 * ["adopted"], "pcp"]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("pick", [range(6), (0, 3, 4), (5,), ()])
def test_rfc6887_sec8_5_rows_of_a_worker_before_are_read_in_some_turns(pick: tuple[int, ...]) -> None:
    """Meanwhile mappings forward, and nothing is answered; after it every row is known, be it taken or free."""
    given = server(each=99)
    told = six(given)
    for number in set(range(6)) - set(pick):
        given.map(5000 + number, lifetime_s=0)
    given.table = pcp_table.GrantTable(given.state, 99, DAY_S, given.now)
    assert given.table.busy
    assert [reached(given, told[number]) for number in pick] == [f"{HOST}:{5000 + number}" for number in pick]
    turns = 0
    while not given.table.ready:
        given.table.turn(given.now)
        turns += 1
    assert turns == len(pick) // 2 + 1 and len(given.table) == len(pick)
    for number in pick:
        assert given.map(5000 + number, nonce=bytes(12)).result == pcp.NOT_AUTHORIZED
        assert given.map(5000 + number).external_port == told[number].external_port
    free = len(given.state.grants) - 1 - len(pick)
    results = [given.map(7000 + number).result for number in range(free + 1)]
    assert results == [*free * [pcp.SUCCESS], pcp.NO_RESOURCES]


def test_rows_of_an_epoch_that_is_over_are_free_for_a_successor() -> None:
    """The worker before had begun another epoch, and did not come to it."""
    given = server()
    given.map(5000)
    given.now += 10_000
    given.state.shards[0]["granting_since"] = given.now // 1000
    given.restart()
    given.turns()
    assert [told[2] for told in given.listed()] == ["adopted"] and len(given.table) == 1


@pytest.mark.usefixtures("slow")
def test_rfc6886_all_of_a_host_are_given_up_at_once_and_ended_in_some_turns() -> None:
    """What is asked for anew meanwhile is another one, and stays; what others have costs nothing."""
    given = server(each=7)
    for number in range(6):
        given.ask(pmp_request(1, 5000 + number))
    given.map(5000, source=OTHER)
    assert changes(given, lambda: given.ask(pmp_request(1, 0, 0, 0))) == 2
    (kept,) = [told[1] for told in given.listed()[:1]]
    assert given.map(kept).result == pcp.SUCCESS
    assert changes(given, lambda: given.table.turn(given.now)) == 2
    for _ in range(3):
        given.table.turn(given.now)
    assert [told[:3] for told in given.listed()] == [(HOST, kept, "pcp"), (OTHER, 5000, "pcp")]
    assert given.ask(pmp_request(2, 0, 0, 0))[3] == 0 and given.ask(pmp_request(1, 0, 0, 0))[3] == 2


def test_rfc6886_a_static_mapping_is_not_ended_with_all_others_and_that_is_told() -> None:
    given = server(f"{PLAIN}\nstatic tcp 203.0.113.0:8080 to 100.64.0.7:80")
    given.ask(pmp_request(2, 5001))
    assert given.ask(pmp_request(2, 0, 0, 0))[3] == 2 and given.ask(pmp_request(1, 0, 0, 0))[3] == 0
    assert [told[1:3] for told in given.listed()] == [(80, "static")]


@pytest.mark.usefixtures("slow")
def test_mappings_that_ended_otherwise_do_not_count_for_ever() -> None:
    """Who has enough is looked at, some of his in each request."""
    given = server(each=6)
    six(given)
    half, life = (int(given.state.grants[name][6]) for name in ("half", "generation"))
    assert grants.revoke(given.state, half, life, given.now)
    results = [given.map(6000 + number).result for number in range(3)]
    assert results == [pcp.USER_EX_QUOTA, pcp.USER_EX_QUOTA, pcp.SUCCESS]


def test_an_index_is_as_small_as_what_it_is_about() -> None:
    """Whatever is asked for and given up leaves nothing behind, but seconds that were once of interest."""
    dice, index, plain = random.Random(5), pcp_index.Index(), dict[int, tuple[pcp_index.Fact, int]]()
    for step in range(4000):
        number = dice.randrange(1, 40)
        if number in plain and dice.random() < 0.5:
            index.drop(number)
            del plain[number]
        elif number in plain:
            plain[number] = plain[number][0], dice.randrange(500)
            index.await_end(number, plain[number][1])
        else:
            fact = pcp_index.Fact(1000 + number, step, dice.randrange(3), dice.randrange(5), UDP, dice.random() < 0.5)
            plain[number] = fact, dice.randrange(500)
            index.enter(number, *plain[number])
        assert len(index) == len(plain)
        assert index.knows(1000 + number, step) == (number in plain and plain[number][0].life == step)
        assert index.count(1) == sum(fact.subscriber == 1 for fact, _ in plain.values())
        assert index.has_nonced(2, UDP) == any((fact.host, fact.nonced) == (2, True) for fact, _ in plain.values())
    due = {number for number, (_, second) in plain.items() if second <= 250}
    found = set()
    for number in index.due(250):
        if number:
            found.add(number)
            index.drop(number)
    assert found == due
    while index.take_any():
        pass
    assert len(index) == 0 and index.count(1) == 0 and not index.has_nonced(2, UDP) and not any(index.due(1000))


# --- the table is the dictionary ------------------------------------------------------------------------------------------


def test_a_renewal_may_make_a_life_shorter() -> None:
    given = server()
    given.map(5000, lifetime_s=3600)
    given.map(5000, lifetime_s=200)
    given.pass_time(201)
    assert given.listed() == []


@pytest.mark.parametrize("seed", range(3 if PURE else 12))
def test_rows_and_a_plain_dictionary_give_the_same_answers(seed: int) -> None:
    """But for the external ports, which are chosen otherwise."""
    dice, given, plain = random.Random(seed), server(each=4), Plain(each=4, since_s=EPOCH // 1000)
    for step in range(120):
        host, port = dice.choice((HOST, OTHER)), dice.randrange(5000, 5006)
        lifetime_s, nonce = dice.choice((0, 0, 200, 600)), dice.choice((NONCE, NONCE, bytes(12)))
        datagram = map_request(host, dice.choice((UDP, TCP)), dice.choice((port, port, port, 0)), lifetime_s, nonce)
        if dice.random() < 0.3:
            datagram = pmp_request(dice.choice((1, 2)), dice.choice((port, port, 0)), 0, dice.choice((0, 30, 600)))
        found = given.ask(datagram, host)
        wanted = pcp_server.answer(Policy(), plain, datagram, address(host), given.now // 1000).datagram
        assert _without_ports(found) == _without_ports(wanted)
        if dice.random() < 0.1:
            given.pass_time(90)
            plain.held = {key: held for key, held in plain.held.items() if held.expires_s > given.now // 1000}
        if step % 10 == 9:
            living = {(f"100.64.0.{host & 255}", port) for host, _, port in plain.held}
            assert {(host, port) for host, port, _, _ in given.listed()} == living
    assert invariants.complaints(given.state) == []


def _without_ports(datagram: bytes) -> object:
    if datagram[0] == 0:
        return datagram[:10], datagram[12:]
    told = read_answer(datagram)
    return told.result, told.lifetime_s, told.epoch_s, told.protocol, told.port, told.nonce
