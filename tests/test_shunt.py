"""Two cores that share the shards do together what one core alone does, whichever of them a packet comes to."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Network

import numpy as np
import pytest

from shards import invariants, shunt
from shards.jit import PURE
from tests import frames, fuzz, shunts
from tests.bare_core import Core, Result
from tests.bed import Bed, answer
from tests.frames import address, mac_of
from tests.pair import EPOCH
from tests.replicas import mappings, replicate

ALONE, FIRST, SECOND = (address(text) for text in ("192.0.2.2", "192.0.2.9", "192.0.2.10"))
GIVEN = """
pool 203.0.113.0/30 block 64 blocks 4
pool 203.0.113.4/30 block 128 blocks 4 name other shard 1 filtering address-dependent
subscribers 100.64.0.0/24
subscribers 100.64.1.0/24 pool other
static tcp 203.0.113.1:8080 to 100.64.0.7:80
static udp 203.0.113.5:53 to 100.64.1.7:53
rule outbound tcp remote-ports 25 reject
inside address 172.16.0.1/24 gateway 172.16.0.2
mss 1300
hold-down 0
errors 1000000
timeout udp 20.5
timeout icmp 10.5
timeout transitory 15.5
timeout established 60.5
"""
FRAMES = 1500 if PURE else 20_000


def core_at(host: int, *facts: str) -> Core:
    """A core with this external address that knows all its neighbours."""
    given = fuzz.bed(GIVEN + "\n".join((f"outside address {frames.dotted(host)}/24 gateway 192.0.2.1", *facts)), extents=8)
    core = Core(given, EPOCH)
    core.resolve(*range(address("192.0.2.0"), address("192.0.3.0")), address("172.16.0.2"))
    return core


class Both:
    """The two cores, each with the authority over one shard, beside one core that has both."""

    def __init__(self) -> None:
        self.alone = core_at(ALONE)
        peers = f"peer {frames.dotted(FIRST)}", f"peer {frames.dotted(SECOND)}"
        self.cores = {
            FIRST: core_at(FIRST, *peers, f"shard 1 role absent authority {frames.dotted(SECOND)}"),
            SECOND: core_at(SECOND, *peers, f"shard 0 role absent authority {frames.dotted(FIRST)}"),
        }
        self.received: Counter[int] = Counter()
        self.told: Counter[str] = Counter()

    def serve(self, host: int, side: str, frame: bytes, now: int) -> tuple[int, Result]:
        """What becomes of a frame that comes to a core: (core that has the last word, what it does)."""
        result = self._at(host, side, frame, now)
        if result.verdict != "shunted":
            return host, result
        assert result.sent
        self.told["shunted"] += 1
        wrapping, _ = shunts.unwrap(frames.dissect(frames.split_frame(result.sent)[4]))
        self.told["turned"] += wrapping.turned
        assert wrapping.source == host and result.sent[:6] == mac_of(wrapping.destination)
        return wrapping.destination, self._at(wrapping.destination, "outside", result.sent, now)

    def _at(self, host: int, side: str, frame: bytes, now: int) -> Result:
        self.received[host] += 1
        return self.cores[host].receive([(side, frame)], now)[0]

    def compare(self, host: int, side: str, frame: bytes, now: int) -> None:
        """Hand a frame to the core at `host`, and to the one that is alone; both do the same in the end."""
        self.received[ALONE] += 1
        wanted = self.alone.receive([(side, frame)], now)[0]
        last, result = self.serve(host, side, addressed(frame, host), now)
        self.told[result.verdict] += 1
        if wanted.verdict == "hairpinned":
            assert result.verdict in ("hairpinned", "forwarded_in")
        else:
            assert result.verdict == wanted.verdict, f"{frame.hex()} to {frames.dotted(host)}"
        assert neutral(result, last) == neutral(wanted, ALONE), f"{frame.hex()} to {frames.dotted(host)}"

    def pass_time(self, now: int) -> None:
        """Let it be `now` everywhere."""
        for core in (self.alone, *self.cores.values()):
            core.pass_time(now)


def addressed(frame: bytes, host: int) -> bytes:
    """A frame for the core that is alone, for another instead."""
    return mac_of(host) + frame[6:] if frame[:6] == mac_of(ALONE) else frame


def neutral(result: Result, host: int) -> object:
    """What was sent, without what says which core it was."""
    if result.sent is None:
        return None
    to, source, vlan, _, data = frames.split_frame(result.sent)
    packet = frames.dissect(data, arriving=False)
    if packet.source in (host, address("172.16.0.1")):  # an error of its own
        packet = replace(packet, source=0 if packet.source == host else 1, id=0)
    return to, source.replace(mac_of(host), bytes(6)), vlan, packet, result.port


def shard_of(host: int) -> int:
    """0 or 1 of a subscriber or an external address, else -1."""
    for prefix, shard in (("100.64.0.0/24", 0), ("100.64.1.0/24", 1), ("203.0.113.0/30", 0), ("203.0.113.4/30", 1)):
        if host in range(*(int(IPv4Network(prefix)[at]) for at in (0, -1))) or host == int(IPv4Network(prefix)[-1]):
            return shard
    return -1


def hosts_of(data: bytes) -> tuple[int, int]:
    """Source and destination of what may be an IPv4 packet."""
    return int.from_bytes(data[12:16], "big"), int.from_bytes(data[16:20], "big")


def test_two_cores_do_what_one_alone_does_whichever_gets_the_packet() -> None:
    both, choice = Both(), random.Random(11)
    traffic = fuzz.Traffic(12, both.alone.bed, lambda: mappings(both.alone.state))
    now = EPOCH
    for number in range(FRAMES):
        if number % 64 == 0:
            now += 250
            both.pass_time(now)
            traffic.targets = traffic.known()
        side, frame = traffic.frame()
        source, destination = hosts_of(frame[14:])
        if int.from_bytes(frame[20:22], "big") & 0x3FFF:
            continue  # all fragments of a datagram reach the same core: steering looks at addresses only
        if len(frame) > 1400:
            continue  # with the header of shunting it would be too long: see scenarios
        host = choice.choice((FIRST, SECOND))
        if side == "inside" and shard_of(destination) >= 0:  # a hairpin goes where its subscriber is: it is not shunted twice
            if shard_of(source) < 0:
                continue
            host = (FIRST, SECOND)[shard_of(source)]
        both.compare(host, side, frame, now)
    assert (
        both.told["shunted"] > FRAMES // 8
        and both.told["hairpinned"] > 0
        and both.told["turned"] > 0
        and both.told["forwarded_in"] > 100
    )
    for host, core in (*both.cores.items(), (ALONE, both.alone)):
        invariants.check(core.state, both.received[host], len(core.held))
    ours = sorted(mapping for core in both.cores.values() for mapping in mappings(core.state))
    assert ours == sorted(mappings(both.alone.state))


def test_a_replica_serves_hits_itself_and_shunts_misses() -> None:
    alone = core_at(ALONE)
    replica = core_at(FIRST, f"peer {frames.dotted(ALONE)}", *(f"shard {n} role passive authority 192.0.2.2" for n in (0, 1)))
    lines = [f"tcp 100.64.{net}.{host}:4000 > 198.51.100.9:80" for net in (0, 1) for host in range(2, 12)]
    for line in lines:
        assert told(alone, "inside", f"{line} syn").verdict == "forwarded_out"
    replicate(alone.state, replica, EPOCH)
    externals = [external for _, external, internal in mappings(alone.state) if internal[1] == 4000]
    answers = [("outside", f"tcp 198.51.100.9:80 > {frames.spell(*external)} syn ack") for external in externals]
    for side, line in answers + [("inside", f"{line} ack") for line in lines]:
        ours, theirs = told(replica, side, line), told(alone, side, line)
        assert (ours.verdict, neutral(ours, FIRST)) == (theirs.verdict, neutral(theirs, ALONE))
    assert told(replica, "inside", "udp 100.64.0.2:4001 > 198.51.100.9:53").verdict == "shunted"
    assert int(replica.state.shards["wanted"].sum()) == 0 and replica.state.peers[1]["sent"] == 1


def told(core: Core, side: str, line: str) -> Result:
    """What a core does with a packet from inside or outside."""
    port = core.bed.inside if side == "inside" else core.bed.outside
    frame = frames.build_frame(mac_of(port.address), mac_of(port.gateway), frames.build(frames.read(line)))
    return core.receive([(side, frame)], EPOCH)[0]


def test_the_next_hop_to_other_cores_is_asked_for_before_it_is_needed() -> None:
    given = Bed()
    for statement in ("peer 192.0.2.9", "peer 198.51.100.1", "shard 0 role passive authority 192.0.2.9"):
        given.say(statement)
    core = Core(given.complete(), EPOCH)
    shunt.prepare(core.state, EPOCH)
    answer(core.state, core.bed)
    assert told(core, "inside", "udp 100.64.0.2:4000 > 198.51.100.9:53").verdict == "shunted"


def test_what_waits_for_an_authority_is_counted_for_whoever_decides_who_has_it() -> None:
    given = Bed()
    given.say("shard 0 role passive")
    core = Core(given.complete(), EPOCH)
    assert told(core, "inside", "udp 100.64.0.2:4000 > 198.51.100.9:53").verdict == "held"
    assert core.state.shards[0]["wanted"] == 1
    core.again(EPOCH + 1)
    assert core.state.shards[0]["wanted"] == 2


@pytest.mark.parametrize("field", ["secret", "version"])
def test_a_core_with_another_key_or_version_is_refused_and_nothing_changes(field: str) -> None:
    core = core_at(ALONE, f"peer {frames.dotted(FIRST)}")
    other = core_at(FIRST, f"peer {frames.dotted(ALONE)}", *(f"shard {n} role absent authority 192.0.2.2" for n in (0, 1)))
    if field == "secret":
        other.state.settings[0]["secret"][1] ^= np.uint64(1)
    sent = bytearray(told(other, "inside", "udp 100.64.0.2:4000 > 198.51.100.9:53").sent or b"")
    if field == "version":
        sent[14 + 20 + 8 + 1] += 0x10
    result = core.receive([("outside", bytes(sent))], EPOCH)[0]
    assert (result.verdict, result.sent) == ({"secret": "shunt_foreign", "version": "shunt_malformed"}[field], None)
    assert int(core.state.shards["sessions"].sum()) == 0 and core.state.peers[1]["received"] == 0


def test_headers_fit_before_every_frame() -> None:
    """With Ethernet and a tag, whatever the frame that it came in had: see `pipeline.process`."""
    assert shunt.BYTES + 14 + 4 <= 64


if PURE:
    from krononat import trace
    from krononat.packet import read_packet
    from shards.state import INTERNAL

    @pytest.mark.parametrize("alive", [True, False])
    def test_a_trace_says_whose_a_packet_is(alive: bool) -> None:
        given = Bed()
        for statement in ("peer 192.0.2.9" + " dead" * (not alive), "shard 0 role passive authority 192.0.2.9"):
            given.say(statement)
        core = Core(given.complete(), EPOCH)
        traced = trace.trace(core.state, read_packet("udp 100.64.0.2:4000 > 198.51.100.10:53"), INTERNAL, [], EPOCH)
        (stage,) = (stage for stage in traced.stages if stage.stage == "shard")
        silent = "" if alive else ", and is not heard from"
        assert stage.told == f"0, of which this core is passive: 192.0.2.9 has the authority{silent}"
        assert traced.verdict.name == ("shunted" if alive else "held")
        assert ("192.0.2.2:7655 > 192.0.2.9:7655" in traced.sent) == alive
