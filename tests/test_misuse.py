"""What an attacker, or plain bad luck, would try: others must not lose anything by it, and nothing may be left behind."""

from __future__ import annotations

import numpy as np

from shards import invariants, neighbours, sessions
from shards.state import HELD, NAT_MAPPING
from tests.bare_core import Core, Result
from tests.bed import Bed
from tests.frames import address, build, build_frame, dissect, mac_of, read, split_frame

START = 50_000_000
CORE = {"inside": address("100.64.0.1"), "outside": address("192.0.2.2")}


def new_core(*statements: str) -> Core:
    bed = Bed()
    for statement in statements:
        bed.say(statement)
    core = Core(bed.complete(), START)
    core.resolve(*(address(f"100.64.0.{n}") for n in (2, 3, 7)))
    return core


def packet(side: str, line: str) -> tuple[str, bytes]:
    """A frame to the core, from the host itself inside, from the gateway outside."""
    told = read(line)
    sender = told.source if side == "inside" else address("192.0.2.1")
    return side, build_frame(mac_of(CORE[side]), mac_of(sender), build(told))


def say(core: Core, now: int, *arrivals: tuple[str, bytes]) -> list[Result]:
    return core.receive(list(arrivals), now)


def external_of(result: Result) -> str:
    """External endpoint that a packet left with."""
    assert result.sent
    seen = dissect(split_frame(result.sent)[4])
    return f"203.0.113.{seen.source & 255}:{seen.source_port}"


def test_a_mapping_that_ends_and_is_another_s_within_one_burst_misleads_nobody() -> None:
    core = new_core()
    (first,) = say(core, START, packet("inside", "udp 100.64.0.2:4000 > 198.51.100.9:53"))
    where = external_of(first)
    # The session of .2 is due, but the wheel has not been served yet.
    stranger, _, other = say(
        core,
        START + 300_001,
        packet("outside", f"udp 198.51.100.77:9 > {where}"),
        packet("outside", f"udp 198.51.100.9:53 > {where}"),
        packet("inside", "udp 100.64.0.3:5555 > 198.51.100.9:53"),
    )
    assert other.verdict == "forwarded_out" and stranger.sent
    data = split_frame(stranger.sent)[4]
    assert dissect(data).destination == address("100.64.0.2") and stranger.sent[:6] == mac_of(address("100.64.0.2"))
    assert dissect(data).residue == 0
    assert invariants.complaints(core.state) == []


def test_forged_connections_to_an_open_port_are_forgotten_soon() -> None:
    core = new_core("static tcp 203.0.113.1:8080 to 100.64.0.7:80")
    for n in range(40):
        peer = f"198.51.100.{n + 1}:999"
        say(core, START, packet("outside", f"tcp {peer} > 203.0.113.1:8080 syn"))
        (answer,) = say(core, START, packet("inside", f"tcp 100.64.0.7:80 > {peer} syn ack"))
        assert answer.verdict == "forwarded_out"
    core.pass_time(START + 241_000)
    assert int(core.state.shards[0]["sessions"]) == 0


def test_the_same_connection_lives_long_once_its_peer_goes_on() -> None:
    core = new_core("static tcp 203.0.113.1:8080 to 100.64.0.7:80")
    say(core, START, packet("outside", "tcp 198.51.100.9:999 > 203.0.113.1:8080 syn"))
    say(core, START, packet("inside", "tcp 100.64.0.7:80 > 198.51.100.9:999 syn ack"))
    say(core, START, packet("outside", "tcp 198.51.100.9:999 > 203.0.113.1:8080 ack"))
    core.pass_time(START + 7_000_000)
    assert int(core.state.shards[0]["sessions"]) == 1


def test_who_writes_to_nobody_costs_no_state_and_crowds_nobody_out_for_long() -> None:
    core = new_core()
    core.bed.failed.update(range(address("192.0.2.64"), address("192.0.2.128")))
    for host in range(64, 128):
        say(core, START, packet("inside", f"udp 100.64.0.2:{4000 + host} > 192.0.2.{host}:9"))
    core.resolve()
    told = core.again(START + 5_000)
    assert {result.verdict for result in told} == {"neighbour_unresolved"}
    assert int(core.state.shards[0]["mappings"]) == 0 and not core.state.owners.any()
    rows = np.flatnonzero(core.state.neighbours["state"] != 0)
    assert len(rows) >= 64
    # Every one of them may change hands after ten seconds; the gateway and who answered may not.
    now = START + 15_001
    forgotten = [int(row) for row in rows if neighbours._is_forgotten(core.state, int(row), now)]
    assert len(forgotten) == 64


def test_what_finds_no_room_leaves_no_port_held_and_no_block_taken() -> None:
    core = new_core("pool 203.0.113.1/32 block 64 ports 1024-2047")
    core.state.extents["kind"][:] = NAT_MAPPING  # no room for sessions, and soon none for mappings
    core.state.core[0]["next_extent"] = len(core.state.extents)
    free = int(core.state.pools[0]["blocks_free"])
    for port in range(200):
        (result,) = say(core, START, packet("inside", f"udp 100.64.0.2:{4000 + port} > 198.51.100.9:53"))
        assert result.verdict == "rows_exhausted"
    assert int(np.count_nonzero(core.state.owners & HELD)) == 0
    assert int(core.state.pools[0]["blocks_free"]) == free
    assert int(core.state.accounts["mappings"].sum()) == 0


def test_nobody_outside_uses_up_the_errors_that_subscribers_need() -> None:
    core = new_core("errors 10", "outside mtu 1400", "static udp 203.0.113.1:8080 to 100.64.0.7:80")
    say(core, START, *[packet("outside", "udp 198.51.100.77:9 > 203.0.113.1:8080 ttl 1")] * 60)
    (result,) = say(core, START, packet("inside", "udp 100.64.0.2:4000 > 198.51.100.9:53 df len 1450"))
    assert result.verdict == "too_big" and result.sent


def test_the_last_neighbour_row_is_never_a_next_hop() -> None:
    core = new_core()
    assert neighbours.LAST == sessions.HAIRPIN_HOP
    assert not neighbours._is_row(neighbours.LAST) and not neighbours._is_row(0) and neighbours._is_row(1)
    assert neighbours.want(core.state, 0, address("100.64.0.9"), START) not in (0, neighbours.LAST)
