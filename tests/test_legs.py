"""Ports that die and come back, below the scenarios: whose gateway is whose, what one sweep changes, what a flow notices of it.

The model is a few lines: a row's way is its own word, or that of a gateway of another port of its side that answers.
"""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest

from krononat import appliance
from krononat.config import read
from shards import hops, invariants, legs, neighbours, recovery, rings, shard
from shards.burst import new_burst
from shards.state import EXTERNAL, FAILED, INTERNAL, REACHABLE, WANTED, State
from shards.verdict import BY_NAME
from tests.bed import Bed, answer, fill_legs, new_bed_state
from tests.fake_kernel import FakeKernel
from tests.frames import address, build, build_frame, dissect, mac_of, split_frame
from tests.frames import read as packet_of

NOW = 50_000_000
HOSTS = [0x64400000 + 7 * i for i in range(40)]
REMOTES = [0x08000000 + 65537 * i for i in range(40)]


def core(inner: int = 1, outer: int = 3, stick: bool = False) -> State:
    """A core with so many legs, all of whose gateways answer."""
    tables = []
    for side, count in (("internal", inner), ("external", outer)) if not stick else ():
        for n in range(count):
            net = f"10.{1 if side == 'internal' else 2}.{n}"
            tables.append(f'[[interfaces.{side}]]\nname = "{side[:2]}{n}"\naddress = "{net}.2/24"\ngateway = "{net}.1"')
    for n in range(outer if stick else 0):
        gateways = f'internal-gateway = "10.3.{n}.1"\nexternal-gateway = "10.3.{n}.3"'
        tables.append(f'[[interfaces.both]]\nname = "x{n}"\naddress = "10.3.{n}.2/24"\n{gateways}')
    pool = '[[pool]]\nname = "p"\nprefixes = ["203.0.113.0/28"]\n[[subscribers]]\nprefix = "100.64.0.0/16"\npool = "p"\n'
    state = appliance.offline(read("\n".join([*tables, pool])))
    for row in np.flatnonzero(state.neighbours["kept"]).tolist():
        tell(state, row, REACHABLE)
    legs.settle(state, NOW)
    return state


def tell(state: State, row: int, told: int) -> None:
    """The supervisor's word about a neighbour; its MAC has the row's number."""
    state.neighbours[row]["own_mac"] = (2, 0, 0, 0, row >> 8, row & 255)
    state.neighbours[row]["own_state"] = told
    state.core[0]["neighbours_version"] += 1


def way(state: State, row: int) -> tuple[tuple[int, ...], int, int]:
    told = state.neighbours[row]
    return tuple(told["mac"].tolist()), int(told["state"]), int(told["port"])


def own(state: State, row: int) -> tuple[tuple[int, ...], int, int]:
    told = state.neighbours[row]
    return tuple(told["own_mac"].tolist()), int(told["own_state"]), int(told["own_port"])


def gateways(state: State, side: int = EXTERNAL) -> list[int]:
    first, end = hops.ports_of(state, side)
    return [hops.gateway_of(state, p, side) for p in range(first, end)]


def choices(state: State) -> dict[tuple[int, int], int]:
    """Gateway of every pair of hosts."""
    return {pair: int(hops.next_hop(state, EXTERNAL, pair[1], pair[0], NOW)) for pair in product(HOSTS, REMOTES)}


def test_rows_of_ports_stand_side_by_side() -> None:
    state = core(inner=3, outer=5)
    assert state.ports["side"].tolist() == [INTERNAL] * 3 + [EXTERNAL] * 5
    assert (hops.ports_of(state, INTERNAL), hops.ports_of(state, EXTERNAL)) == ((0, 3), (3, 8))
    for number, name in enumerate(state.ports["address"].tolist()):
        assert name == int(state.ports[number]["network"]) + 2
    both = core(outer=2, stick=True)
    assert hops.ports_of(both, INTERNAL) == hops.ports_of(both, EXTERNAL) == (0, 2)
    assert gateways(both, INTERNAL) != gateways(both, EXTERNAL)


def test_pairs_of_hosts_are_spread_over_the_gateways_and_stay() -> None:
    state = core(outer=4)
    told = choices(state)
    assert told == choices(state)
    counted = Counter(told.values())
    assert set(counted) == set(gateways(state))
    assert all(300 < count < 500 for count in counted.values()), counted  # of 1,600: 400 each, and four standard deviations
    for host in HOSTS:  # a subscriber's remotes go all ways, but all of a subscriber comes by one
        assert len({told[host, remote] for remote in REMOTES}) == 4
        assert len({int(hops.next_hop(state, INTERNAL, host, 0, NOW)) for _ in range(3)}) == 1


def test_a_leg_that_goes_takes_only_its_own_and_gets_it_back() -> None:
    state = core(outer=4)
    before, lost = choices(state), gateways(state)[1]
    state.ports[2]["carrier_lost"] = 1
    legs.settle(state, NOW)
    during = choices(state)
    moved = {pair for pair in before if during[pair] != before[pair]}
    assert moved == {pair for pair in before if before[pair] == lost}
    assert all(count > 80 for count in Counter(during[pair] for pair in moved).values())  # of some 400, over three others
    state.ports[2]["carrier_lost"] = 0
    legs.settle(state, NOW + 1)
    assert choices(state) == before


def test_ways_are_those_of_the_model_whatever_dies() -> None:
    """Every combination of carriers, peers and gateways of three legs; a station on-link at each."""
    state = core(outer=3)
    doors = gateways(state)
    stations = [neighbours.want(state, p, 0x0A020000 + 256 * (p - 1) + 99, NOW) for p in (1, 2, 3)]
    for station in stations:
        tell(state, station, REACHABLE)
    for carriers, peers, silent in product(product((0, 1), repeat=3), product((0, 1), repeat=3), product((0, 1), repeat=3)):
        state.ports["carrier_lost"][1:4], state.ports["peer_lost"][1:4] = carriers, peers
        for door, quiet in zip(doors, silent, strict=True):
            tell(state, door, WANTED if quiet else REACHABLE)
        legs.settle(state, NOW)
        sound = [not carrier and not peer for carrier, peer in zip(carriers, peers, strict=True)]
        dead = [bool(carriers[p] or (peers[p] and any(sound[:p] + sound[p + 1 :]))) for p in range(3)]
        assert state.ports["dead"][1:4].tolist() == dead
        for p, row in [*enumerate(doors), *enumerate(stations)]:
            instead = [own(state, doors[q]) for q in range(3) if q != p and not dead[q] and not silent[q]]
            if not (dead[p] or (row in doors and silent[p])) or not instead:
                instead = [own(state, row)]
                if dead[p] and carriers[p]:  # nobody is there to take it: what goes there waits
                    instead = [(own(state, row)[0], WANTED, p + 1)]
            assert way(state, row) in instead, (carriers, peers, silent, p)
    assert way(state, gateways(state, INTERNAL)[0]) == own(state, gateways(state, INTERNAL)[0])


def test_the_other_side_is_never_a_way_out() -> None:
    state = core(inner=1, outer=1)
    inner, outer = gateways(state, INTERNAL)[0], gateways(state)[0]
    state.ports[1]["carrier_lost"] = 1
    legs.settle(state, NOW)
    assert way(state, outer) == (own(state, outer)[0], WANTED, 1)
    assert way(state, inner) == own(state, inner)


def test_on_a_stick_each_neighbour_is_of_a_side() -> None:
    state = core(outer=2, stick=True)
    subscriber, stranger = neighbours.want(state, 0, 0x64400009, NOW), neighbours.want(state, 0, 0x0A030063, NOW)
    for row in (subscriber, stranger):
        tell(state, row, REACHABLE)
    state.ports[0]["carrier_lost"] = 1
    legs.settle(state, NOW)
    (inner, other_inner), (outer, other_outer) = gateways(state, INTERNAL), gateways(state)
    assert way(state, subscriber) == way(state, inner) == own(state, other_inner)
    assert way(state, stranger) == way(state, outer) == own(state, other_outer)


def test_what_is_told_of_a_neighbour_while_its_leg_is_dead_counts_when_it_is_back() -> None:
    state = core(outer=2)
    here, there = gateways(state)
    state.ports[1]["peer_lost"] = 1
    assert legs.settle(state, NOW) == 1 and state.ports[1]["since"] == NOW
    assert legs.settle(state, NOW + 1) == 0
    state.neighbours[here]["own_mac"] = 9
    state.core[0]["neighbours_version"] += 1
    assert legs.settle(state, NOW + 2) == 0 and way(state, here) == own(state, there)
    state.neighbours[there]["own_mac"] = 8
    state.core[0]["neighbours_version"] += 1
    assert legs.settle(state, NOW + 3) == 2 and way(state, here) == own(state, there) == ((8,) * 6, REACHABLE, 2)
    state.ports[1]["peer_lost"] = 0
    assert legs.settle(state, NOW + 4) == 1 and way(state, here) == ((9,) * 6, REACHABLE, 1)
    assert state.ports[1]["since"] == NOW + 4


def test_a_row_is_found_while_it_is_led_elsewhere_and_forgotten_by_its_own_word() -> None:
    state = core(outer=2)
    station = neighbours.want(state, 1, 0x0A020063, NOW)
    tell(state, station, REACHABLE)
    state.ports[1]["carrier_lost"] = 1
    legs.settle(state, NOW)
    assert way(state, station)[2] == 2 and neighbours.find(state, 1, 0x0A020063) == station
    assert neighbours.find(state, 2, 0x0A020063) == 0
    assert hops.next_hop(state, EXTERNAL, 0x0A020063, 1, NOW) == gateways(state)[1]  # a new session does not even ask
    tell(state, station, FAILED)
    legs.settle(state, NOW)
    assert way(state, station)[2] == 2  # the other gateway may know better


@pytest.mark.parametrize("lost", ["carrier", "peer"])
def test_no_packet_is_lost_or_goes_the_dead_way_once_it_is_settled(lost: str) -> None:
    """Forty flows each way through the loop itself; outer and inner legs die in turn, between two breaths, and come back."""
    loop = _Loop()
    loop.exchange()
    homes = loop.exchange()
    assert set(homes["outside"].values()) == {2, 3} and set(homes["inside"].values()) == {0, 1}
    for row, place in ((2, "outside"), (1, "inside2"), (3, "outside2"), (0, "inside")):
        side = place.rstrip("2")
        loop.bed.say(f"leg {place} {lost} lost")
        loop.fill()
        left = loop.exchange()
        assert row not in left[side].values()
        assert {flow: port for flow, port in homes[side].items() if port != row}.items() <= left[side].items()
        loop.bed.say(f"leg {place} lives")
        loop.fill()
        assert loop.exchange() == homes
    assert loop.state.shards[0]["sessions"] == len(_Loop.FLOWS)
    invariants.check(loop.state, loop.received, 0)


class _Loop:
    """A core with two legs a side, with its loop and the far side of its rings: a queue for each port."""

    FLOWS = tuple((f"100.64.{n % 5}.{n + 2}", f"198.51.{n}.9") for n in range(40))
    GIVEN = (
        "inside address 10.1.0.2/24 gateway 10.1.0.1", "inside2 address 10.1.1.2/24 gateway 10.1.1.1",
        "outside2 address 198.18.0.2/24 gateway 198.18.0.1",
    )  # fmt: skip

    def __init__(self) -> None:
        self.bed = Bed()
        for given in self.GIVEN:
            self.bed.say(given)
        self.bed.complete()
        self.state = new_bed_state(self.bed, NOW)
        recovery.attach(self.state, NOW)
        answer(self.state, self.bed, NOW)
        self.kernel = FakeKernel((1, 1, 1, 1), entries=512, frames=4096)
        self.rings = self.kernel.attach()
        rings.take_over(self.rings)
        rings.flush(self.rings)
        self.burst, self.waiting = new_burst(), shard.new_waiting()
        self.external: dict[str, str] = {}
        self.received = 0

    def fill(self) -> None:
        """Carrier and peers as given, and nothing else: what follows is for the next breath to see."""
        for number, place in enumerate(self.bed.places()):
            told = self.bed.lost.get(place, "")
            self.state.ports[number]["carrier_lost"], self.state.ports[number]["peer_lost"] = told == "carrier", told == "peer"

    def exchange(self) -> dict[str, dict[str, int]]:
        """A packet of every flow out, by the first inner port, and one back; by which port each left, by side."""
        out = self.through(0, [f"udp {host}:4000 > {remote}:53" for host, remote in self.FLOWS], "forwarded_out")
        self.external = {}
        left: dict[str, dict[str, int]] = {"outside": {}, "inside": {}}
        for port, packet in out:
            remote = str(packet).split()[3]
            self.external[remote] = str(packet).split()[1]
            left["outside"][remote] = port
        back = self.through(3, [f"udp {remote} > {external}" for remote, external in self.external.items()], "forwarded_in")
        for port, packet in back:
            left["inside"][str(packet).split()[1]] = port
        assert all(len(ports) == len(self.FLOWS) for ports in left.values())
        return left

    def through(self, port: int, lines: list[str], verdict: str) -> list[tuple[int, object]]:
        """Frames that come by a port; (port, packet) of what leaves, which must be all of them."""
        before = int(self.state.counters[BY_NAME[verdict].number, 0])
        _, own_port = self.bed.ports()[port]
        for line in lines:
            frame = build_frame(mac_of(own_port.address), mac_of(own_port.gateway), build(packet_of(line)))
            assert self.kernel.deliver(port, frame)
        self.received += len(lines)
        shard.breathe(self.state, self.rings, self.rings.frames, self.burst, self.waiting, NOW, 4, 1)
        assert int(self.state.counters[BY_NAME[verdict].number, 0]) - before == len(lines)
        return self._sent()

    def _sent(self) -> list[tuple[int, object]]:
        """What has left, by the port whose MAC it has; it goes to that port's gateway."""
        self.kernel.transmit()
        ports = {mac_of(port.address): number for number, (_, port) in enumerate(self.bed.ports())}
        sent: list[tuple[int, object]] = []
        for frame in self.kernel.sent:
            to, source, *_, data = split_frame(frame)
            assert to == mac_of(self.bed.ports()[ports[source]][1].gateway)
            sent.append((ports[source], dissect(data, arriving=False)))
        self.kernel.sent.clear()
        return sent


def test_beds_and_cores_mean_the_same_by_a_dead_leg() -> None:
    bed = Bed()
    for given in (*_Loop.GIVEN, "leg outside2 peer lost"):
        bed.say(given)
    state = new_bed_state(bed.complete(), NOW)
    fill_legs(state, bed, NOW)
    assert state.ports["dead"].tolist() == [bed.is_dead(place) for place in bed.places()] == [0, 0, 0, 1]
    assert address("198.18.0.1") in state.neighbours["address"]
