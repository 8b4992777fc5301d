"""Plans of moves: copies stay on different servers, nobody is left behind, loads become more equal."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.placement import TOLERANCE, Impossible, Move, Place, after, drain, rebalance, server_of, swap, targets, undrain

CORES = ["s1/0", "s1/1", "s2/0", "s2/1", "s3/0"]
HALF = [Place(0, "s1/0", "s2/0"), Place(1, "s1/1", "s2/1"), Place(2, "s2/0", "s1/0")]
ONES = dict.fromkeys(range(64), 1.0)


def loads_of(places: list[Place], cores: list[str], loads: dict[int, float]) -> dict[str, float]:
    """What each core has to do."""
    return {core: sum(loads[place.shard] for place in places if place.active == core) for core in cores}


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[str], list[Place], dict[int, float]]:
    """Cores of two to five servers, shards placed by the rules, loads."""
    servers = draw(st.integers(2, 5))
    cores = [f"s{server}/{core}" for server in range(servers) for core in range(draw(st.integers(1, 3)))]
    places, loads = [], {}
    for shard in range(draw(st.integers(1, 12))):
        active = draw(st.sampled_from(cores))
        others = [core for core in cores if server_of(core) != server_of(active)]
        places.append(Place(shard, active, draw(st.sampled_from([None, *others]))))
        loads[shard] = float(draw(st.integers(0, 100)))
    return cores, places, loads


def check(places: list[Place], moves: list[Move]) -> list[Place]:
    """Carry moves out, one by one: each is allowed when its turn comes, and no copy is lost or moved beside the other."""
    for move in moves:
        (place,) = [each for each in places if each.shard == move.shard]
        assert move.source == place.active and move.target in targets(place, [move.target]) and move.why
        places = after(places, [move])
        (then,) = [each for each in places if each.shard == move.shard]
        assert then.active == move.target
        assert then.passive == move.source and server_of(then.passive) != server_of(then.active)
    return places


def test_a_swap_changes_places() -> None:
    move = swap(HALF[0])
    assert move[:3] == (0, "s1/0", "s2/0")
    assert after(HALF, [move])[0] == Place(0, "s2/0", "s1/0")
    with pytest.raises(Impossible, match="shard 7 has no backup"):
        swap(Place(7, "s1/0", None))


def test_who_had_a_shard_keeps_the_copy_so_it_moves_to_another_server() -> None:
    assert targets(HALF[0], CORES) == ["s2/0", "s2/1", "s3/0"]  # not s1/1
    assert after(HALF, [Move(0, "s1/0", "s3/0", "")])[0] == Place(0, "s3/0", "s1/0")


def test_a_drained_server_keeps_no_authority() -> None:
    assert [move[:3] for move in drain(HALF, CORES, "s1", ONES)] == [(0, "s1/0", "s2/0"), (1, "s1/1", "s2/1")]
    assert drain(HALF, CORES, "s3", ONES) == []


def test_a_shard_without_a_backup_goes_to_the_idlest_core() -> None:
    places = [*HALF, Place(3, "s1/0", None)]
    assert drain(places, CORES, "s1", ONES | {3: 9.0})[0][:3] == (3, "s1/0", "s2/1")
    with pytest.raises(Impossible, match="shard 3 has nowhere to go"):
        drain([places[3]], ["s1/0", "s1/1"], "s1", ONES)


def test_a_shard_without_a_backup_stays_in_its_room_if_it_can() -> None:
    place, rooms = Place(3, "s1/0", None), {"s1/0": "A", "s2/0": "A", "s3/0": "B"}
    busy = [Place(0, "s2/0", None), place]
    (move,) = drain(busy, ["s1/0", "s2/0", "s3/0"], "s1", ONES, rooms)
    assert move.target == "s2/0" and "another room" not in move.why
    assert drain(busy, ["s1/0", "s2/0", "s3/0"], "s1", ONES)[0].target == "s3/0"
    (move,) = drain([place], ["s1/0", "s3/0"], "s1", ONES, rooms)
    assert move.target == "s3/0" and "in another room as there is none in its own" in move.why


def test_undrain_brings_home_what_is_at_home_there() -> None:
    moves = drain(HALF, CORES, "s1", ONES)
    meant = {place.shard: place.active for place in HALF}
    back = undrain(after(HALF, moves), meant, CORES, "s1")
    assert [move[:3] for move in back] == [(0, "s2/0", "s1/0"), (1, "s2/1", "s1/1")]
    assert after(after(HALF, moves), back) == HALF
    with pytest.raises(Impossible, match=r"cannot go home to s1/1: s1/0 is of the same server"):
        undrain([Place(0, "s1/0", "s2/0")], {0: "s1/1"}, CORES, "s1")
    with pytest.raises(Impossible, match="that core is not there"):
        undrain([Place(0, "s2/0", None)], {0: "s1/7"}, CORES, "s1")


def test_rebalance_swaps_where_that_does_as_much_good() -> None:
    crowded = [Place(shard, "s1/0", "s2/0") for shard in range(4)]
    assert [move.target for move in rebalance(crowded[:2], ["s1/0", "s2/0", "s3/0"], ONES)] == ["s2/0"]
    moves = rebalance(crowded, ["s1/0", "s2/0", "s3/0"], ONES)
    assert Counter(place.active for place in after(crowded, moves)) == {"s1/0": 2, "s2/0": 1, "s3/0": 1}
    assert "s1/0 has 4 to do, s2/0 0" in moves[0].why


def test_what_is_balanced_stays() -> None:
    assert rebalance(HALF, ["s1/0", "s1/1", "s2/0"], ONES) == []
    assert rebalance(HALF, CORES, {}) == []  # nothing to do: nothing to move
    one = [Place(0, "s1/0", None)]
    assert rebalance(one, CORES, {0: 100.0}) == []  # it would only be as lonely elsewhere


@given(clusters())
def test_every_drain_obeys_the_rules(given: tuple[list[str], list[Place], dict[int, float]]) -> None:
    cores, places, loads = given
    for server in {server_of(core) for core in cores}:
        try:
            moves = drain(places, cores, server, loads)
        except Impossible:
            pytest.fail("two servers always have room for what one of them has")
        then = check(places, moves)
        assert all(server_of(place.active) != server for place in then)
        assert len(moves) == sum(server_of(place.active) == server for place in places)


@given(clusters())
def test_every_rebalance_obeys_the_rules_and_helps(given: tuple[list[str], list[Place], dict[int, float]]) -> None:
    cores, places, loads = given
    moves = rebalance(places, cores, loads)
    assert len({move.shard for move in moves}) == len(moves)
    now = places
    for move in moves:  # each step makes the busier of both cores less busy
        before = loads_of(now, cores, loads)
        now = check(now, [move])
        then = loads_of(now, cores, loads)
        assert max(then[move.source], then[move.target]) < before[move.source]
    assert max(loads_of(now, cores, loads).values()) <= max(loads_of(places, cores, loads).values())
    least, loaded = TOLERANCE * sum(loads.values()) / len(cores), loads_of(now, cores, loads)
    for place in now:  # and nothing that did not move would help by much, moved alone
        if place.shard not in {move.shard for move in moves}:
            for target in targets(place, cores):
                assert loaded[place.active] - (loaded[target] + loads[place.shard]) <= least or loads[place.shard] <= least


def test_a_cluster_of_the_size_meant_takes_in_a_new_server() -> None:
    cores = [f"s{server}/{core}" for server in range(8) for core in range(40)]
    places = [
        Place(shard, cores[shard % 280], cores[(shard % 280 + 40 + shard // 320) % 320]) for shard in range(1024)
    ]  # the eighth server is new: it has nothing yet
    moves = rebalance(places, cores, dict.fromkeys(range(1024), 1.0))
    then = Counter(place.active for place in check(places, moves))
    assert max(then.values()) - min(then[core] for core in cores) <= 1
    assert len(moves) <= 130
