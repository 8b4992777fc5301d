"""Mappings that are asked for, in a core's own rows: they are reached, they stay, they end, and another core has them too."""

from __future__ import annotations

import json
import random

import pytest
from click.testing import CliRunner

from krononat import pcp, pcp_server, view_mappings
from krononat.cli.mappings import mappings as command
from krononat.pcp import TCP, UDP
from krononat.pcp_server import Policy
from krononat.pcp_table import GrantTable
from shards import invariants, recovery
from shards.grant_rows import GRANTED
from shards.jit import PURE
from shards.state import Array, State
from tests.frames import address
from tests.grant_server import DAY_S, HOST, OTHER, PLAIN, STRANGER, Server, ends, hand_over, reached, server, twin_servers
from tests.model_pcp import NONCE, Plain, map_request, option, pmp_request, read_answer
from tests.pair import EPOCH
from tests.twins import say

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
