"""What a configuration becomes in memory: numbers of rows, accounts, rules in order, gateways."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest

from krononat import appliance
from krononat.client import Trouble
from krononat.config import read
from shards import neighbours, tcp
from shards.state import BOTH, FAILED, REJECT, TCP, WANTED, State

CONFIG = """
[interfaces.internal]
name = "inside0"
address = "100.64.0.1/16"
gateway = "100.64.0.2"
[interfaces.external]
name = "outside0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
mtu = 1400
checksums = "partial"
[memory]
sessions = 100000
[limits]
sessions = 500
[[subscribers]]
prefix = "100.64.0.0/16"
each = 24
pool = "main"
  [[subscribers.subscriber]]
  prefix = "100.64.7.0/24"
  limits = { ports = 9, rate = 10 }
  rules = [ { action = "accept", protocol = "tcp", remote-ports = "25" } ]
  mappings = [ { protocol = "tcp", internal = "100.64.7.5:80", external = "203.0.113.1:8080" } ]
  [[subscribers.subscriber.device]]
  prefix = "100.64.7.0/28"
  each = 32
  limits = { sessions = 3 }
  [[subscribers.subscriber.device]]
  prefix = "100.64.7.16/32"
  rules = [ { action = "drop", direction = "both" } ]
[[subscribers]]
prefix = "100.65.3.0/30"
pool = "second"
limits = { sessions = 0 }
[[pool]]
name = "main"
prefixes = ["203.0.113.4/31", "203.0.113.0/30"]
ports = "1024-3000"
block-size = 512
filtering = "address-dependent"
[[pool]]
name = "second"
prefixes = ["203.0.113.8/32"]
[[rule]]
action = "reject"
protocol = "tcp"
internal = "100.64.0.0/17"
remote = "198.51.100.0/24"
remote-ports = "25"
[timeouts]
udp = 200
"""


@pytest.fixture(scope="module")
def state() -> State:
    return appliance.offline(read(CONFIG))


def address(text: str) -> int:
    return int(IPv4Address(text))


def test_settings_are_in_ticks(state: State) -> None:
    row = state.settings[0]
    assert (row["lifetimes"][tcp.STREAM], row["lifetimes"][tcp.ESTABLISHED], row["hold_down_s"]) == (200_000, 7_440_000, 120)
    assert (row["prefixes"], row["devices"], row["pools"], row["rules"], row["statics"], row["ports"]) == (2, 2, 2, 3, 1, 2)
    assert (row["internal_port"], row["external_port"]) == (0, 1)


def test_the_index_has_room_for_every_session_at_the_load_it_is_meant_for() -> None:
    for sessions in (1000, 999_999, 1_000_000, 5_000_000):
        sizes = appliance.compose(read(CONFIG.replace("100000", str(sessions))))
        assert sizes.buckets & (sizes.buckets - 1) == 0
        assert 4 * sessions <= 0.85 * 8 * sizes.buckets  # filtering by address: permissions count, too
        assert sizes.extents * 65536 >= sessions + sessions  # two half-lines a session


def test_prefixes_stand_longest_first_and_number_their_accounts(state: State) -> None:
    first, second = state.prefixes
    assert (int(first["network"]), int(first["shift"]), int(first["first_account"]), int(first["pool"])) == (
        address("100.65.3.0"), 0, 1, 1,
    )  # fmt: skip
    assert (int(second["network"]), int(second["shift"]), int(second["first_account"]), int(second["pool"])) == (
        address("100.64.0.0"), 8, 5, 0,
    )  # fmt: skip
    assert len(state.accounts) == 1 + 4 + 256 + 16 + 1


def test_devices_know_their_subscriber(state: State) -> None:
    single, group = state.devices
    assert (int(single["network"]), int(single["first_account"]), int(single["parent"])) == (
        address("100.64.7.16"), 1 + 4 + 256, 5 + 7,
    )  # fmt: skip
    assert (int(group["shift"]), int(group["first_account"]), int(group["parent"])) == (0, 1 + 4 + 256 + 1, 5 + 7)


def test_limits_come_from_the_nearest_scope(state: State) -> None:
    told = state.limits[["sessions", "mappings", "rate", "burst"]][state.accounts["limits"]]
    assert told[0].tolist() == (0, 0, 0, 0)
    assert told[1].tolist() == (0, 0, 0, 0)  # its group lifts the global limit
    assert told[5].tolist() == (500, 0, 0, 0)
    assert told[5 + 7].tolist() == (500, 9, 10, 10)
    assert told[1 + 4 + 256].tolist() == (0, 0, 0, 0)
    assert told[1 + 4 + 256 + 1].tolist() == (3, 0, 0, 0)


def test_pools_are_whole_blocks_of_ascending_addresses(state: State) -> None:
    main, second = state.pools
    assert (main["first_external"], main["externals"], main["first_block"], main["end_block"]) == (0, 6, 2, 5)
    assert (second["first_external"], second["externals"], second["first_block"], second["end_block"]) == (22, 1, 2, 128)
    assert main["blocks_free"] == 18
    assert (np.diff(state.externals["address"][:6].astype(int)) > 0).all()
    assert state.externals["pool"].tolist() == [0] * 22 + [1] * 17, "room for sixteen more each"


def test_rules_stand_in_the_order_device_subscriber_everyone(state: State) -> None:
    device, subscriber, everyone = state.rules[:3]
    assert (int(device["internal_network"]), int(device["internal_mask"])) == (address("100.64.7.16"), 0xFFFFFFFF)
    assert (device["directions"], subscriber["directions"]) == (3, 1)
    assert (int(subscriber["internal_network"]), int(subscriber["internal_mask"])) == (address("100.64.7.0"), 0xFFFFFF00)
    assert (everyone["action"], everyone["protocol"], everyone["remote_port_low"]) == (REJECT, TCP, 25)
    assert int(everyone["internal_mask"]) == 0xFFFF8000
    assert state.rules["number"][:3].tolist() == [0, 1, 2]


def test_gateways_are_wanted_neighbours(state: State) -> None:
    inside, outside = state.ports
    row = state.neighbours[inside["internal_gateway"]]
    assert (int(row["address"]), int(row["port"]), int(row["state"])) == (address("100.64.0.2"), 0, WANTED)
    assert outside["external_gateway"] == neighbours.find(state, 1, address("192.0.2.1")) != 0
    assert inside["external_gateway"] == outside["internal_gateway"] == 0
    assert (inside["mtu"], outside["mtu"], inside["partial"], outside["partial"]) == (1500, 1400, 0, 1)


def test_a_router_on_a_stick_has_one_port_and_two_gateways() -> None:
    stick = '[interfaces.both]\nname = "x0"\naddress = "192.0.2.2/24"\n'
    stick += 'internal-gateway = "192.0.2.3"\nexternal-gateway = "192.0.2.1"\n[memory]' + CONFIG.split("[memory]")[1]
    state = appliance.offline(read(stick))
    assert len(state.ports) == 1
    assert state.ports[0]["side"] == BOTH
    assert state.settings[0]["external_port"] == 0
    assert state.ports[0]["internal_gateway"] != state.ports[0]["external_gateway"]


def test_the_key_is_read_from_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    assert appliance.read_key(path) is None
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(Trouble, match="too short"):
        appliance.read_key(path)
    path.write_bytes(bytes(range(32)))
    key = appliance.read_key(path)
    assert key is not None and len(key) == 16
    path.chmod(0o644)
    with pytest.raises(Trouble, match="no secret"):
        appliance.read_key(path)


# --- neighbours of the packet path ----------------------------------------------------------------------------------------


def test_neighbours_keep_their_rows_until_the_table_is_crowded(state: State) -> None:
    state.neighbours[:] = 0
    many = len(state.neighbours) // 2
    rows = [neighbours.want(state, i & 1, 0x0A000000 + 7 * i, i) for i in range(many)]
    assert len(set(rows)) == many and 0 not in rows
    assert [neighbours.find(state, i & 1, 0x0A000000 + 7 * i) for i in range(many)] == rows
    assert neighbours.find(state, 1, 0x0A000000) == 0
    more = [neighbours.want(state, 0, 0x0B000000 + i, 5) for i in range(len(state.neighbours))]
    assert 0 in more
    assert [neighbours.find(state, i & 1, 0x0A000000 + 7 * i) for i in range(many)] == rows


@pytest.mark.parametrize("mac", [0, 9])
def test_a_failed_row_changes_hands_once_nobody_can_mean_it(mac: int) -> None:
    state = appliance.offline(read(CONFIG))
    state.neighbours["own_state"][1:] = FAILED
    state.neighbours["own_mac"][1:] = mac
    patience = neighbours.FORGOTTEN if mac else neighbours.NEVER_ANSWERED  # a session may name only who has answered once
    assert neighbours.want(state, 0, 77, patience) == 0
    row = neighbours.want(state, 0, 77, patience + 1)
    assert row != 0 and state.neighbours[row]["state"] == WANTED and not state.neighbours[row]["mac"].any()


def test_a_gateway_keeps_its_row() -> None:
    state = appliance.offline(read(CONFIG))
    gateway = int(state.ports[1]["external_gateway"])
    state.neighbours["own_state"][1:] = FAILED
    state.neighbours["kept"][1:] = 1
    state.neighbours["kept"][gateway] = appliance.offline(read(CONFIG)).neighbours["kept"][gateway]
    assert neighbours.want(state, 1, 77, 10 * neighbours.FORGOTTEN) == 0


def test_an_address_that_is_kept_for_icmp_errors_is_not_handed_out() -> None:
    kept = CONFIG.replace('"203.0.113.0/30"]', '"203.0.113.0/30"]\nicmp-address = "203.0.113.2"')
    state = appliance.offline(read(kept))
    assert address("203.0.113.2") not in state.externals["address"] and state.pools[0]["externals"] == 5
    assert state.shards[0]["icmp_address"] == address("203.0.113.2")
    assert appliance.offline(read(CONFIG)).shards[0]["icmp_address"] == 0
