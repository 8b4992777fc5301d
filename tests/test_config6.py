"""What a configuration says of IPv6, and what it becomes in the memory of a core."""

from __future__ import annotations

import numpy as np

from krononat import appliance, config, reload
from krononat.appliance6 import prefix6_of
from shards.state import DROP, REJECT, TCP

SIX = """\
[interfaces.internal]
name = "inside0"
address = "172.16.0.1/24"
gateway = "172.16.0.2"
address6 = "2400:c0de:fff::1/64"
gateway6 = "fe80::2"

[interfaces.external]
name = "outside0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
address6 = "2600:1::2/64"
gateway6 = "2600:1::1"

[[subscribers]]
prefix = "100.64.0.0/24"
pool = "main"
prefix6 = "2400:c0de::/48"
filtering6 = { udp = "endpoint-independent" }
[[subscribers.subscriber]]
prefix = "100.64.0.7/32"
transparent = true
rules = [{ protocol = "tcp", remote-ports = 25, action = "reject" }]

[[subscribers]]
prefix = "100.65.0.0/16"
pool = "main"

[[pool]]
name = "main"
prefixes = ["203.0.113.0/28"]

[[rule]]
direction = "both"
action = "drop"
remote = "198.51.100.0/24"
[[rule]]
action = "drop"
remote = "2600:666::/32"
[[pinhole]]
protocol = "tcp"
internal = "2400:c0de:0:700::5/128"
internal-ports = 80

[firewall6]
echo = false
"""


def test_what_is_said_stands_in_the_state() -> None:
    state = appliance.offline(config.read(SIX))
    settings = state.settings[0]
    assert (settings["prefixes6"], settings["rules6"], settings["pinholes"], settings["echo6"]) == (1, 2, 1, 0)
    assert (settings["unasked"], settings["unasked6"], settings["ipsec6"]) == (0, 1, 1)  # RFC 5382 REQ-4a, 6092 REC-34, 22
    silent = 'unsolicited-syn = "silent"\nunasked-ipsec = "drop"'
    wished = SIX.replace("echo = false", silent) + '[nat]\nunsolicited-syn = "unreachable"\n'
    other = appliance.offline(config.read(wished)).settings[0]
    assert (other["unasked"], other["unasked6"], other["ipsec6"]) == (1, 0, 0)
    prefix = state.prefixes6[0]
    assert (int(prefix["network"]), int(prefix["mask"]), prefix["shift"]) == (0x2400C0DE_0000_0000, 0xFFFF_FFFF_FFFF_0000, 8)
    mate = state.prefixes[int(prefix["prefix"])]
    assert int(mate["network"]) == 0x64400000 and (prefix["tcp"], prefix["udp"], prefix["other"]) == (1, 0, 1)
    assert np.flatnonzero(state.accounts["transparent"]).tolist() == [int(mate["first_account"]) + 7]
    inside, outside = state.ports
    assert (int(outside["address6_high"]), int(outside["address6_low"]), outside["length6"]) == (0x2600_0001_0000_0000, 2, 64)
    gateways = state.neighbours[[inside["internal_gateway6"], outside["external_gateway6"]]]
    assert gateways["high"].tolist() == [0xFE80 << 48, 0x2600_0001_0000_0000] and gateways["kept"].all()


def test_rfc6092_rec22_ipsec_may_be_let_in_or_not_while_packets_pass() -> None:
    before, after = config.read(SIX), config.read(SIX.replace("echo = false", 'unasked-ipsec = "drop"'))
    assert reload.plan(before, after) == reload.Plan(["firewall6.echo", "firewall6.unasked-ipsec"], [])
    state = appliance.offline(before)
    orders = reload.prepare(state, after)
    assert (orders["ipsec6"], orders["echo6"], state.settings[0]["ipsec6"]) == (0, 1, 1)


def test_rules_without_addresses_are_for_both_kinds_and_others_for_their_own() -> None:
    state = appliance.offline(config.read(SIX))
    assert state.rules["number"][: int(state.settings[0]["rules"])].tolist() == [0, 1]
    own, everyones = state.rules6[:2]
    assert (own["number"], own["action"], own["protocol"], own["remote_port_low"]) == (0, REJECT, TCP, 25)
    assert (int(own["internal_high"]), int(own["internal_mask_high"])) == (0x2400C0DE_0000_0700, 0xFFFF_FFFF_FFFF_FF00)
    assert (everyones["number"], everyones["action"], int(everyones["remote_high"])) == (2, DROP, 0x26000666 << 32)
    hole = state.pinholes[0]
    assert (hole["protocol"], int(hole["internal_low"])) == (TCP, 5)
    assert (hole["internal_port_low"], hole["internal_port_high"]) == (80, 80)


def test_the_nth_subscriber_is_the_nth() -> None:
    read = config.read(SIX)
    assert str(prefix6_of(read, read.subscribers[0].subscriber[0].prefix)) == "2400:c0de:0:700::/56"
    assert prefix6_of(read, read.subscribers[1].prefix) is None


def test_it_is_written_as_it_was_read() -> None:
    read = config.read(SIX)
    assert config.read(config.canonical(read)) == read
