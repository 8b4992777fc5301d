"""Layouts of shards: two replicas never on a server, N+1, balance, and no more movement than that takes."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication import layout
from replication.layout import Home, Step, Tally
from replication.placement import Impossible, server_of

EIGHT = [f"s{server}/{core}" for server in range(1, 9) for core in range(40)]
NINTH = [f"s9/{core}" for core in range(40)]


def ones(count: int) -> dict[int, float]:
    """Shards that cost the same."""
    return dict.fromkeys(range(count), 1.0)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[str], dict[int, float]]:
    """Cores of two to five servers, what shards cost."""
    cores = [f"s{server}/{core}" for server in range(draw(st.integers(2, 5))) for core in range(draw(st.integers(1, 4)))]
    loads = draw(st.lists(st.floats(0.5, 100.0), min_size=1, max_size=40))
    return cores, dict(enumerate(loads))


def check(homes: dict[int, Home], cores: list[str]) -> None:
    """What holds of every layout."""
    for home in homes.values():
        assert home.primary in cores and home.backup in cores
        assert server_of(home.primary) != server_of(str(home.backup))


def walk(homes: dict[int, Home], steps: list[Step]) -> dict[int, Home]:
    """Do the steps one by one: each is of where the shard is, and the copies are never on one server."""
    now = dict(homes)
    for step in steps:
        home = now[step.shard]
        assert step.source == home.primary != step.target and step.why
        assert step.kind == "migrate" or step.target != home.backup
        now = layout.following(now, [step])
        assert server_of(now[step.shard].primary) != server_of(str(now[step.shard].backup))
    return now


@given(clusters())
def test_two_replicas_are_never_on_one_server_and_no_core_is_far_above_the_mean(
    given: tuple[list[str], dict[int, float]],
) -> None:
    cores, loads = given
    homes = layout.lay(loads, cores, loads)
    check(homes, cores)
    tally = Tally(cores, loads, homes)
    largest, mean = max(loads.values()), tally.mean()
    for server, members in tally.servers.items():
        has = [tally.has[core] for core in members]
        assert max(has) - min(has) <= largest + 1e-6
        assert tally.share(server) <= mean + largest + 1e-6


@given(clusters())
@settings(max_examples=60)
def test_a_death_is_shared_out_among_all_who_live(given: tuple[list[str], dict[int, float]]) -> None:
    """What one server's shards bring the others goes to who has least then: none gets more while another lies a shard below."""
    cores, loads = given
    tally = Tally(cores, loads, layout.lay(loads, cores, loads))
    largest = max(loads.values())
    for dead, lost in tally.servers.items():
        alive = [server for server in tally.servers if server != dead]
        after = {server: (tally.has[server] + tally.gets[dead, server]) / len(tally.servers[server]) for server in alive}
        gained = [after[server] for server in alive if tally.gets[dead, server]]
        assert lost and (not gained or max(gained) <= min(after.values()) + largest + 1e-6)


@given(clusters(), st.integers(1, 4))
def test_who_joins_gets_a_share_and_nobody_else_gets_anything(given: tuple[list[str], dict[int, float]], members: int) -> None:
    cores, loads = given
    new = [f"new/{core}" for core in range(members)]
    homes = layout.lay(loads, cores, loads)
    even = layout.following(homes, layout.even(homes, cores, loads))
    steps = list(layout._even_servers(Tally([*cores, *new], loads, even), 0.0, 0.5))
    then = walk(even, steps)
    before, after = Tally([*cores, *new], loads, even), Tally([*cores, *new], loads, then)
    check(then, [*cores, *new])
    assert len({step.shard for step in steps}) == len(steps)
    worst = max(before.share(server) for server in before.servers)
    old = {server_of(core) for core in cores}
    assert max(after.share(server) for server in old) <= worst + 1e-6
    busiest = max(before.has.values())
    assert after.share("new") <= max(busiest, max(loads.values())) + 1e-6  # a shard cannot be cut


@given(clusters())
def test_who_leaves_has_nothing_and_no_shard_is_without_a_copy(given: tuple[list[str], dict[int, float]]) -> None:
    cores, loads = given
    homes = layout.lay(loads, cores, loads)
    for server in {server_of(core) for core in cores}:
        stay = [core for core in cores if server_of(core) != server]
        steps = layout.leave(homes, cores, server, loads)
        then = walk(homes, steps)
        assert all(server_of(home.primary) != server for home in then.values())
        if len({server_of(core) for core in stay}) > 1:
            check(then, stay)
        else:
            assert {step.kind for step in steps} <= {"migrate"}  # nobody is left who could keep a copy
            continue
        touched = {shard for shard, home in homes.items() if server in (server_of(home.primary), server_of(str(home.backup)))}
        assert {step.shard for step in steps} == touched  # and no other shard moved


@given(clusters(), st.randoms(use_true_random=False))
def test_evening_out_ends_and_makes_the_busiest_core_no_busier(
    given: tuple[list[str], dict[int, float]], dice: random.Random
) -> None:
    cores, loads = given
    homes = {}
    for shard in loads:
        primary = dice.choice(cores)
        homes[shard] = Home(primary, dice.choice([None, *(core for core in cores if server_of(core) != server_of(primary))]))
    steps = layout.even(homes, cores, loads)
    then = walk(homes, steps)
    check(then, cores)
    before, after = Tally(cores, loads, homes), Tally(cores, loads, then)
    assert max(after.has[core] for core in cores) <= max(before.has[core] for core in cores) + 1e-6
    assert Counter(step.kind for step in steps)["migrate"] <= len(loads)  # each moves at most once


def test_copies_move_where_a_core_would_have_too_much_after_a_death() -> None:
    cores, loads = ["s1/0", "s2/0", "s2/1", "s3/0", "s3/1"], ones(8)
    backups = ["s3/0", "s3/1", "s2/0", "s2/1"]
    crowded = {shard: Home("s1/0", "s2/0") for shard in range(4)}
    crowded |= {4 + at: Home(cores[1 + at], backup) for at, backup in enumerate(backups)}
    tally = Tally(cores, loads, crowded)
    assert layout.worst_core(tally) == ("s2/0", "s1", 5)
    steps = list(layout._make_room(tally, 1.0))
    assert steps and {step.kind for step in steps} == {"copy"}
    assert "s2/0 would have 5.0 to do without s1" in steps[0].why
    assert layout.worst_core(Tally(cores, loads, walk(crowded, steps))).load == 4  # which s1/0 has already, while all live


def test_one_server_is_no_cluster() -> None:
    with pytest.raises(Impossible, match="no core outside of s1"):
        layout.lay(range(2), ["s1/0", "s1/1"], ones(2))
    with pytest.raises(Impossible, match="there is no core outside of s1"):
        layout.leave({0: Home("s1/0", None)}, ["s1/0"], "s1", ones(1))


# --- rooms ------------------------------------------------------------------------------------------------------------------

SIX = [f"s{server}/{core}" for server in range(1, 7) for core in range(2)]
ROOMS = {core: "A" if core < "s4" else "B" for core in SIX}  # three servers each


def test_both_copies_are_in_one_room_and_reserves_in_another() -> None:
    loads = ones(24)
    homes = layout.lay(loads, SIX, loads, ROOMS)
    check(homes, SIX)
    assert all(ROOMS[home.primary] == ROOMS[str(home.backup)] for home in homes.values())
    assert any(ROOMS[home.primary] != ROOMS[str(home.backup)] for home in layout.lay(loads, SIX, loads).values())
    found = layout.reserves(homes, SIX, loads, ROOMS)
    assert found.keys() == homes.keys() and all(ROOMS[found[shard]] != ROOMS[homes[shard].primary] for shard in homes)
    assert set(Counter(found.values()).values()) == {2}  # shared out evenly
    assert layout.reserves(homes, SIX, loads, {}) == {}
    with pytest.raises(Impossible, match="no core outside of s3"):  # both copies would be on the room's one server
        layout.lay(loads, SIX[:6], loads, dict.fromkeys(SIX[:4], "A") | dict.fromkeys(SIX[4:6], "B"))


def test_a_room_is_evened_out_by_itself_and_one_that_is_only_a_reserve_gets_nothing() -> None:
    loads = ones(8)
    crowded = {shard: Home("s1/0", "s2/0") for shard in range(8)}
    steps = layout.even(crowded, SIX, loads, rooms=ROOMS)
    then = walk(crowded, steps)
    assert steps and {ROOMS[step.target] for step in steps} == {"A"}
    assert {ROOMS[core] for core in (step.target for step in layout.even(crowded, SIX, loads))} == {"A", "B"}
    assert layout.even(then, SIX, loads, rooms=ROOMS) == layout.even(then, SIX[:6], loads)
    torn = {0: Home("s1/0", "s4/0"), 1: Home("s4/1", "s5/0")}
    (step,) = layout.even(torn, SIX, ones(2), tolerance=10.0, rooms=ROOMS)
    assert (step.shard, step.kind, ROOMS[step.target]) == (0, "copy", "A") and "in another room" in step.why


def test_who_leaves_is_followed_in_his_own_room_while_there_is_somebody() -> None:
    loads = ones(24)
    homes, cores = layout.lay(loads, SIX, loads, ROOMS), SIX
    for server, bare in (("s3", False), ("s2", True)):
        homes = walk_alone(homes, layout.leave(homes, cores, server, loads, ROOMS))
        cores = [core for core in cores if server_of(core) != server]
        of_a = [home for home in homes.values() if ROOMS[home.primary] == "A"]
        assert len(of_a) == 12 and all(home.primary in cores for home in of_a)
        left = {home.backup for home in of_a} & set(cores)
        assert not left if bare else all(home.backup in cores and ROOMS[str(home.backup)] == "A" for home in of_a)
    last = layout.leave(homes, cores, "s1", loads, ROOMS)  # nobody of the room is left: its shards are another room's
    then = walk_alone(homes, last)
    assert {ROOMS[home.primary] for home in then.values()} == {"B"}


def walk_alone(homes: dict[int, Home], steps: list[Step]) -> dict[int, Home]:
    """As `walk`, where nobody may be left to keep a copy."""
    for step in steps:
        assert step.source == homes[step.shard].primary
        homes = layout.following(homes, [step])
    return homes


# --- the size that is meant: what was simulated before, or better -----------------------------------------------------------


@pytest.mark.parametrize(
    ("shards", "a_core", "a_server", "core_after", "server_after", "joined", "left"),
    [(256, 1, 32, 2, 37, 24, (32, 64)), (1024, 4, 128, 5, 147, 112, (152, 280)), (4096, 13, 512, 15, 586, 448, (512, 1024))],
)
def test_eight_servers_of_forty_cores(
    shards: int, a_core: int, a_server: int, core_after: int, server_after: int, joined: int, left: tuple[int, int]
) -> None:
    loads = ones(shards)
    homes = layout.lay(loads, EIGHT, loads)
    check(homes, EIGHT)
    tally = Tally(EIGHT, loads, homes)
    assert max(tally.has[core] for core in EIGHT) <= a_core
    assert {tally.has[server] for server in tally.servers} == {a_server}
    assert layout.worst_core(tally).load <= core_after and layout.worst_server(tally).load <= server_after

    steps = layout.even(homes, EIGHT + NINTH, loads)
    then = walk(homes, steps)
    assert len(steps) <= joined and layout.copied(homes, steps) <= joined
    assert {server_of(step.target) for step in steps} == {"s9"}
    bigger = Tally(EIGHT + NINTH, loads, then)
    assert max(bigger.has[server] for server in bigger.servers) <= -(-shards // 9) + 1
    assert max(bigger.has[core] for core in EIGHT + NINTH) <= a_core

    steps = layout.leave(homes, EIGHT, "s8", loads)
    steps += layout.even(layout.following(homes, steps), EIGHT[:-40], loads)
    then = walk(homes, steps)
    check(then, EIGHT[:-40])
    moved = Counter(step.kind for step in steps)["migrate"]
    assert moved <= left[0] and layout.copied(homes, steps) <= left[1]
    smaller = Tally(EIGHT[:-40], loads, then)
    assert max(smaller.has[server] for server in smaller.servers) <= -(-shards // 7) + 1
