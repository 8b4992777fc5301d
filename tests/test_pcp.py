"""The PCP server as a function, over a plain dictionary: what each request makes of it (RFC 6887, RFC 6886)."""

from __future__ import annotations

import random
import struct

import pytest

from krononat import pcp
from krononat.pcp import TCP, UDP
from krononat.pcp_server import ADOPTED, DYNAMIC, NAT_PMP, PCP, RULES, STATIC, Answer, Held, Policy, answer
from tests.frames import address
from tests.model_pcp import EXTERNAL, NONCE, Plain, Told, header, map_request, option, pmp_request, read_answer

HOST, OTHER = "100.64.0.7", "100.64.0.8"
NOW_S = 1000
OTHER_NONCE = bytes(12 * [9])
PREFER_FAILURE = option(pcp.PREFER_FAILURE)


def ask(table: Plain, datagram: bytes, source: str = HOST, now_s: int = NOW_S, policy: Policy = Policy()) -> Answer:  # noqa: B008
    return answer(policy, table, datagram, address(source), now_s)


def told(table: Plain, datagram: bytes, source: str = HOST, now_s: int = NOW_S, policy: Policy = Policy()) -> Told:  # noqa: B008
    return read_answer(ask(table, datagram, source, now_s, policy).datagram)


def kept(origin: str, nonce: bytes = NONCE) -> Plain:
    """A table with one mapping of UDP port 5000."""
    held = Held(1, UDP, 5000, EXTERNAL, 3333, origin, NOW_S + 600, nonce)
    return Plain(held={(address(HOST), UDP, 5000): held})


# --- MAP ------------------------------------------------------------------------------------------------------------------


def test_rfc6888_req9_a_subscriber_asks_for_a_mapping_and_is_told_its_external_endpoint() -> None:
    table = Plain(since_s=400)
    found = told(table, map_request(HOST, TCP, 8080, 3600))
    assert found == Told(pcp.MAP, pcp.SUCCESS, 3600, 600, NONCE, TCP, 8080, 2000, EXTERNAL)
    assert table.held[address(HOST), TCP, 8080].expires_s == NOW_S + 3600


def test_rfc6887_sec11_3_a_request_that_comes_twice_is_answered_alike() -> None:
    table = Plain()
    assert ask(table, map_request(HOST, UDP, 5000)) == ask(table, map_request(HOST, UDP, 5000))
    assert len(table.held) == 1


def test_rfc6887_sec11_3_a_renewal_keeps_the_external_endpoint_whatever_is_suggested() -> None:
    table = Plain()
    first = told(table, map_request(HOST, UDP, 5000))
    again = told(table, map_request(HOST, UDP, 5000, 7200, wanted="203.0.113.9:4444"), now_s=NOW_S + 50)
    assert (again.external, again.external_port) == (first.external, first.external_port)
    assert again.lifetime_s == 7200 and table.held[address(HOST), UDP, 5000].expires_s == NOW_S + 50 + 7200


def test_rfc6887_sec11_3_a_suggestion_is_heeded_if_it_can_be() -> None:
    table = Plain()
    assert told(table, map_request(HOST, UDP, 5000, wanted="203.0.113.1:4444")).external_port == 4444
    assert told(table, map_request(OTHER, UDP, 5000, wanted="203.0.113.1:4444"), OTHER).external_port != 4444


def test_rfc6887_sec11_3_another_nonce_is_refused_for_as_long_as_the_mapping_lives() -> None:
    """Neither a renewal nor an end, and nothing changes."""
    table = Plain()
    told(table, map_request(HOST, UDP, 5000, 3600))
    before = dict(table.held)
    for lifetime_s in (3600, 0):
        found = told(table, map_request(HOST, UDP, 5000, lifetime_s, OTHER_NONCE), now_s=NOW_S + 100)
        assert (found.result, found.lifetime_s) == (pcp.NOT_AUTHORIZED, 3500)
    assert table.held == before


def test_rfc6887_sec11_3_a_static_mapping_is_told_and_stays() -> None:
    table = kept(STATIC)
    before = dict(table.held)
    found = told(table, map_request(HOST, UDP, 5000, nonce=OTHER_NONCE))
    assert (found.result, found.external_port, found.nonce) == (pcp.SUCCESS, 3333, OTHER_NONCE)
    assert table.held == before


def test_rfc6887_sec11_3_a_mapping_of_sessions_becomes_one_that_was_asked_for() -> None:
    table = kept(DYNAMIC)
    assert told(table, map_request(HOST, UDP, 5000)).external_port == 3333
    assert table.held[address(HOST), UDP, 5000].origin == PCP


@pytest.mark.parametrize(
    ("protocol", "port", "lifetime_s", "result"),
    [
        (0, 80, 60, pcp.MALFORMED_REQUEST), (0, 80, 0, pcp.MALFORMED_REQUEST), (0, 0, 60, pcp.UNSUPP_PROTOCOL),
        (TCP, 0, 60, pcp.UNSUPP_PROTOCOL), (132, 80, 60, pcp.UNSUPP_PROTOCOL), (1, 80, 60, pcp.UNSUPP_PROTOCOL),
        (132, 80, 0, pcp.UNSUPP_PROTOCOL), (0, 0, 0, pcp.SUCCESS), (UDP, 0, 0, pcp.SUCCESS), (TCP, 80, 0, pcp.SUCCESS),
    ],
)  # fmt: skip
def test_rfc6887_sec11_3_only_single_ports_of_tcp_and_udp_are_mapped(
    protocol: int, port: int, lifetime_s: int, result: int
) -> None:
    table = Plain()
    assert told(table, map_request(HOST, protocol, port, lifetime_s)).result == result
    assert not table.held


def test_rfc6887_sec15_lifetimes_are_neither_too_short_nor_too_long() -> None:
    policy, table = Policy(minimum_s=120, maximum_s=1000), Plain()
    for asked_s, granted_s in ((1, 120), (500, 500), (0xFFFFFFFF, 1000)):
        assert told(table, map_request(HOST, UDP, 5000, asked_s), policy=policy).lifetime_s == granted_s


def test_rfc6887_sec15_1_lifetime_zero_ends_what_was_asked_for() -> None:
    table = Plain()
    told(table, map_request(HOST, UDP, 5000))
    found = told(table, map_request(HOST, UDP, 5000, 0))
    assert (found.result, found.lifetime_s, found.external_port) == (pcp.SUCCESS, 0, 0)
    assert not table.held
    assert told(table, map_request(HOST, UDP, 5000, 0)).result == pcp.SUCCESS  # the same twice


@pytest.mark.parametrize("origin", [DYNAMIC, STATIC])
def test_rfc6887_sec15_1_what_nobody_asked_for_cannot_be_ended(origin: str) -> None:
    table = kept(origin)
    before = dict(table.held)
    found = told(table, map_request(HOST, UDP, 5000, 0))
    assert (found.result, found.lifetime_s) == (pcp.NOT_AUTHORIZED, pcp.LONG_S)
    assert table.held == before


def test_rfc6887_sec15_1_all_of_a_protocol_and_all_of_a_host_are_ended_together() -> None:
    table = Plain()
    for protocol, port in ((TCP, 1), (TCP, 2), (UDP, 3)):
        told(table, map_request(HOST, protocol, port))
    told(table, map_request(OTHER, TCP, 1), OTHER)
    told(table, map_request(HOST, UDP, 4, nonce=OTHER_NONCE))
    assert told(table, map_request(HOST, TCP, 0, 0)).result == pcp.SUCCESS
    assert {port for _, _, port in table.held} == {1, 3, 4}
    assert told(table, map_request(HOST, 0, 0, 0)).result == pcp.NOT_AUTHORIZED  # that of another nonce stays
    assert sorted(port for _, _, port in table.held) == [1, 4]


def test_rfc6887_sec13_2_prefer_failure_is_that_or_nothing() -> None:
    table = Plain()
    first = told(table, map_request(HOST, UDP, 5000, wanted="203.0.113.1:4444", options=PREFER_FAILURE))
    assert (first.result, first.external_port, first.options) == (pcp.SUCCESS, 4444, PREFER_FAILURE)
    refused = map_request(OTHER, UDP, 5000, wanted="203.0.113.1:4444", options=PREFER_FAILURE)
    found = told(table, refused, OTHER)
    assert (found.result, found.lifetime_s, found.options) == (pcp.CANNOT_PROVIDE_EXTERNAL, pcp.SHORT_S, PREFER_FAILURE)
    moved = map_request(HOST, UDP, 5000, wanted="203.0.113.1:4445", options=PREFER_FAILURE)
    assert told(table, moved).result == pcp.CANNOT_PROVIDE_EXTERNAL
    assert len(table.held) == 1


def test_rfc6887_sec13_1_third_parties_are_asked_for_only_where_that_is_allowed_and_within_a_subscriber() -> None:
    allowed, table = Policy(third_party=True), Plain(together={address(HOST), address(OTHER)})
    party = option(pcp.THIRD_PARTY, pcp.mapped(address(OTHER)))
    own = option(pcp.THIRD_PARTY, pcp.mapped(address(HOST)))
    stranger = option(pcp.THIRD_PARTY, pcp.mapped(address("100.64.0.99")))
    assert told(table, map_request(HOST, UDP, 5000, options=party)).result == pcp.UNSUPP_OPTION
    assert told(table, map_request(HOST, UDP, 5000, options=own), policy=allowed).result == pcp.MALFORMED_REQUEST
    assert told(table, map_request(HOST, UDP, 5000, options=stranger), policy=allowed).result == pcp.NOT_AUTHORIZED
    assert not table.held
    found = told(table, map_request(HOST, UDP, 5000, options=party), policy=allowed)
    assert (found.result, found.options) == (pcp.SUCCESS, party)
    assert list(table.held) == [(address(OTHER), UDP, 5000)]


def test_rfc6888_req9_a_subscriber_has_so_many_mappings_and_no_more() -> None:
    table = Plain(each=2)
    results = [told(table, map_request(HOST, UDP, port)) for port in (1, 2, 3)]
    assert [found.result for found in results] == [pcp.SUCCESS, pcp.SUCCESS, pcp.USER_EX_QUOTA]
    assert results[2].lifetime_s == pcp.SHORT_S
    assert told(table, map_request(OTHER, UDP, 1), OTHER).result == pcp.SUCCESS


# --- what is no good ------------------------------------------------------------------------------------------------------


GOOD = map_request(HOST, UDP, 5000)


@pytest.mark.parametrize(
    ("datagram", "result"),
    [
        (b"\1" + GOOD[1:], pcp.UNSUPP_VERSION), (b"\3" + GOOD[1:], pcp.UNSUPP_VERSION), (GOOD[:-4], pcp.MALFORMED_REQUEST),
        (GOOD[:-1], pcp.MALFORMED_REQUEST), (GOOD[:24], pcp.MALFORMED_REQUEST), (GOOD[:20], pcp.MALFORMED_REQUEST),
        (GOOD[:2], pcp.MALFORMED_REQUEST), (GOOD + bytes(1100), pcp.MALFORMED_REQUEST),
        (header(pcp.PEER, HOST, 60) + bytes(56), pcp.UNSUPP_OPCODE), (header(3, HOST), pcp.UNSUPP_OPCODE),
        (header(127, HOST), pcp.UNSUPP_OPCODE), (map_request(OTHER, UDP, 5000), pcp.ADDRESS_MISMATCH),
        (header(pcp.ANNOUNCE, OTHER), pcp.ADDRESS_MISMATCH), (GOOD + option(pcp.FILTER, bytes(20)), pcp.UNSUPP_OPTION),
        (GOOD + option(0), pcp.UNSUPP_OPTION), (GOOD + option(99, bytes(7)), pcp.UNSUPP_OPTION),
        (header(pcp.ANNOUNCE, HOST) + PREFER_FAILURE, pcp.UNSUPP_OPTION), (GOOD + 2 * PREFER_FAILURE, pcp.MALFORMED_OPTION),
        (GOOD + option(pcp.PREFER_FAILURE, bytes(4)), pcp.MALFORMED_OPTION),
        (GOOD + option(pcp.THIRD_PARTY, bytes(4)), pcp.MALFORMED_OPTION),
        (GOOD + struct.pack("!BxH", 200, 5), pcp.MALFORMED_OPTION),
    ],
)  # fmt: skip
def test_rfc6887_sec8_2_what_is_wrong_is_said_by_its_code_and_changes_nothing(datagram: bytes, result: int) -> None:
    """The answer is the request with another header, so that a client knows it by its nonce (RFC 6887 7.2)."""
    table = Plain(since_s=NOW_S - 7)
    found = ask(table, datagram)
    answered = read_answer(found.datagram)
    assert (found.result, answered.result) == (result, result)
    assert answered.lifetime_s == pcp.LONG_S and answered.epoch_s == 7 and answered.opcode == datagram[1] & 0x7F
    assert found.datagram[24:][: len(datagram) - 24] == datagram[24:1100][: len(found.datagram) - 24]
    assert not table.held


@pytest.mark.parametrize("datagram", [b"", b"\2", b"\0", b"\2\x81" + GOOD[2:], b"\0\x80" + bytes(10), b"\1\x80"])
def test_rfc6887_sec8_2_what_is_no_request_is_not_answered(datagram: bytes) -> None:
    assert ask(Plain(), datagram) == Answer(b"", None)


def test_rfc6887_sec7_3_options_that_need_not_be_known_are_passed_over() -> None:
    found = told(Plain(), GOOD + option(200, b"abcde") + PREFER_FAILURE)
    assert (found.result, found.options) == (pcp.SUCCESS, PREFER_FAILURE)


def test_rfc6887_sec14_1_announce_tells_the_epoch() -> None:
    assert told(Plain(since_s=400), header(pcp.ANNOUNCE, HOST)) == Told(pcp.ANNOUNCE, pcp.SUCCESS, 0, 600)


# --- NAT-PMP --------------------------------------------------------------------------------------------------------------


def test_rfc6886_the_external_address_is_told() -> None:
    assert ask(Plain(since_s=400), pmp_request(0)).datagram == struct.pack("!BBHII", 0, 128, 0, 600, EXTERNAL)
    assert ask(Plain(ours=False), pmp_request(0)).datagram == struct.pack("!BBHII", 0, 128, 3, NOW_S, 0)


def test_rfc6886_a_mapping_is_made_renewed_and_ended() -> None:
    table = Plain()
    made = ask(table, pmp_request(2, 8080, 9090, 7200)).datagram
    assert made == struct.pack("!BBHIHHI", 0, 130, 0, NOW_S, 8080, 9090, 7200)
    assert ask(table, pmp_request(2, 8080, 1, 7200)).datagram == made
    assert ask(table, pmp_request(2, 8080, 0, 0)).datagram == struct.pack("!BBHIHHI", 0, 130, 0, NOW_S, 8080, 0, 0)
    assert not table.held


def test_rfc6886_all_of_a_protocol_are_ended_together() -> None:
    table = Plain()
    for opcode, port in ((1, 1), (1, 2), (2, 3)):
        ask(table, pmp_request(opcode, port))
    assert ask(table, pmp_request(1, 0, 0, 0)).result == pcp.SUCCESS
    assert [port for _, _, port in table.held] == [3]
    assert ask(table, pmp_request(1, 0, 0, 60)).result == pcp.NOT_AUTHORIZED


def test_rfc6886_errors_have_codes_of_their_own() -> None:
    table = Plain(each=0)
    assert struct.unpack("!BBHI", ask(table, b"\0\5" + bytes(10)).datagram)[:3] == (0, 133, 5)
    assert struct.unpack("!BBHIHHI", ask(table, pmp_request(1, 80)).datagram) == (0, 129, 4, NOW_S, 80, 0, 0)
    assert struct.unpack("!BBHIHHI", ask(kept(STATIC), pmp_request(1, 5000, 0, 0)).datagram)[2] == 2


def test_rfc6887_appendix_a_a_client_of_nat_pmp_is_told_what_is_spoken_where_it_is_not_served() -> None:
    for datagram in (pmp_request(0), pmp_request(1, 80), b"\0\5"):
        found = told(Plain(), datagram, policy=Policy(nat_pmp=False))
        assert (found.result, found.opcode) == (pcp.UNSUPP_VERSION, datagram[1])


@pytest.mark.parametrize("asked", sorted(RULES))
def test_who_keeps_a_mapping_decides_what_may_be_done_to_it(asked: tuple[str, str]) -> None:
    """Each line of the picture, by a request to live and one to end."""
    origin, asks = asked
    for lifetime_s, deed in zip((600, 0), RULES[asked], strict=True):
        table = Plain() if origin == "nobody" else kept(origin)
        before = dict(table.held)
        datagram = map_request(HOST, UDP, 5000, lifetime_s) if asks == PCP else pmp_request(1, 5000, 0, lifetime_s)
        result = ask(table, datagram).result
        assert (result == pcp.NOT_AUTHORIZED) == (deed == "refuse")
        if deed in ("refuse", "tell", "nothing"):
            assert table.held == before
        elif deed == "end":
            assert not table.held
        else:
            assert [held.origin for held in table.held.values()] == [asks]


def test_the_picture_knows_everybody() -> None:
    assert {origin for origin, _ in RULES} == {"nobody", DYNAMIC, STATIC, PCP, NAT_PMP, ADOPTED}
    assert len(RULES) == 12


# --- anything -------------------------------------------------------------------------------------------------------------


def _mutated(dice: random.Random) -> bytes:
    seeds = (GOOD, GOOD + PREFER_FAILURE, pmp_request(1, 80), pmp_request(0), header(pcp.ANNOUNCE, HOST), dice.randbytes(80))
    datagram = bytearray(dice.choice(seeds))
    for _ in range(dice.randrange(4)):
        datagram[dice.randrange(len(datagram))] = dice.choice((0, 1, 2, 127, 128, 255, dice.randrange(256)))
    cut = dice.randrange(len(datagram) + 1) if dice.random() < 0.2 else len(datagram)
    return bytes(datagram[:cut]) + dice.randbytes(dice.choice((0, 0, 0, 4, 3, 1200)))


@pytest.mark.parametrize("nat_pmp", [True, False])
def test_whatever_bytes_come_an_answer_or_nothing_comes_of_them(nat_pmp: bool) -> None:
    """And no answer is much longer than what it answers: who forges a source has little of it (RFC 6887 18)."""
    dice, table, policy = random.Random(7), Plain(each=50), Policy(nat_pmp=nat_pmp)
    seen: set[int | None] = set()
    for _ in range(20_000):
        datagram = _mutated(dice)
        found = ask(table, datagram, dice.choice((HOST, OTHER)), policy=policy)
        assert len(found.datagram) <= max(len(datagram) + 3, 24) and bool(found.datagram) == (found.result is not None)
        seen.add(found.result)
    assert {None, pcp.SUCCESS, pcp.UNSUPP_VERSION, pcp.MALFORMED_REQUEST, pcp.UNSUPP_OPCODE, pcp.ADDRESS_MISMATCH} <= seen
