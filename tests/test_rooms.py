"""Two rooms: who has nothing serves a shard while those at home are away, and gives it back when they have copied it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import numpy as np
import pytest

from bench import rooms
from bench.cluster.ledger import CONNECTION, Sizes, new_ledger
from krononat import cluster as clusters
from krononat.announcer import Property, role_of
from krononat.cli import mapping
from krononat.config import ConfigError
from krononat.lab import chaos, cluster, fabric
from krononat.lab.cluster import Wanted
from replication import migration, roles
from replication.conduct import Place
from replication.layout import Home
from replication.roles import Post
from shards.state import ABSENT, ACTIVE, NO_SIDE, PASSIVE, SYNCING
from tests.test_conduct import TIMES, _Network

WANTED = Wanted(3, 4, tor="bird", rooms=2)


@pytest.fixture
def three(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> _Network:
    """Two at home, and the reserve; the parameter says what that makes of silence."""
    silent_room = getattr(request, "param", roles.APART)
    monkeypatch.setattr("tests.test_conduct.TIMES", TIMES._replace(silent_room=silent_room))
    network = _Network("a/0 b/0 c/0", {0: Place("a/0", "b/0", "c/0")})
    network.run(400)
    assert network.told() == {"a/0": (ACTIVE, 1, 0), "b/0": (PASSIVE, 1, 1), "c/0": (ABSENT, 1, NO_SIDE)}
    return network


def lose(network: _Network) -> None:
    """The room dies, and packets fall to the other one."""
    network.dead |= {"a/0", "b/0"}
    network.want("c/0")
    network.run(20)


def cut(network: _Network) -> None:
    """The rooms cannot hear each other any more, and packets come to both."""
    network.cut |= {frozenset(("a/0", "c/0")), frozenset(("b/0", "c/0"))}
    for _ in range(30):
        network.want("c/0")
        network.run(10)


def test_a_reserve_does_nothing_while_anybody_has_something_of_the_shard(three: _Network) -> None:
    three.dead.add("a/0")
    three.want("c/0")
    three.run(500)
    assert three.told()["c/0"][0] == ABSENT and three.told()["b/0"][0] == PASSIVE


def test_a_reserve_does_nothing_without_packets(three: _Network) -> None:
    three.dead |= {"a/0", "b/0"}
    three.run(1000)
    assert three.told()["c/0"] == (ABSENT, 1, NO_SIDE)


def test_a_room_that_died_is_served_with_its_ports_and_gets_its_shard_back(three: _Network) -> None:
    lose(three)
    row = three.states["c/0"].shards[0]
    assert three.told()["c/0"] == (ACTIVE, 2, 0) and row["creates"] and row["pickup"]
    three.start("a/0", cold=True)
    three.start("b/0", cold=True)
    three.run(700)
    assert three.told() == {"a/0": (PASSIVE, 2, 1), "b/0": (ABSENT, 2, NO_SIDE), "c/0": (ACTIVE, 2, 0)}
    assert not three.cores["c/0"].migrate(0, "a/0", three.now).over
    three.run(1000)
    assert three.told() == {"a/0": (ACTIVE, 3, 0), "b/0": (PASSIVE, 3, 1), "c/0": (ABSENT, 3, NO_SIDE)}, "its copy, too"
    assert three.cores["c/0"].moves[0].phase == migration.DONE


def test_whoever_comes_home_first_gets_a_copy(three: _Network) -> None:
    lose(three)
    assert three.cores["c/0"].posts[0].backup == "a/0"
    three.start("b/0", cold=True)
    three.run(700)
    assert three.told()["b/0"][0] == PASSIVE and three.cores["c/0"].posts[0].backup == "b/0"
    three.start("a/0", cold=True)
    three.run(700)
    assert three.told()["a/0"][0] == ABSENT and three.told()["b/0"][0] == PASSIVE


def test_who_is_back_with_its_memory_asks_the_reserve_before_it_goes_on(three: _Network) -> None:
    lose(three)
    three.start("a/0")
    three.start("b/0")
    three.run(3)
    assert not three.states["a/0"].shards[0]["creates"] and not three.states["b/0"].shards[0]["creates"]
    three.run(700)
    assert three.told()["c/0"] == (ACTIVE, 2, 0) and three.told()["a/0"][0] == PASSIVE


def test_a_room_that_is_silent_may_be_cut_off_so_nobody_uses_its_ports(three: _Network) -> None:
    cut(three)
    assert three.told()["a/0"] == (ACTIVE, 1, 0) and three.told()["c/0"] == (ACTIVE, 2, 1)
    assert not three.states["c/0"].shards[0]["pickup"]
    three.cut.clear()
    three.run(700)
    assert three.told() == {"a/0": (PASSIVE, 2, 1), "b/0": (ABSENT, 2, NO_SIDE), "c/0": (ACTIVE, 2, 0)}


@pytest.mark.parametrize("three", [roles.DEAD], indirect=True)
def test_a_reserve_may_take_silence_for_death(three: _Network) -> None:
    three.frozen |= {"a/0", "b/0"}
    three.run(200)
    three.want("c/0")
    three.cores["c/0"].turn(three.now + 1)  # without the check that it is right, which nobody can tell
    assert three.told()["c/0"] == (ACTIVE, 2, 0) and three.states["c/0"].shards[0]["pickup"]


@pytest.mark.parametrize("three", [roles.WAIT], indirect=True)
def test_a_reserve_may_wait_for_words(three: _Network) -> None:
    cut(three)
    assert three.told()["c/0"] == (ABSENT, 1, NO_SIDE)
    three.cut.clear()
    three.run(100)
    lose(three)
    assert three.told()["c/0"] == (ACTIVE, 2, 0)


def test_a_reserve_that_has_just_begun_gives_those_at_home_time_to_begin() -> None:
    network = _Network("a/0 b/0 c/0", {0: Place("a/0", "b/0", "c/0")})
    network.dead |= {"a/0", "b/0"}
    for _ in range(2 * TIMES.join_after // 10 - 1):
        network.want("c/0")
        network.run(10)
    assert network.told()["c/0"][0] == ABSENT
    network.run(20)
    network.want("c/0")
    network.run(2)
    assert network.told()["c/0"][0] == ACTIVE


# --- what the network is told -------------------------------------------------------------------------------------------------


def test_a_room_that_is_back_announces_nothing_before_it_has_its_copy() -> None:
    place = Property(0, (), (), 1, True, "s3/0")
    syncing = Post(SYNCING, 2, NO_SIDE, 0, authority="s3/0")
    assert role_of(syncing, place, "silent") == "silent"
    assert role_of(syncing._replace(authority="s2/0"), place, "silent") == "rejoining"
    assert role_of(syncing._replace(role=PASSIVE), place, "silent") == "backup"


# --- the map ------------------------------------------------------------------------------------------------------------------


def written(change: Callable[[str], str] = str) -> str:
    keys = {core: "abc"[n] * 40 for n, core in enumerate(cluster.cores(WANTED))}
    return change(cluster.map_of(WANTED, keys, fabric.shunts(WANTED)))


def test_a_map_names_rooms_and_reserves_and_is_written_as_it_was() -> None:
    told = clusters.read(written())
    assert told.rooms() == {"s1/0": "A", "s2/0": "A", "s3/0": "B"} and {shard.reserve for shard in told.shard} == {"s3/0"}
    assert clusters.read(clusters.written(told)) == told and not list(clusters.alarms(told))


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ('reserve = "s3/0"', 'reserve = "s2/0"', "s2/0 is in the shard's own room A"),
        ('reserve = "s3/0"', 'reserve = "s4/0"', "there is no core 's4/0'"),
        ('room = "B"', "", "s3/0 is in no room: say `room` of the cores"),
        ('name = "s3/0"', 'name = "s1/1"', "s1/1 is in room B, another core of its server in room A"),
    ],
)
def test_what_contradicts_itself_is_refused(before: str, after: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        clusters.read(written(lambda text: text.replace(before, after)))
    assert complaint in str(refused.value)


def test_a_shard_that_moves_to_its_reserves_room_has_that_no_more() -> None:
    told = clusters.read(written())
    newer = mapping.placed(told, {0: Home("s3/0", "s1/0"), 1: Home("s2/0", "s1/0")}, {})
    assert [shard.reserve for shard in newer.shard] == [None, "s3/0", "s3/0", "s3/0"]
    assert list(clusters.alarms(newer)) == ["primary and backup in two rooms by the map: shard 0"]
    assert "shard 0: its reserve is nobody, was s3/0" in mapping.differences(told, newer)
    assert all(shard.reserve is None for shard in mapping.placed(told, {}, {}, "s3").shard)


# --- the laboratory, the bench ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [WANTED, Wanted(4, 16, tor="bird", cores=2, rooms=2, preference="longest-prefix")])
def test_a_reserve_announces_what_all_routes_of_its_shards_are_in(wanted: Wanted) -> None:
    for shard in range(wanted.shards):
        reserve = cluster.reserve_of(wanted, shard) or ""
        home = {
            cluster.room_of(wanted, core)
            for core in (cluster.first_core(wanted, shard), cluster.backup_of(wanted, shard) or "")
        }
        assert (home, cluster.room_of(wanted, reserve)) == ({"A"}, "B")
        line = next(line for line in fabric.config(wanted, reserve, Path("/x")).splitlines() if line.startswith("aggregates"))
        wide = [IPv4Network(word) for word in line.split('"')[1::2]]
        assert any(cluster.external_of(shard).subnet_of(each) and cluster.external_of(shard) != each for each in wide)
        assert any(fabric.shard_address(wanted, shard) in each for each in wide)
    assert "aggregates" not in fabric.config(wanted, "s1/0", Path("/x"))
    assert cluster.servers_of(wanted, "A") == ("s1", "s2") and chaos.KINDS["room"].names(wanted) == ("A", "B")


def test_two_rooms_need_three_servers() -> None:
    with pytest.raises(ValueError, match="two rooms need three servers"):
        fabric.topology(Wanted(2, 4, tor="bird", rooms=2), Path("/x"))
    assert not chaos.KINDS["room"].names(Wanted(3, tor="bird"))


def test_the_bench_counts_until_new_connections_come_up() -> None:
    ledger = new_ledger(Sizes(connections=400), np.zeros(1, np.int64), (1, 1, 1, 1, 1), *[np.zeros(12, np.uint8)] * 2)
    assert ledger.connections.dtype == CONNECTION
    ledger.connections["opened"] = 1 + np.arange(400) * 1_000_000
    ledger.connections["established"] = 7
    assert rooms.new_connections_ms(ledger, 1, 400_000_000) == 0
    ledger.connections["established"][[3, 120]] = 0
    assert rooms.new_connections_ms(ledger, 1, 400_000_000) == 150
    ledger.connections["established"] = 0
    assert rooms.new_connections_ms(ledger, 1, 400_000_000) == 400
