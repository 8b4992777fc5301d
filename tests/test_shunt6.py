"""Packets of IPv6 between two cores: what only the authority may serve is passed there whole, sealed, and served there."""

from __future__ import annotations

from shards import invariants
from tests import frames, frames6, shunts
from tests.bare_core import Core, Result
from tests.frames import address, build_frame, mac_of
from tests.frames6 import address6, mac_of6
from tests.fuzz import bed
from tests.pair import EPOCH, sender_of6

HERE, THERE = (address(text) for text in ("192.0.2.9", "192.0.2.10"))
GIVEN = """
pool 203.0.113.0/30 block 64 blocks 4
pool 203.0.113.4/30 block 64 blocks 4 name other shard 1
subscribers 100.64.0.0/24
subscribers 100.64.1.0/24 pool other
subscribers6 2400:c0de::/48 each 56 of 100.64.0.0/24
subscribers6 2400:c0df::/48 each 56 of 100.64.1.0/24
pinhole tcp internal-ports 80
peer 192.0.2.9
peer 192.0.2.10
inside address 172.16.0.1/24 gateway 172.16.0.2 address6 2400:c0de:fff::1/64 gateway6 fe80::2
"""
QUESTION = "udp [2400:c0df:0:500::5]:4000 > [2600::9]:53 traffic 0x0b800000 len 9"


def core_at(host: int, shard: int, authority: int) -> Core:
    """A core with the authority over the other shard only."""
    given = bed(
        GIVEN
        + f"outside address {frames.dotted(host)}/24 gateway 192.0.2.1 address6 2600:1::{host & 255:x}/64 gateway6 fe80::1\n"
        + f"shard {shard} role passive authority {frames.dotted(authority)}\n"
    )
    core = Core(given, EPOCH)
    core.resolve(HERE, THERE, address("172.16.0.2"), address6("fe80::1"), address6("fe80::2"))
    return core


def cores() -> tuple[Core, Core]:
    return core_at(HERE, 1, THERE), core_at(THERE, 0, HERE)


def hand(core: Core, side: str, line: str) -> Result:
    packet = frames6.read(line)
    port = core.bed.inside if side == "inside" else core.bed.outside
    frame = build_frame(mac_of(port.address), sender_of6(core.bed, side, packet), frames6.build(packet), port.vlan, 0x86DD)
    return core.receive([(side, frame)], EPOCH)[0]


def passed_on(result: Result, there: Core) -> Result:
    assert result.verdict == "shunted" and result.sent
    return there.receive([("outside", result.sent)], EPOCH)[0]


def test_a_packet_for_another_authority_goes_there_as_it_came_and_is_served() -> None:
    here, there = cores()
    result = hand(here, "inside", QUESTION)
    assert result.verdict == "shunted" and result.sent
    to, _, _, ethertype, data = frames.split_frame(result.sent)
    told, inner = shunts.unwrap(frames.dissect(data))
    assert (to, ethertype, told) == (mac_of(THERE), 0x0800, shunts.Wrapping(HERE, THERE, "inside", 1, 1))
    assert inner == frames6.build(frames6.read(QUESTION)) and frames.dissect(data).tos == 0xB8
    served = passed_on(result, there)
    assert served.verdict == "forwarded_out" and served.sent
    assert frames.split_frame(served.sent)[0] == mac_of6(address6("fe80::1"))
    assert frames.split_frame(served.sent)[4] == inner[:7] + bytes([63]) + inner[8:]
    assert len(invariants.lines6(there.state)) == 1 and len(invariants.lines6(here.state)) == 0
    answer = passed_on(hand(here, "outside", "udp [2600::9]:53 > [2400:c0df:0:500::5]:4000"), there)
    assert answer.verdict == "forwarded_in"
    for core in (here, there):
        assert not (wrong := invariants.complaints(core.state)), wrong


def test_what_is_refused_there_is_told_to_its_sender_from_there() -> None:
    here, there = cores()
    refused = passed_on(hand(here, "inside", QUESTION + " ttl 1"), there)
    assert refused.verdict == "ttl_exceeded" and refused.sent
    error = frames6.dissect(frames.split_frame(refused.sent)[4])
    assert (error.destination, error.kind) == (address6("2400:c0df:0:500::5"), 0x0300)
    assert frames.split_frame(refused.sent)[0] == mac_of6(address6("fe80::2"))
    assert passed_on(hand(here, "outside", "udp [2600::9]:54 > [2400:c0df:0:500::5]:4000"), there).verdict == "unsolicited"


def test_between_subscribers_of_two_cores_each_serves_its_own() -> None:
    here, there = cores()
    result = hand(here, "inside", "tcp [2400:c0de:0:500::5]:4000 > [2400:c0df:0:500::5]:80 syn")
    assert result.sent and shunts.unwrap(frames.dissect(frames.split_frame(result.sent)[4]))[0].turned
    assert passed_on(result, there).verdict == "forwarded_in"
    answer = hand(there, "inside", "tcp [2400:c0df:0:500::5]:80 > [2400:c0de:0:500::5]:4000 syn ack")
    assert passed_on(answer, here).verdict == "forwarded_in"
    assert len(invariants.lines6(here.state)) == len(invariants.lines6(there.state)) == 1


def test_a_packet_whose_destination_was_changed_on_the_way_is_foreign() -> None:
    here, there = cores()
    sent = bytearray(hand(here, "inside", QUESTION).sent or b"")
    sent[14 + 44 + 39] ^= 1
    assert there.receive([("outside", bytes(sent))], EPOCH)[0].verdict == "shunt_foreign"
    sent = bytearray(hand(here, "inside", QUESTION).sent or b"")
    sent[14 + 44 + 5] += 1
    assert there.receive([("outside", bytes(sent))], EPOCH)[0].verdict == "shunt_malformed"


FRAGMENTED = "udp [2400:c0df:0:500::5]:4000 > [2600::9]:53 len 100 with hop-by-hop fragment/0/0/77"


def piece_of(core: Core, side: str, line: str, first: int, last: int) -> Result:
    packet = frames6.read(line)
    port = core.bed.inside if side == "inside" else core.bed.outside
    data = frames6.piece(frames6.build(packet), first, last)
    frame = build_frame(mac_of(port.address), sender_of6(core.bed, side, packet), data, port.vlan, 0x86DD)
    return core.receive([(side, frame)], EPOCH)[0]


def test_fragments_go_to_the_authority_behind_their_first_and_are_served_there_in_any_order() -> None:
    here, there = cores()
    late = piece_of(here, "inside", FRAGMENTED, 48, 108)
    assert late.verdict == "held"
    first = piece_of(here, "inside", FRAGMENTED, 0, 24)
    middle = piece_of(here, "inside", FRAGMENTED, 24, 48)
    (last,) = here.again(EPOCH + 1)
    assert passed_on(last, there).verdict == "held"
    assert passed_on(first, there).verdict == "forwarded_out"
    served = passed_on(middle, there)
    assert served.verdict == "forwarded_out" and served.sent and middle.sent
    inner = shunts.unwrap(frames.dissect(frames.split_frame(middle.sent)[4]))[1]
    assert frames.split_frame(served.sent)[4] == inner[:7] + bytes([63]) + inner[8:]
    assert [result.verdict for result in there.again(EPOCH + 2)] == ["forwarded_out"]
    assert there.state.core[0]["fragmented"] == here.state.core[0]["fragmented"] == 0
    answer = FRAGMENTED.replace("udp [2400:c0df:0:500::5]:4000 > [2600::9]:53", "udp [2600::9]:53 > [2400:c0df:0:500::5]:4000")
    assert passed_on(piece_of(here, "outside", answer, 0, 24), there).verdict == "forwarded_in"
    assert passed_on(piece_of(here, "outside", answer, 24, 108), there).verdict == "forwarded_in"


def test_fragments_between_subscribers_of_two_cores() -> None:
    here, there = cores()
    line = "tcp [2400:c0de:0:500::5]:4000 > [2400:c0df:0:500::5]:80 syn len 100 with fragment/0/0/78"
    assert passed_on(piece_of(here, "inside", line, 0, 40), there).verdict == "forwarded_in"
    assert passed_on(piece_of(here, "inside", line, 40, 120), there).verdict == "forwarded_in"


def test_fragments_whose_first_is_refused_there_end_there() -> None:
    here, there = cores()
    line = "tcp [2400:c0df:0:500::5]:4000 > [2600::9]:80 ack len 100 with fragment/0/0/79"
    assert passed_on(piece_of(here, "inside", line, 0, 24), there).verdict == "tcp_not_opening"
    assert passed_on(piece_of(here, "inside", line, 24, 48), there).verdict == "fragment_refused"
