"""Sessions of IPv6 as people see them: listed, filtered, traced."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network

import pytest

from krononat import appliance, config, view
from krononat.cli import sessions as cli_sessions
from krononat.cli.sessions import conntrack
from krononat.client import Trouble
from krononat.packet import build, read_packet
from krononat.view import Filter
from shards import protocols, sessions
from shards.jit import PURE
from shards.state import EXTERNAL, INTERNAL
from tests import frames6
from tests.frames import build_frame, mac_of
from tests.fuzz import bed
from tests.pair import EPOCH, Pair, sender_of6
from tests.test_config6 import SIX

BED = """
subscribers 100.64.0.0/24
subscribers6 2400:c0de::/48 each 56 of 100.64.0.0/24
inside address6 2400:c0de:fff::1/64 gateway6 fe80::2
outside address6 2600:1::2/64 gateway6 fe80::1
"""
LINES = (
    "udp [2400:c0de:0:700::5]:4000 > [2600::9]:53",
    "tcp [2400:c0de:0:800::5]:4000 > [2600::9]:80 syn",
    "echo [2400:c0de:0:700::5]:7 > [2600::8]",
    "esp [2400:c0de:0:700::5] > [2600::8] len 8",
)


def pair() -> Pair:
    made = Pair(bed(BED))
    for line in LINES:
        packet = frames6.read(line)
        ethernet = mac_of(made.bed.inside.address), sender_of6(made.bed, "inside", packet)
        made.receive([("inside", build_frame(*ethernet, frames6.build(packet), 0, 0x86DD))])
    made.check()
    return made


def listed(made: Pair, wanted: Filter = Filter()) -> list[tuple[str, str, int, str, int]]:  # noqa: B008
    found = view.sessions(made.core.state, wanted, EPOCH)
    return [(one.protocol, one.internal, one.internal_port, one.remote, one.remote_port) for one in found]


def test_they_are_listed_filtered_counted_and_shown() -> None:
    made = pair()
    assert listed(made) == [
        ("udp", "2400:c0de:0:700::5", 4000, "2600::9", 53),
        ("tcp", "2400:c0de:0:800::5", 4000, "2600::9", 80),
        ("icmp6", "2400:c0de:0:700::5", 7, "2600::8", 0),
        ("esp", "2400:c0de:0:700::5", 0, "2600::8", 0),
    ]
    inside = IPv6Network("2400:c0de:0:700::/56")
    assert [one[0] for one in listed(made, Filter(source=inside))] == ["udp", "icmp6", "esp"]
    assert [one[0] for one in listed(made, Filter(destination=IPv6Network("2600::9/128")))] == ["udp", "tcp"]
    assert [one[0] for one in listed(made, Filter(protocol=1))] == ["icmp6"] and not listed(made, Filter(source_port=1))
    assert not listed(made, Filter(source=IPv4Network("0.0.0.0/0"))) and listed(made, Filter(state="init"))[0][0] == "tcp"
    state = made.core.state
    assert view.count_sessions(state, Filter(), EPOCH) == 4 and view.count_sessions(state, Filter(source=inside), EPOCH) == 3
    first = next(view.sessions(state, Filter(), EPOCH))
    assert view.session(state, first.line, EPOCH) == first and view.session(state, first.line + 1, EPOCH) is None
    assert (first.expires_s, first.shard, first.state) == (300, 0, "udp")
    assert conntrack(first).startswith("udp      17 300 src=2400:c0de:0:700::5 dst=2600::9 sport=4000 dport=53")


def test_one_that_is_deleted_is_gone() -> None:
    made = pair()
    first = next(view.sessions(made.core.state, Filter(), EPOCH))
    assert not sessions.delete_life(made.core.state, first.line + 1, first.generation, EPOCH)
    assert not sessions.delete_life(made.core.state, first.line, first.generation + 1, EPOCH)
    assert sessions.delete_life(made.core.state, first.line, first.generation, EPOCH)
    assert view.session(made.core.state, first.line, EPOCH) is None and len(listed(made)) == 3


def test_names_of_protocols_are_the_same_everywhere() -> None:
    assert {name: number for number, name in protocols.NAMES.items()} == cli_sessions.NUMBERS
    assert {number: protocols.number(protocols.name(number)) for number in range(256)} == {n: n for n in range(256)}


def test_packets_are_read_and_built() -> None:
    packet = read_packet("tcp syn,ack [2600::9]:443 > [2400:c0de::5]:4000 ttl 3")
    assert str(packet) == "tcp syn,ack [2600::9]:443 > [2400:c0de::5]:4000"
    assert str(frames6.dissect(build(packet, bytes(6))[14:])) == "tcp [2600::9]:443 > [2400:c0de::5]:4000 syn ack ttl 3"
    echo = frames6.dissect(build(read_packet("icmp 2600::9 > 2400:c0de::5 id 9 length 100"), bytes(6))[14:])
    assert str(echo) == "echo [2600::9]:9 > [2400:c0de::5] len 52"
    for wrong in ("udp [2600::9]:1 > 192.0.2.1:2", "udp [2600::9] > [2600::8]:2", "icmp timestamp 2600::9 > 2600::8"):
        with pytest.raises(Trouble):
            read_packet(wrong)


if PURE:

    def test_a_trace_tells_why() -> None:
        os.environ["NUMBA_DISABLE_JIT"] = "1"
        from krononat import trace

        def told(text: str, side: int) -> tuple[str, dict[str, str]]:
            state = appliance.offline(config.read(SIX))
            trace.settle_in(state, EPOCH)
            way = trace.trace(state, read_packet(text), side, ["its own", "everyone's", "six"], EPOCH)
            return way.verdict.name, {stage.stage: stage.told for stage in way.stages}

        verdict, stages = told("udp [2400:c0de:0:800::5]:4000 > [2600::9]:53", INTERNAL)
        assert verdict == "forwarded_out" and stages["next hop"].startswith("2600:1::1 at the external port")
        assert stages["session"].startswith("opened") and "ttl 63" in stages["send"]
        verdict, stages = told("tcp [2400:c0de:0:700::5]:4000 > [2600::9]:25", INTERNAL)
        assert verdict == "rule_rejected" and stages["rules"] == "rule 0 decides: its own"
        assert "icmp error 1/1" in stages["send"]
        assert told("tcp [2600::9]:999 > [2400:c0de:0:800::5]:80", EXTERNAL)[0] == "unsolicited"
        verdict, stages = told("tcp [2600::9]:999 > [2400:c0de:0:700::5]:80", EXTERNAL)
        assert verdict == "forwarded_in"
        assert told("icmp 2600::9 > 2600:1::2", EXTERNAL)[0] == "punted"
