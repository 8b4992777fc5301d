"""The PCP server as a function, over a plain dictionary: what each request makes of it (RFC 6887, RFC 6886)."""

from __future__ import annotations

import random
import struct

import pytest

from krononat import pcp
from krononat.pcp import TCP, UDP
from krononat.pcp_server import ADOPTED, DYNAMIC, ENDED, FOR_EVER, NAT_PMP, PCP, RULES, STATIC, Answer, Held, Policy, answer
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
    assert found.lifetime_s == FOR_EVER and table.held == before


def test_rfc6887_sec11_3_a_mapping_of_sessions_becomes_one_that_was_asked_for() -> None:
    table = kept(DYNAMIC)
    assert told(table, map_request(HOST, UDP, 5000)).external_port == 3333
    assert table.held[address(HOST), UDP, 5000].origin == PCP


@pytest.mark.parametrize(
    ("protocol", "port", "lifetime_s", "result"),
    [
        (0, 80, 60, pcp.MALFORMED_REQUEST), (0, 80, 0, pcp.MALFORMED_REQUEST), (0, 0, 60, pcp.UNSUPP_PROTOCOL),
        (TCP, 0, 60, pcp.UNSUPP_PROTOCOL), (132, 80, 60, pcp.UNSUPP_PROTOCOL), (1, 80, 60, pcp.UNSUPP_PROTOCOL),
        (132, 80, 0, pcp.SUCCESS), (0, 0, 0, pcp.SUCCESS), (UDP, 0, 0, pcp.SUCCESS), (TCP, 80, 0, pcp.SUCCESS),
    ],
)  # fmt: skip
def test_rfc6887_sec11_3_only_single_ports_of_tcp_and_udp_are_mapped(
    protocol: int, port: int, lifetime_s: int, result: int
) -> None:
    """What cannot be there is ended with success (RFC 6887 15.1)."""
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
    assert told(table, map_request(HOST, UDP, 5000, 0)) == found  # the same twice


def test_rfc6887_sec15_1_who_ends_what_sessions_use_may_repeat_it_and_nobody_else() -> None:
    """An answer may be lost. What sessions keep is nobody's to end, whoever asks then."""
    table = Plain(used={(address(HOST), UDP, 5000)})
    told(table, map_request(HOST, UDP, 5000))
    first = ask(table, map_request(HOST, UDP, 5000, 0))
    assert first.result == pcp.SUCCESS and first == ask(table, map_request(HOST, UDP, 5000, 0))
    assert told(table, map_request(HOST, UDP, 5000, 0, OTHER_NONCE)).result == pcp.NOT_AUTHORIZED
    assert [held.origin for held in table.held.values()] == [ENDED]
    assert told(table, map_request(HOST, UDP, 5000, nonce=OTHER_NONCE)).result == pcp.SUCCESS
    assert told(table, map_request(HOST, UDP, 5000, 0)).result == pcp.NOT_AUTHORIZED  # the nonce is the new one


@pytest.mark.parametrize("suggested", [bytes(16), pcp.mapped(0), pcp.mapped(EXTERNAL), bytes(range(16))])
def test_rfc6887_sec15_1_what_is_suggested_with_lifetime_zero_is_copied(suggested: bytes) -> None:
    table, datagram = Plain(), bytearray(map_request(HOST, UDP, 5000, 0))
    datagram[42:] = struct.pack("!H", 77) + suggested
    assert ask(table, bytes(datagram)).datagram[42:] == datagram[42:]


@pytest.mark.parametrize("origin", [DYNAMIC, STATIC])
def test_rfc6887_sec15_1_what_nobody_asked_for_cannot_be_ended(origin: str) -> None:
    table = kept(origin)
    before = dict(table.held)
    found = told(table, map_request(HOST, UDP, 5000, 0))
    assert (found.result, found.lifetime_s) == (pcp.NOT_AUTHORIZED, pcp.LONG_S)
    assert table.held == before


@pytest.mark.parametrize("protocol", [0, TCP, UDP])
def test_rfc6887_sec15_1_the_end_of_the_mapping_of_all_ports_ends_no_other(protocol: int) -> None:
    """There is none, so it is there no more."""
    table = Plain()
    for mapped, port in ((TCP, 1), (UDP, 3)):
        told(table, map_request(HOST, mapped, port))
    before = dict(table.held)
    found = told(table, map_request(HOST, protocol, 0, 0))
    assert (found.result, found.lifetime_s, found.protocol, found.port) == (pcp.SUCCESS, 0, protocol, 0)
    assert table.held == before


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


@pytest.mark.parametrize(("lifetime_s", "port"), [(0, 4444), (3600, 0), (0, 0)])
def test_rfc6887_sec13_2_prefer_failure_that_makes_no_sense_is_malformed(lifetime_s: int, port: int) -> None:
    table = Plain()
    told(table, map_request(HOST, UDP, 5000, wanted="203.0.113.1:4444"))
    before = dict(table.held)
    request = map_request(HOST, UDP, 5000, lifetime_s, wanted=f"203.0.113.1:{port}", options=PREFER_FAILURE)
    assert told(table, request).result == pcp.MALFORMED_OPTION
    assert table.held == before


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
        (GOOD[:-1], pcp.MALFORMED_REQUEST), (GOOD[:24], pcp.MALFORMED_REQUEST), (b"\1" + GOOD[1:20], pcp.UNSUPP_VERSION),
        (b"\3\1", pcp.UNSUPP_VERSION), (GOOD + bytes(1100), pcp.MALFORMED_REQUEST),
        (header(pcp.PEER, HOST, 60) + bytes(56), pcp.UNSUPP_OPCODE), (header(3, HOST), pcp.UNSUPP_OPCODE),
        (header(127, HOST), pcp.UNSUPP_OPCODE), (map_request(OTHER, UDP, 5000), pcp.ADDRESS_MISMATCH),
        (header(pcp.ANNOUNCE, OTHER), pcp.ADDRESS_MISMATCH), (GOOD + option(pcp.FILTER, bytes(20)), pcp.UNSUPP_OPTION),
        (GOOD + option(0), pcp.UNSUPP_OPTION), (GOOD + option(99, bytes(7)), pcp.UNSUPP_OPTION),
        (header(pcp.ANNOUNCE, HOST) + PREFER_FAILURE, pcp.UNSUPP_OPTION), (GOOD + 2 * PREFER_FAILURE, pcp.MALFORMED_OPTION),
        (GOOD + option(pcp.PREFER_FAILURE, bytes(4)), pcp.MALFORMED_OPTION),
        (GOOD + option(pcp.THIRD_PARTY, bytes(4)), pcp.MALFORMED_OPTION),
        (GOOD + struct.pack("!BxH", 200, 5), pcp.MALFORMED_OPTION),
        (GOOD + option(99) + struct.pack("!BxH", 200, 5), pcp.MALFORMED_OPTION),  # 7.3: all are whole, or none is looked into
        (map_request(OTHER, UDP, 5000)[:-1], pcp.MALFORMED_REQUEST), (header(9, OTHER), pcp.ADDRESS_MISMATCH),
        (map_request(OTHER, UDP, 5000) + option(99), pcp.ADDRESS_MISMATCH),
    ],
)  # fmt: skip
def test_rfc6887_sec8_2_what_is_wrong_is_said_by_its_code_and_changes_nothing(datagram: bytes, result: int) -> None:
    """The answer is the request with another header, so that a client knows it by its nonce (RFC 6887 7.2)."""
    table = Plain(since_s=NOW_S - 7)
    found = ask(table, datagram)
    answered = read_answer(found.datagram)
    assert (found.result, answered.result) == (result, result)
    assert answered.lifetime_s == pcp.LONG_S and answered.epoch_s == 7 and answered.opcode == datagram[1] & 0x7F
    padded = datagram[:1100] + bytes(max(24 - len(datagram), 0))
    assert found.datagram[24 : len(padded)] == padded[24:]
    not_parsed = result in (pcp.UNSUPP_VERSION, pcp.MALFORMED_REQUEST, pcp.MALFORMED_OPTION)
    assert found.datagram[12:24] == (padded[12:24] if not_parsed else bytes(12))  # 7.2
    assert not table.held


@pytest.mark.parametrize(
    "datagram",
    [
        b"", b"\2", b"\0", b"\2\x81" + GOOD[2:], b"\0\x80" + bytes(10), b"\1\x80", GOOD[:2], GOOD[:20], GOOD[:23],
        header(pcp.ANNOUNCE, HOST)[:20], b"\0\1", b"\0\2" + bytes(9),
    ],
)  # fmt: skip
def test_rfc6887_sec8_2_what_is_no_request_is_not_answered(datagram: bytes) -> None:
    assert ask(Plain(), datagram) == Answer(b"", None)


def test_rfc6887_sec7_3_options_that_need_not_be_known_are_passed_over() -> None:
    found = told(Plain(), map_request(HOST, UDP, 5000, wanted="0.0.0.0:2000") + option(200, b"abcde") + PREFER_FAILURE)
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
    ask(table, pmp_request(1, 1), OTHER)
    assert ask(table, pmp_request(1, 0, 0, 0)).datagram == struct.pack("!BBHIHHI", 0, 129, 0, NOW_S, 0, 0, 0)
    assert sorted(table.held) == [(address(HOST), TCP, 3), (address(OTHER), UDP, 1)]
    assert ask(table, pmp_request(1, 0, 0, 60)).result == pcp.NOT_AUTHORIZED


@pytest.mark.parametrize("origin", [STATIC, PCP])
def test_rfc6886_of_all_of_a_protocol_as_many_as_can_be_are_ended(origin: str) -> None:
    """What stays is told: the operator's, and what another client has the nonce of."""
    table = kept(origin)
    ask(table, pmp_request(1, 1))
    answered = ask(table, pmp_request(1, 0, 0, 0)).datagram
    assert struct.unpack("!BBHIHHI", answered) == (0, 129, 2, NOW_S, 0, 0, 0)
    assert list(table.held) == [(address(HOST), UDP, 5000)]


def test_rfc6886_what_is_not_there_is_ended_with_success() -> None:
    """So is what sessions keep, of which NAT-PMP knows nothing; and the same a second time."""
    for table in (Plain(), kept(DYNAMIC), kept(ENDED)):
        before = dict(table.held)
        for _ in range(2):
            answered = ask(table, pmp_request(1, 5000, 99, 0)).datagram
            assert struct.unpack("!BBHIHHI", answered) == (0, 129, 0, NOW_S, 5000, 0, 0)
        assert table.held == before


def test_rfc6886_nothing_is_offered_for_longer_than_it_was_asked_for() -> None:
    """A minimum is PCP's (RFC 6887 15)."""
    policy = Policy(minimum_s=120, maximum_s=1000)
    for origin in (NAT_PMP, STATIC, PCP, DYNAMIC):
        for asked_s, offered_s in ((1, 1), (60, 60), (500, 500), (0xFFFFFFFF, 600 if origin == PCP else 1000)):
            answered = ask(kept(origin), pmp_request(1, 5000, 0, asked_s), policy=policy).datagram
            assert struct.unpack("!BBHIHHI", answered) == (0, 129, 0, NOW_S, 5000, 3333, offered_s)


def test_rfc6886_errors_have_codes_of_their_own() -> None:
    """A request that is not known is returned entire, as an answer."""
    table, strange = Plain(each=0), b"\0\5" + bytes(range(10))
    assert ask(table, strange).datagram == struct.pack("!BBHI", 0, 133, 5, NOW_S) + strange[8:]
    assert ask(table, strange[:2]).datagram == struct.pack("!BBHI", 0, 133, 5, NOW_S)
    assert struct.unpack("!BBHIHHI", ask(table, pmp_request(1, 80)).datagram) == (0, 129, 4, NOW_S, 80, 0, 0)
    assert struct.unpack("!BBHIHHI", ask(kept(STATIC), pmp_request(1, 5000, 0, 0)).datagram)[2] == 2


def test_rfc6887_appendix_a_a_client_of_nat_pmp_is_told_what_is_spoken_where_it_is_not_served() -> None:
    for datagram in (pmp_request(0), pmp_request(1, 80), b"\0\5", b"\0\1"):
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
    assert {origin for origin, _ in RULES} == {"nobody", DYNAMIC, ENDED, STATIC, PCP, NAT_PMP, ADOPTED}
    assert len(RULES) == 14


# --- anything -------------------------------------------------------------------------------------------------------------


def _mutated(dice: random.Random) -> bytes:
    exact = map_request(HOST, TCP, 80, wanted="0.0.0.0:80", options=PREFER_FAILURE)
    plain = GOOD, exact, pmp_request(1, 80), pmp_request(0), header(pcp.ANNOUNCE, HOST)
    seeds = (*plain, GOOD + PREFER_FAILURE, dice.randbytes(80))
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
