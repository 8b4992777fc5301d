"""The laboratory of several servers, and the generator that remembers every connection."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.cluster import stream
from bench.cluster.ledger import ASK, CONNECTION, DATAGRAM, OPEN, RESIDENTS, STREAM_IN, STREAM_OUT, Sizes
from bench.cluster.scene import People, Scene, scene
from krononat import client, config
from krononat import cluster as maps
from krononat.lab import cluster, faults, namespaces, steering, traffic
from krononat.lab.cluster import Wanted
from krononat.lab.laboratory import PROGRAMS, Lab
from shards.jit import PURE

FOLDER = Path("/nowhere")

# --- what is drawn ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("servers, shards", [(1, 1), (2, 12), (3, 12), (9, 16)])
def test_every_core_has_the_same_shards_and_a_place_in_the_map(servers: int, shards: int) -> None:
    wanted = Wanted(servers, shards)
    drawn = cluster.topology(wanted, FOLDER)
    names = cluster.cores(wanted)
    told = maps.read(cluster.map_of(wanted, {name: f"{name:-<40}" for name in names}, cluster.shunts(wanted)))
    configs = [config.read(text) for text in drawn.appliances.values()]
    assert [each.core_name for each in configs] == list(names) == [core.name for core in told.core]
    for each in configs:
        assert list(maps.strangers(each, told)) == []
        assert (each.pool, each.subscribers) == (configs[0].pool, configs[0].subscribers)
        assert each.shards == shards


def test_a_servers_backups_are_spread_over_the_others() -> None:
    wanted = Wanted(3, 12)
    pairs = [(cluster.first_core(wanted, shard), cluster.backup_of(wanted, shard)) for shard in range(12)]
    assert {backup for primary, backup in pairs if primary == "s1/0"} == {"s2/0", "s3/0"}
    assert all(primary != backup for primary, backup in pairs)
    assert cluster.backup_of(Wanted(1, 1), 0) is None
    assert cluster.backup_of(wanted._replace(backups=False), 0) is None


def test_legs_of_cores_have_room_for_shunted_packets_and_subscribers_links_do_not() -> None:
    drawn = cluster.topology(Wanted(2, 2), FOLDER)
    sizes = {end.name: end.mtu for link in drawn.links for end in link}
    assert {sizes[name] for name in ("s1.inside0", "s2.outside0", "tor.s1in", "tor.s2out")} == {2000}
    assert {sizes[name] for name in ("c1.eth0", "tor.users", "h1.eth0")} == {1500}


def test_a_cluster_without_numbers_is_refused() -> None:
    for wanted in (Wanted(0, 1), Wanted(10, 1), Wanted(3, 17)):
        with pytest.raises(ValueError, match="1 to 9 servers"):
            cluster.topology(wanted, FOLDER)


def test_a_direction_of_a_shard_is_one_route() -> None:
    assert steering.line(3, "s2/0", "outbound") == "route replace default via 10.1.2.2 dev s2in table 1003"
    assert steering.line(3, "s2/0", "inbound") == "route replace 203.0.113.48/28 via 192.0.2.34 dev s2out"


def test_who_does_not_exist_is_told() -> None:
    wanted = Wanted(2, 4)
    for shard, core in ((4, "s1/0"), (-1, "s1/0"), (0, "s3/0"), (0, "s1/1")):
        with pytest.raises(client.Trouble) as told:
            steering.check(wanted, shard, core)
        assert told.value.status == client.NOT_FOUND
    with pytest.raises(client.Trouble, match="is no cluster"):
        faults.of(Lab("knx"))


# --- what is counted --------------------------------------------------------------------------------------------------------

MS = 1_000_000


def _datagrams(*came_ms: int | None) -> np.ndarray:
    rows = np.zeros(len(came_ms), DATAGRAM)
    rows["sent"] = (1 + np.arange(len(rows))) * MS
    for row, came in zip(rows, came_ms, strict=True):
        row["came"], row["times"] = (came or 0) * MS, came is not None
    return rows


def test_a_stream_is_told_as_it_was() -> None:
    rows = _datagrams(2, 3, None, 5, 11, 7, 8)
    rows["times"][3], rows["late"][5] = 2, 1
    told = stream.became(rows, 0, 100 * MS)
    assert told == stream.Became(7, 1, 1, 1, 3.0, longest_way_ms=6.0, longest_pause_ms=1.0, longest_silence_ms=3.0)
    assert stream.became(rows, 4 * MS, 5 * MS).sent == 1
    assert stream.became(rows, 90 * MS, 99 * MS) == stream.Became(0, 0, 0, 0, 0.0, 0.0)


def test_a_stream_that_never_comes_back_has_a_long_gap() -> None:
    assert stream.became(_datagrams(2, 3, None, None, None, None, None), 0, 100 * MS).longest_gap_ms == 4.0
    assert stream.became(_datagrams(None, None, None), 0, 100 * MS).longest_gap_ms == 2.0


def test_only_who_answers_from_the_same_endpoint_has_survived() -> None:
    rows = np.zeros(6, CONNECTION)
    rows["established"] = [0, 10, 11, 12, 13, 20]
    rows["round"] = [0, 2, 1, 2, 2, 2]
    rows["moved"][3], rows["refused"][4] = 1, 1
    assert stream.survival(rows, 1, 0, 20) == stream.Survival(4, 1)
    assert stream.survival(rows, 1, 20, 21).share == 1.0
    assert stream.survival(rows, 1, 30, 31).share == 0.0


# --- the generator, without a kernel -----------------------------------------------------------------------------------------

if PURE:
    from bench.cluster import generator, packets, tcp
    from bench.cluster.ledger import Ledger, new_ledger
    from shards import rings
    from shards.burst import new_burst
    from tests.fake_kernel import FakeKernel

    BASES, PEOPLE = np.array([0x64400100, 0x64401100]), (3, 2, 1024, 0xC6336490, 443)

    class Pair:
        """Both ends, and a wire between them that may change what it carries."""

        def __init__(self) -> None:
            self.kernels = FakeKernel((1,), 16, 64), FakeKernel((1,), 16, 64)
            self.ends = tuple(kernel.attach() for kernel in self.kernels)
            for end in self.ends:
                rings.take_over(end)
                rings.flush(end)
            sides = packets.macs(bytes(6), bytes(6)), packets.macs(bytes(6), bytes(6))
            self.ledger: Ledger = new_ledger(Sizes(100, 100, 100, 2), BASES, PEOPLE, *sides)
            self.burst = new_burst()

        def order(self, kind: int, first: int, end: int, turned: int = 0) -> None:
            """Have it sent now."""
            row = self.ledger.orders[kind]
            row["next"], row["end"], row["rate"], row["round"], row["base_ns"], row["done"] = first, end, 1000, turned, 0, 0
            generator._order(self.ends[int(kind == STREAM_IN)], self.burst, self.ledger, kind, (end - first) * MS)

        def carry(self, port: int = 0, lose: bool = False) -> int:
            """Everything from end to end until nothing is left; `port` is added to what subscribers have. Frames carried."""
            carried = 0
            while moved := self._over(0, port, lose) + self._over(1, -port, False):
                carried += moved
            return carried

        def _over(self, side: int, port: int, lose: bool) -> int:
            self.kernels[side].transmit()
            frames, self.kernels[side].sent[:] = list(self.kernels[side].sent), []
            for frame in frames if not lose else []:
                assert self.kernels[1 - side].deliver(0, translated(frame, port, 34 if side == 0 else 36))
            serve = generator._serve if side == 0 else generator._take
            serve(self.ends[1 - side], self.burst, self.ledger, 5)
            return len(frames)

    def translated(frame: bytes, more: int, at: int) -> bytes:
        """What a NAT makes of it: another port, and the checksum that goes with it."""
        memory = np.frombuffer(frame + bytes(8), np.uint8).copy()
        port = int.from_bytes(frame[at : at + 2], "big") + more
        memory[at : at + 2] = np.frombuffer(port.to_bytes(2, "big"), np.uint8)
        total = int.from_bytes(frame[16:18], "big")
        place = 50 if frame[23] == 6 else 40
        memory[place : place + 2] = 0
        check = packets._transport(memory, 0, total - 20)
        memory[place : place + 2] = np.frombuffer(check.to_bytes(2, "big"), np.uint8)
        assert packets.is_whole(memory, 0, len(frame))
        return bytes(memory[: len(frame)])

    def test_a_connection_opens_in_five_packets() -> None:
        pair = Pair()
        pair.order(OPEN, 7, 8)
        assert pair.carry(port=100) == 5
        one = pair.ledger.connections[7]
        assert (one["established"], one["round"], one["moved"]) == (5, 1, 0)
        assert one["external"] == tcp.internal_of(pair.ledger, 7) + 100
        assert pair.ledger.tally[0]["unknown"] == pair.ledger.tally[0]["broken"] == 0

    def test_only_the_established_are_asked_and_they_answer() -> None:
        pair = Pair()
        pair.order(OPEN, 0, 3)
        pair.carry()
        pair.order(OPEN, 3, 4)
        pair.carry(lose=True)
        pair.order(ASK, 0, 4, turned=1)
        assert pair.carry() == 6
        assert pair.ledger.connections["round"][:4].tolist() == [2, 2, 2, 0]
        assert stream.survival(pair.ledger.connections, 1, 0, 99) == stream.Survival(3, 3)

    @pytest.mark.parametrize("turned", [1, 30, 31, 254, 255, 70_000])
    def test_rounds_do_not_begin_anew(turned: int) -> None:
        """All that may happen to a cluster takes more than 31 of them: so many have sequence numbers of their own."""
        pair = Pair()
        pair.order(OPEN, 0, 1)
        pair.carry()
        pair.order(ASK, 0, 1, turned)
        assert pair.carry() == 2
        pair.order(RESIDENTS, 0, 1, turned)
        assert pair.carry() == 2
        assert pair.ledger.connections[0]["round"] == pair.ledger.residents[0]["round"] == turned + 1
        assert stream.survival(pair.ledger.connections, turned, 0, 99) == stream.Survival(1, 1)

    def test_a_connection_that_comes_from_elsewhere_has_moved() -> None:
        pair = Pair()
        pair.order(OPEN, 0, 1)
        pair.carry(port=100)
        pair.order(ASK, 0, 1, turned=1)
        assert pair.carry(port=101) == 1  # no answer
        assert pair.ledger.connections[0]["moved"] == 1
        assert stream.survival(pair.ledger.connections, 1, 0, 99) == stream.Survival(1, 0)

    def test_two_internal_endpoints_with_one_external_are_found() -> None:
        pair = Pair()
        pair.order(OPEN, 0, 2)
        pair.carry()
        assert stream.owners(pair.ledger) == 0
        pair.ledger.connections["external"][1] = pair.ledger.connections["external"][0]
        assert stream.owners(pair.ledger) == 1
        ((external, rows),) = stream.shared(pair.ledger, pair.ledger.connections["external"] != 0).items()
        pair.ledger.connections["established"][1] = 0
        told = stream.story(pair.ledger, external, rows, killed=0)
        for row in rows:
            assert stream.endpoint(tcp.internal_of(pair.ledger, row)) in told
        assert told.startswith(stream.endpoint(external)) and told.count("never answered") == 1

    def test_a_stream_knows_each_of_its_datagrams() -> None:
        pair = Pair()
        pair.order(STREAM_OUT, 0, 2)
        pair.carry(port=10)
        pair.order(STREAM_IN, 0, 3)
        assert pair.carry(port=10) == 3
        pair.order(STREAM_OUT, 2, 3)
        pair.carry(port=10, lose=True)
        assert pair.ledger.out["times"][:3].tolist() == [1, 1, 0]
        assert pair.ledger.into["times"][:3].tolist() == [1, 1, 1]
        assert pair.ledger.tally[0]["moved"] == 0
        pair.order(STREAM_OUT, 3, 4)
        pair.carry(port=11)
        assert pair.ledger.tally[0]["moved"] == 1

    def test_a_damaged_frame_is_counted_and_believed_by_nobody() -> None:
        pair = Pair()
        pair.order(OPEN, 0, 1)
        pair.kernels[0].transmit()
        frame = bytearray(pair.kernels[0].sent.pop())
        frame[40] ^= 1
        pair.kernels[1].deliver(0, bytes(frame))
        generator._serve(pair.ends[1], pair.burst, pair.ledger, 5)
        assert pair.ledger.tally[0]["broken"] == 1
        assert pair.ledger.connections[0]["external"] == 0


# --- the laboratory ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here() -> Iterator[Scene]:
    """Two servers, each alone, three shards, and a generator on shard 0."""
    try:
        namespaces.need(*PROGRAMS)
    except client.Trouble as trouble:
        pytest.skip(f"{trouble.what}: {trouble.why}")  # under CI=true conftest makes it a failure
    wanted = Wanted(2, 3, sessions=20_000, clustered=False)
    with scene("kcl", wanted, Sizes(2_000, 1, 20_000), People((0,), 100, 100), lambda _: None) as made:
        yield made


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["ping", "dns", "route"])
def test_traffic_of_two_shards_goes_through_two_servers(here: Scene, kind: str) -> None:
    outcome = traffic.kinds(here.lab)[kind](here.lab)
    assert outcome.held, outcome.told


@pytest.mark.lab
def test_a_shards_packets_go_where_they_are_steered(here: Scene) -> None:
    names = {"outbound": "s1/0", "inbound": "s1/0"}
    for direction in ("inbound", "outbound"):
        steering.steer(here.tor, 0, "s2/0", (direction,))
        names[direction] = "s2/0"
        place = steering.places(here.tor, Wanted(2, 3))[0]
        assert (place.outbound, place.inbound) == (names["outbound"], names["inbound"])
    assert _hop(here) == "10.1.2.2"
    steering.steer(here.tor, 0, "s1/0")
    assert _hop(here) == "10.1.1.2"


def _hop(here: Scene) -> str:
    words = ("traceroute", "-n", "-q", "1", "-w", "2", "-f", "2", "-m", "2", here.lab.topology.address("h1"))
    found = re.search(r"^ *2 +(\S+)", here.lab.run("c1", *words).stdout, re.MULTILINE)
    return found[1] if found else ""


@pytest.mark.lab
def test_what_belongs_to_no_shard_leaves_untranslated_by_no_way(here: Scene) -> None:
    here.lab.run("c1", "ip", "address", "add", "100.65.0.1/32", "dev", "lo")
    done = here.lab.run("c1", "ping", "-c", "2", "-i", "0.1", "-W", "1", "-I", "100.65.0.1", here.lab.topology.address("h1"))
    assert "0 received" in done.stdout


@pytest.mark.lab
def test_a_partition_cuts_servers_apart_and_leaves_subscribers_alone(here: Scene) -> None:
    fabric, leg = "192.168.77.1", str(cluster.outside_leg("s1/0").address)
    assert _reached(here, fabric) and _reached(here, leg)
    steering.partition(here.lab.namespace, "s1")
    assert not _reached(here, fabric) and not _reached(here, leg)
    assert traffic.ping(here.lab).held
    steering.heal(here.lab.namespace, "s1")
    assert _reached(here, fabric) and _reached(here, leg)
    steering.partition(here.lab.namespace, "s1", shunts=False)
    assert not _reached(here, fabric) and _reached(here, leg)
    steering.heal(here.lab.namespace, "s1")
    assert _reached(here, fabric)


def _reached(here: Scene, address: str) -> bool:
    return here.lab.run("s2", "ping", "-n", "-c", "1", "-W", "0.3", address).returncode == 0


@pytest.mark.lab
def test_connections_and_a_stream_survive_where_their_state_is_and_nowhere_else(here: Scene) -> None:
    made, began = here.generator, time.monotonic_ns()
    made.stream(1000)
    made.open(1_000, 5_000)
    made.wait(OPEN)
    assert _asked(here) == stream.Survival(1_000, 1_000)
    steering.steer(here.tor, 0, "s2/0")  # who knows nothing of them
    assert _asked(here) == stream.Survival(1_000, 0)
    steering.steer(here.tor, 0, "s1/0")
    assert _asked(here) == stream.Survival(1_000, 1_000)
    ended = time.monotonic_ns()
    for kind in (STREAM_OUT, STREAM_IN):
        made.halt(kind)
    into = stream.became(made.ledger.into, began, ended)
    assert into.lost > 50  # while it went through s2
    assert into.sent - into.lost > 50


def _asked(here: Scene) -> stream.Survival:
    turned = here.generator.rounds
    here.generator.ask(turned, 20_000)
    here.generator.wait(ASK)
    return stream.survival(here.generator.ledger.connections, turned, 0, time.monotonic_ns())


@pytest.mark.lab
def test_a_frozen_core_goes_on_and_a_killed_one_can_be_started_again(here: Scene) -> None:
    with faults.frozen(here.lab, "s1/0"):
        assert not _passes(here)
    assert _passes(here)
    faults.kill(here.lab, "s1", "core")
    assert not _passes(here)
    faults.start(here.lab, "s1/0")
    assert _passes(here)


def _passes(here: Scene) -> bool:
    words = ("ping", "-n", "-c", "3", "-i", "0.1", "-W", "0.5", here.lab.topology.address("h1"))
    return here.lab.run("c1", *words).returncode == 0
