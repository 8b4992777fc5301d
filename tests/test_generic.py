"""Protocols without ports beyond what scenarios say: copies, numbers from 128 on, places and blocks, what people are shown."""

from __future__ import annotations

from typing import Any

import pytest

from krononat import appliance, config, natlog, trace, view
from krononat.cli.sessions import conntrack
from krononat.packet import read_packet
from shards import generic, invariants, ports, protocols, recovery, sessions, tcp
from shards.jit import PURE
from shards.state import ACTIVE, HELD
from tests import admission, bed_rules, frames
from tests.fuzz import bed as given
from tests.pair import EPOCH, Pair
from tests.twins import Twins, frame, ready, say

PLAIN = """
pool 203.0.113.0/31 block 128 blocks 4
subscribers 100.64.0.0/24
static sctp 203.0.113.1 to 100.64.0.9
"""
FILTERING = """
pool 203.0.113.1/32 filtering address-dependent
subscribers 100.64.0.0/24
protocols 134 145 gre
"""


def test_what_is_known_of_protocols_is_the_same_everywhere() -> None:
    assert {number: least for number, least in protocols.LEAST.items() if admission.is_generic(number)} == {
        **admission.HEADERS, 51: 12
    }  # fmt: skip
    assert {name: protocols.number(name) for name in bed_rules.GENERIC} == bed_rules.GENERIC
    assert {frames.NAMES[name] for name in protocols.DEFAULT} == set(bed_rules.GENERIC.values())
    for number in range(256):
        translatable = number not in protocols.UNTRANSLATABLE
        assert generic.can_be_translated(number) == (translatable or not admission.is_generic(number))
        assert protocols.number(protocols.name(number)) == number


def test_protocols_of_128_and_more_are_not_taken_for_permissions() -> None:
    """134 is TCP with the bit of a permission, and 145 is UDP."""
    pair = Pair(given(FILTERING))
    pair.core.resolve(*(frames.address(text) for text in ("198.51.100.9", "198.51.100.8", "100.64.0.2", "100.64.0.3")))
    arrivals = [
        ("inside", "tcp 100.64.0.2:4000 > 198.51.100.9:80 syn"), ("inside", "udp 100.64.0.2:4000 > 198.51.100.9:80"),
        ("outside", "ip/134 198.51.100.9 > 203.0.113.1 len 40"), ("outside", "ip/145 198.51.100.9 > 203.0.113.1 len 40"),
        ("inside", "ip/134 100.64.0.3 > 198.51.100.9 len 40"), ("outside", "ip/134 198.51.100.9 > 203.0.113.1 len 40"),
        ("outside", "ip/145 198.51.100.9 > 203.0.113.1 len 40"), ("outside", "ip/134 198.51.100.8 > 203.0.113.1 len 40"),
    ]  # fmt: skip
    told = [pair.receive([frame(pair.bed, side, frames.read(text))])[0].verdict for side, text in arrivals]
    assert told == ["forwarded_out"] * 2 + ["no_mapping"] * 2 + ["forwarded_out", "forwarded_in"] + ["no_mapping"] * 2
    pair.check()


def test_a_copy_goes_on_with_sessions_and_owners_of_protocols_without_ports() -> None:
    twins = Twins(given(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    told = ("gre 100.64.0.2 > 192.0.2.70 len 40", "esp 100.64.0.3 > 192.0.2.70 len 40", "gre 100.64.0.2 > 192.0.2.71 len 40")
    externals = [frames.dissect(frames.split_frame(say(twins.one, text, EPOCH).sent or b"")[4]).source for text in told]
    twins.settle(EPOCH + 10)
    twins.check()
    twins.role(twins.other, ACTIVE, 0, epoch=2)
    back = say(twins.other, f"gre 192.0.2.70 > {frames.dotted(externals[0])} len 40", EPOCH + 20, "outside")
    assert back.verdict == "forwarded_in" and frames.dissect(frames.split_frame(back.sent or b"")[4]).destination & 0xFF == 2
    rival = next(
        host for host in range(10, 100)
        if say(twins.other, f"udp 100.64.0.{host}:4000 > 192.0.2.70:53", EPOCH + 20).sent
        and _paired(twins.other.state, host) == externals[0]
    )  # fmt: skip
    assert say(twins.other, f"gre 100.64.0.{rival} > 192.0.2.70 len 40", EPOCH + 20).verdict == "protocol_in_use"
    assert say(twins.other, "sctp 192.0.2.75 > 203.0.113.1 len 40", EPOCH + 20, "outside").verdict == "forwarded_in"
    assert invariants.complaints(twins.other.state) == []


def _paired(state: Any, host: int) -> int:
    half = sessions.find_mapping(state, frames.address(f"100.64.0.{host}"), 1, frames.UDP, 4000)
    return int(state.mappings[half]["external_address"])


def test_a_place_keeps_the_block_and_shows_nowhere() -> None:
    pair = Pair(given("pool 203.0.113.1/32 block 64\nsubscribers 100.64.0.0/24\nlog mappings"))
    pair.core.resolve(*(frames.address(text) for text in ("100.64.0.2", "100.64.0.3", "198.51.100.9")))
    pair.receive([frame(pair.bed, "inside", frames.read("gre 100.64.0.2 > 198.51.100.9 len 40"))])
    state: Any = pair.core.state
    (half,), (line,) = invariants.halves(state).tolist(), invariants.lines(state).tolist()
    place = int(state.mappings[half]["external_port"])
    assert place >= 1024 and int(state.owners[ports.port_space(47), 0, place]) == half
    assert state.sessions[line]["external_port"] == 0 and tcp.STATES[state.sessions[line]["state"]] == "generic"
    told = {row.kind: row for row in map(natlog.event, natlog.Reader(state).rows())}
    assert (told["mapping_created"].protocol, told["mapping_created"].external_port) == ("gre", 0)
    assert told["block_allocated"].external_port <= place <= told["block_allocated"].external_last
    (shown,) = view.sessions(state, now=EPOCH)
    assert (shown.protocol, shown.external, shown.external_port, shown.state) == ("gre", "203.0.113.1", 0, "generic")
    assert conntrack(shown) == (
        "gre      47 300 src=100.64.0.2 dst=198.51.100.9 src=198.51.100.9 dst=203.0.113.1 [ASSURED] mark=0 use=1"
    )
    pair.receive([frame(pair.bed, "inside", frames.read("gre 100.64.0.3 > 198.51.100.9 len 40"))])
    assert natlog.event(natlog.Reader(state).rows()[-1]).reason != ""
    pair.pass_time(EPOCH + 301_000)
    assert int(state.owners[ports.port_space(47), 0, place]) & HELD and not state.accounts["blocks"].any()
    pair.check()


def test_a_restart_finds_them_again() -> None:
    pair = Pair(given("pool 203.0.113.1/32\nsubscribers 100.64.0.0/24"))
    pair.core.resolve(*(frames.address(text) for text in ("100.64.0.2", "100.64.0.3", "198.51.100.9")))
    pair.receive([frame(pair.bed, "inside", frames.read("esp 100.64.0.2 > 198.51.100.9 len 40"))])
    assert recovery.attach(pair.core.state, pair.now) == 1
    said = [("outside", "esp 198.51.100.9 > 203.0.113.1 len 40"), ("inside", "esp 100.64.0.3 > 198.51.100.9 len 40")]
    told = [pair.receive([frame(pair.bed, side, frames.read(text))])[0].verdict for side, text in said]
    assert told == ["forwarded_in", "protocol_in_use"]
    pair.check()


def test_a_refusal_is_told_once_a_second_and_takes_nothing() -> None:
    pair = Pair(given("pool 203.0.113.1/32\nsubscribers 100.64.0.0/24\nsubscriber 100.64.0.3/32 rate 1 burst 1\nlog blocks"))
    pair.core.resolve(*(frames.address(text) for text in ("100.64.0.2", "100.64.0.3", "198.51.100.9")))
    say_ = [("inside", f"gre 100.64.0.{host} > 198.51.100.9 len 40") for host in (2, 3, 3, 3, 3)]
    told = [pair.receive([frame(pair.bed, side, frames.read(text))])[0].verdict for side, text in say_]
    assert told == ["forwarded_out"] + ["protocol_in_use"] * 4
    kinds = [row.kind for row in map(natlog.event, natlog.Reader(pair.core.state).rows())]
    assert kinds == ["block_allocated", "block_allocated", "block_released", "ports_exhausted"]
    pair.check()


CONFIG = """
[interfaces.internal]
name = "in"
address = "100.64.0.1/16"
[interfaces.external]
name = "out"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
[[subscribers]]
prefix = "100.64.0.0/24"
pool = "main"
[[pool]]
name = "main"
prefixes = ["203.0.113.1/32"]
[nat]
other-protocols = ["gre", 97]
[[mapping]]
protocol = "gre"
internal = "100.64.0.7"
external = "203.0.113.1"
[[rule]]
protocol = 97
action = "reject"
"""


def test_a_configuration_becomes_policy_mapping_and_rule() -> None:
    read = config.read(CONFIG)
    assert config.read(config.canonical(read)) == read and 'other-protocols = ["gre", "etherip"]' in config.canonical(read)
    state: Any = appliance.offline(read)
    assert state.protocols.nonzero()[0].tolist() == [47, 97] and state.settings[0]["lifetimes"][tcp.GENERIC] == 300_000
    assert (int(state.statics[0]["protocol"]), int(state.statics[0]["external_port"])) == (47, 47)
    assert int(state.rules[0]["protocol"]) == 97
    assert config.read(CONFIG.replace('other-protocols = ["gre", 97]', "")).nat.other_protocols == list(protocols.DEFAULT)


@pytest.mark.parametrize("ftp", ["true", "false"])
def test_rfc5382_req6_and_rfc4787_req10_ftp_is_refused_by_the_configuration(ftp: str) -> None:
    """No gateway is half built: whoever asks for one is told why there is none, and what works instead."""
    text = f"{CONFIG}[alg]\nftp = {ftp}\n"
    if ftp == "false":
        assert config.read(text).alg.ftp is False
        return
    with pytest.raises(config.ConfigError, match=r"passive mode .* passes without; leave `ftp` out or false"):
        config.read(text)


if PURE:

    def test_a_packet_without_ports_is_traced() -> None:
        state = appliance.offline(config.read(CONFIG))
        recovery.attach(state, 0)
        packet = read_packet("gre 100.64.0.7 > 198.51.100.9 length 500")
        told = trace.trace(state, packet, trace.side_of(state, packet), [], EPOCH)
        assert "gre 203.0.113.1 > 198.51.100.9, 514 bytes, ttl 63" in str(told)
