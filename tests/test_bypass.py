"""What is not translated (RFC 6888 REQ-6): what a configuration says of it, and what the network is told."""

from __future__ import annotations

from krononat import appliance, config, speaking, trace
from krononat.packet import read_packet
from shards.state import EXTERNAL, INTERNAL
from tests.test_config import RIGHT

ON_NET = RIGHT + '[[bypass]]\nprotocol = "udp"\nremote = "10.9.0.0/16"\nremote-ports = "5060-5061"\n'
OWN = '[[bypass]]\ninternal = "100.64.0.16/28"\ninbound = true\nannounce = true\n'


def test_rfc6888_req6_an_entry_stands_in_memory_as_it_is_written() -> None:
    state = appliance.offline(config.read(ON_NET + OWN))
    assert state.settings[0]["bypasses"] == 2
    first, second = state.bypasses[:2]
    assert (int(first["remote_network"]), int(first["remote_mask"])) == (0x0A090000, 0xFFFF0000)
    assert (int(first["internal_mask"]), int(first["directions"]), int(first["protocol"])) == (0, 1, 17)
    assert (int(first["remote_port_low"]), int(first["remote_port_high"])) == (5060, 5061)
    assert (int(second["internal_network"]), int(second["directions"])) == (0x64400010, 3)


def test_rfc6888_req6_what_is_reached_by_its_own_address_is_announced_where_that_is_said() -> None:
    before, after = (speaking.properties(config.read(text))[0].external for text in (ON_NET, ON_NET + OWN))
    assert after == (*before, "100.64.0.16/28")


def test_rfc6888_req6_private_addresses_for_everybody_are_doubted() -> None:
    def doubts(text: str) -> list[str]:
        return [line for line in config.warnings(config.read(text), text, "nat.toml") if "seen by everybody" in line]

    assert not doubts(ON_NET)
    (told,) = doubts(ON_NET + OWN)
    assert "100.64.0.16/28" in told and "name `remote`" in told


def test_a_trace_names_the_entry() -> None:
    state = appliance.offline(config.read(ON_NET + OWN))
    trace.settle_in(state, 1_000_000)
    out = (INTERNAL, "udp 100.64.0.2:4000 > 10.9.1.1:5060", "entry 0")
    for side, line, told in (out, (EXTERNAL, "udp 198.51.100.9:9 > 100.64.0.17:53", "entry 1")):
        found = trace.trace(state, read_packet(line), side, (), 1_000_000)
        assert [stage.told for stage in found.stages if stage.stage == "bypass"] == [f"{told} fits: it is not translated"]
        assert found.verdict.fate == "forward" and found.sent.startswith(line)
