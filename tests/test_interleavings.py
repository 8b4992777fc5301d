"""Whatever happens to a shard, in whatever order: no port has two owners, no mapping is lost, and all agree in the end.

Each case below is searched to its end: every order of every step, from the start or from rest, as far as the budget of things
that need not happen allows. `--worlds N` searches larger cases as well, N worlds of each, and walks longer ways.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replication import conduct, migration, roles
from replication.migration import Move, Seen
from replication.roles import Post, Told
from shards.jit import PURE
from shards.state import ACTIVE, NO_SIDE, PASSIVE, SYNCING
from tests import simulated_core
from tests.search import Search, wander
from tests.simulated_core import PORTS
from tests.simulation import Budget, Simulation, Violation

# cores, whether they begin at rest, what may happen; how many worlds that is shows how much was looked at, and guards against
# a search that no longer looks at anything.
CASES = [
    (2, False, Budget(flows=2)),
    (2, False, Budget(flows=1, crashes=1)),
    (2, False, Budget(flows=1, cuts=1)),
    (2, True, Budget(flows=3, cuts=1, batches=1)),
    (2, True, Budget(flows=2, crashes=1)),
    (2, True, Budget(flows=1, freezes=1, moves=1, timers=1)),
    (2, True, Budget(flows=1, crashes=1, moves=1)),
    (2, True, Budget(flows=1, cold=1)),
    (3, True, Budget(flows=0, moves=1)),
    (3, True, Budget(flows=0, crashes=1)),
]
LARGE = [
    (2, True, Budget(flows=2, cold=1, moves=1)),
    (2, False, Budget(flows=2, cuts=1, crashes=1)),
    (2, True, Budget(flows=2, cuts=1, moves=1, timers=1)),
    (2, True, Budget(flows=2, cuts=2)),
    (3, True, Budget(flows=1, moves=1)),
    (3, True, Budget(flows=1, moves=1, crashes=1)),
    (3, True, Budget(flows=1, moves=1, cuts=1)),
    (3, True, Budget(flows=1, moves=1, freezes=1)),
]
LATE = [1128, 1576, 2148, 3136]  # seeds of ways: a late taker's side was another one's before its rows were
# What a newer map brings (see `simulated_core.MAPS`), cores, what may happen meanwhile.
CHANGES = [
    ("", 2, Budget(flows=2, maps=1)),
    ("", 2, Budget(flows=1, maps=1, moves=1)),
    ("", 2, Budget(flows=0, maps=1, crashes=1)),
    ("", 3, Budget(flows=0, maps=1)),
    ("join", 3, Budget(flows=1, maps=1)),
    ("leave", 3, Budget(flows=1, maps=1)),
]
# Two rooms: "a" and "b", and "c", which has nothing and steps in where packets come to it while the others are away.
ROOMS = [
    Budget(flows=0, rooms=1),
]
LARGE_ROOMS = [
    Budget(flows=1, rooms=1),  # complete with 91,710
    Budget(flows=1, rooms=1, cold=2),
    Budget(flows=2, apart=1),
    Budget(flows=2, rooms=1, moves=1),
    Budget(flows=2, rooms=1, cold=2, moves=1),
    Budget(flows=2, apart=1, moves=1),
    Budget(flows=2, rooms=1, crashes=1),
    Budget(flows=2, rooms=1, apart=1, moves=2, cuts=1),
]
LARGE_CHANGES = [
    ("", 3, Budget(flows=1, maps=1, moves=1)),
    ("", 3, Budget(flows=1, maps=1, crashes=1)),
    ("", 3, Budget(flows=1, maps=1, cuts=1)),
    ("join", 3, Budget(flows=0, maps=1, moves=1)),
    ("leave", 3, Budget(flows=0, maps=1, moves=1)),
    ("join", 3, Budget(flows=2, maps=1, moves=1, crashes=1)),
    ("leave", 3, Budget(flows=2, maps=1, moves=2, cuts=1)),
]
EVERYTHING = Budget(flows=6, moves=4, crashes=2, cold=1, cuts=2, freezes=2, timers=2, batches=5)


def early(post: Post, top: Told, ordered: Callable[[Post, Told], int] = roles._ordered) -> int:
    """A rule of `roles` as it was: who is to let go of a side does so at once."""
    return ordered(post._replace(winner=""), top)


def told(budget: Budget) -> str:
    """A budget as the name of a case."""
    return " ".join(f"{count} {name}" for name, count in budget._asdict().items() if count)


def search(count: int, at_rest: bool, budget: Budget, at_most: int = 1_000_000, change: str = "") -> Search:
    """A search that is over."""
    simulation = Simulation(count, change)
    first = simulation.begin(budget)
    found = Search(simulation, simulation.settle(first, budget) if at_rest else first, at_most)
    found.run()
    return found


if PURE:  # nothing here is compiled: once is enough

    @pytest.mark.parametrize(("count", "at_rest", "budget"), CASES, ids=[told(case[2]) for case in CASES])
    def test_all_orders(count: int, at_rest: bool, budget: Budget) -> None:
        found = search(count, at_rest, budget)
        print(f"{count} cores, {told(budget)}: {len(found.before):,} worlds, {found.depth} deep, {found.rests} at rest")
        assert found.complete and found.rests > 0 and len(found.before) > 300

    @pytest.mark.parametrize(("count", "at_rest", "budget"), LARGE, ids=[told(case[2]) for case in LARGE])
    def test_all_orders_of_more(count: int, at_rest: bool, budget: Budget, request: pytest.FixtureRequest) -> None:
        """With `--worlds` only as far as that; without it not far, so that the case itself stays right."""
        found = search(count, at_rest, budget, request.config.getoption("--worlds") or 2000)
        print(f"{count} cores, {told(budget)}: {len(found.before):,} worlds, {found.depth} deep, complete: {found.complete}")
        assert len(found.before) >= 2000 or found.complete

    @pytest.mark.parametrize(("change", "count", "budget"), CHANGES, ids=[f"{case[0]} {told(case[2])}" for case in CHANGES])
    def test_all_orders_in_which_a_newer_map_is_seen(change: str, count: int, budget: Budget) -> None:
        found = search(count, True, budget, change=change)
        print(f"{count} cores, {change} {told(budget)}: {len(found.before):,} worlds, {found.rests} at rest")
        assert found.complete and found.rests > 0 and len(found.before) > 10

    @pytest.mark.parametrize("budget", ROOMS, ids=told)
    def test_all_orders_in_which_a_room_is_lost(budget: Budget) -> None:
        found = search(3, True, budget, change="rooms")
        print(f"{told(budget)}: {len(found.before):,} worlds, {found.rests} at rest")
        assert found.complete and found.rests > 0 and len(found.before) > 300

    @pytest.mark.parametrize("budget", LARGE_ROOMS, ids=told)
    def test_more_orders_in_which_a_room_is_lost(budget: Budget, request: pytest.FixtureRequest) -> None:
        found = search(3, True, budget, request.config.getoption("--worlds") or 2000, "rooms")
        print(f"{told(budget)}: {len(found.before):,} worlds, {found.depth} deep, complete: {found.complete}")
        assert len(found.before) >= 2000 or found.complete

    def test_rooms_on_long_ways_by_chance(request: pytest.FixtureRequest) -> None:
        simulation = Simulation(3, "rooms")
        ways = max(30, (request.config.getoption("--worlds") or 0) // 100)
        budget = Budget(flows=6, moves=3, crashes=1, cuts=1, freezes=1, timers=1, batches=3, rooms=2, apart=2)
        steps = [wander(simulation, seed, budget, 150) for seed in range(ways)]
        print(f"{len(steps)} ways, {sum(steps):,} steps")
        assert max(steps) > 50

    @pytest.mark.parametrize(
        ("change", "count", "budget"), LARGE_CHANGES, ids=[f"{case[0]} {told(case[2])}" for case in LARGE_CHANGES]
    )
    def test_more_orders_in_which_a_newer_map_is_seen(
        change: str, count: int, budget: Budget, request: pytest.FixtureRequest
    ) -> None:
        found = search(count, True, budget, request.config.getoption("--worlds") or 2000, change)
        print(f"{count} cores, {change} {told(budget)}: {len(found.before):,} worlds, {found.depth} deep: {found.complete}")
        assert len(found.before) >= 2000 or found.complete

    @pytest.mark.parametrize(("count", "change"), [(2, ""), (3, ""), (3, "join"), (3, "leave")])
    def test_a_newer_map_on_long_ways_by_chance(count: int, change: str, request: pytest.FixtureRequest) -> None:
        simulation = Simulation(count, change)
        ways = max(20, (request.config.getoption("--worlds") or 0) // 100)
        budget = EVERYTHING._replace(maps=1, cold=0)
        steps = [wander(simulation, seed, budget, 150) for seed in range(ways)]
        print(f"{count} cores, {change}: {len(steps)} ways, {sum(steps):,} steps")
        assert max(steps) > 50

    @pytest.mark.parametrize("count", [2, 3])
    def test_long_ways_by_chance(count: int, request: pytest.FixtureRequest) -> None:
        budget = EVERYTHING if count == 2 else EVERYTHING._replace(cold=0)
        simulation = Simulation(count)
        ways = max(60, (request.config.getoption("--worlds") or 0) // 100)
        steps = [wander(simulation, seed, budget, 200) for seed in range(ways)]
        print(f"{count} cores: {len(steps)} ways, {sum(steps):,} steps")
        assert max(steps) > 50

    def test_a_handover_in_vain_after_a_grace_that_is_over() -> None:
        """Once it began again: what had been handed out since was the dead owner's in its eyes."""
        budget = Budget(flows=4, moves=5, crashes=1, freezes=1, batches=4, timers=1)
        assert wander(Simulation(3), 9543, budget, 250) > 50

    @pytest.mark.parametrize("seed", LATE)
    def test_a_handover_that_comes_after_it_has_lapsed(seed: int) -> None:
        assert wander(Simulation(3), seed, Budget(flows=4, moves=5, batches=4), 250) > 50

    # --- a broken rule is found -------------------------------------------------------------------------------------------

    def test_one_pool_for_both_sides_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(simulated_core, "ports_of", lambda side: range(0 if side == NO_SIDE else PORTS))
        with pytest.raises(Violation, match="port 0 is of"):
            search(2, True, Budget(flows=2, cuts=1))

    def test_an_owner_that_does_not_step_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(roles.FOLLOWING, (ACTIVE, "higher"))
        with pytest.raises(Violation, match="2 cores have the authority in the end"):
            search(2, True, Budget(flows=0, cuts=1))

    def test_taking_the_side_of_one_who_may_be_alive_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
        promote = roles._promote
        eager = {**roles._CHANGES, "dead": lambda *given: promote(*given)._replace(side=0)}
        monkeypatch.setattr(roles, "_CHANGES", eager)
        with pytest.raises(Violation, match="two cores hand out ports of one side"):
            search(2, True, Budget(flows=0, cuts=1))

    @pytest.mark.parametrize("seed", LATE)
    def test_a_side_let_go_before_its_rows_are_given_is_found(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        monkeypatch.setattr(roles, "_ordered", early)
        with pytest.raises(Violation, match="port 2 is of"):
            wander(Simulation(3), seed, Budget(flows=4, moves=5, batches=4), 250)

    def test_taking_a_side_before_its_rows_came_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
        def hasty(post: Post, others: list[Told], me: str) -> Post:
            return post if any(each.side == 0 for each in others) else post._replace(side=0)

        monkeypatch.setattr(roles, "_take_side", hasty)
        monkeypatch.setattr(roles, "_ordered", early)
        with pytest.raises(Violation, match="port 0 is of"):
            search(2, True, Budget(flows=2, cuts=1))

    def test_handing_over_before_all_is_sent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
        pause = migration._pause

        def hasty(move: Move, post: Post, seen: Seen, now: int) -> tuple[Move, Post]:
            return pause(move, post, seen._replace(flushed=True), now)

        monkeypatch.setattr(migration, "_STEPS", {**migration._STEPS, migration.PAUSE: hasty})
        with pytest.raises(Violation, match=r"are lost|port 0 is of"):
            search(2, True, Budget(flows=2, moves=1, crashes=1))

    def test_two_heirs_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(roles, "heir", lambda post, to, others: post.role == ACTIVE and to.name == post.backup)
        with pytest.raises(Violation, match="two cores hand out ports of one side"):
            search(3, True, Budget(flows=0, moves=1, crashes=1))

    def test_an_owner_that_keeps_what_it_made_to_itself_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
        follow = roles._follow
        monkeypatch.setattr(roles, "_CHANGES", {**roles._CHANGES, "higher": lambda *given: follow(*given)._replace(winner="")})
        with pytest.raises(Violation, match=r"are lost|port 0 is of"):
            search(2, True, Budget(flows=1, cuts=1))

    def test_ports_of_the_dead_given_on_within_the_grace_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
        """As it was: once the backup had a copy the other side was its, and new connections took the dead one's ports."""
        note = conduct.Conductor._note_sent

        def hasty(core: conduct.Conductor, shard: int, before: Post, now: int) -> None:
            if core._exchange.synced(shard, core.posts[shard].backup):
                core._state.shards[shard]["pickup"] = 0
            note(core, shard, before, now)

        monkeypatch.setattr(conduct.Conductor, "_note_sent", hasty)
        with pytest.raises(Violation, match="before the grace was over"):
            search(2, True, Budget(flows=2, crashes=1))

    def test_a_side_given_away_while_new_connections_take_its_ports_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(conduct.Conductor, "_steps_aside", lambda core, shard, now: False)
        with pytest.raises(Violation, match=r"port \d is of"):
            search(2, True, Budget(flows=2, crashes=1, cuts=1))

    def test_going_on_without_asking_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
        alone = dict(roles._LOOKS)
        alone["alone"] = lambda post, others, facts: True
        monkeypatch.setattr(roles, "_LOOKS", alone)
        with pytest.raises(Violation, match="two cores hand out ports of one side"):
            search(2, True, Budget(flows=0, crashes=1))

    def test_a_shard_that_nobody_may_inherit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(roles.FOLLOWING, (SYNCING, "bereft"))
        monkeypatch.delitem(roles.FOLLOWING, (PASSIVE, "bereft"))
        with pytest.raises(Violation, match=r"0 cores have the authority in the end|are lost"):
            search(2, True, Budget(flows=0, cold=1))

    def test_every_attribute_of_a_conductor_is_known_to_the_simulation() -> None:
        """A new one is either part of a `Node`, or always the same, or of one step only: say which."""
        core, _ = Simulation(2).machine._wake("a", None, {}, True)
        assert vars(core).keys() == simulated_core.HELD | simulated_core.SAME | simulated_core.WITHIN_A_STEP
        assert isinstance(core, conduct.Conductor)
