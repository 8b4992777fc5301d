"""Conductors that follow a newer map while shards stay where they are: who comes is met, who leaves is forgotten."""

from __future__ import annotations

import pytest

from replication import migration
from replication.conduct import HOME_EACH, Place
from replication.protocol import ALIVE
from shards.jit import PURE
from shards.state import ABSENT, ACTIVE, PASSIVE
from tests.test_conduct import _Network


class Changing(_Network):
    """Cores that may know different maps."""

    def follow(self, name: str, cores: str, place: Place) -> None:
        """A core sees a newer map; rows of PEER stay, a new core gets the next one."""
        core = self.cores[name]
        known = dict(core._peers)
        peers = {other: known.get(other, 0) for other in cores.split() if other != name}
        for other in peers:
            peers[other] = peers[other] or 1 + max([*known.values(), *peers.values()])
        core.follow({other: row for other, row in peers.items() if other in known}, core._places, self.now)
        core.follow(peers, {0: place}, self.now)


if PURE:

    @pytest.fixture
    def three() -> Changing:
        network = Changing("a/0 b/0 c/0", {0: Place("a/0", "b/0")})
        network.run(400)
        assert network.told()["a/0"] == (ACTIVE, 1, 0)
        return network

    def test_a_copy_goes_where_the_map_wants_it(three: Changing) -> None:
        for name in ("c/0", "a/0", "b/0"):
            three.follow(name, "a/0 b/0 c/0", Place("a/0", "c/0"))
            three.run(3)
        three.run(600)
        assert three.told() == {"a/0": (ACTIVE, 1, 0), "b/0": (ABSENT, 1, 2), "c/0": (PASSIVE, 1, 1)}
        assert three.cores["a/0"].moves[0].copies and three.cores["a/0"].moves[0].phase == migration.DONE

    def test_a_shard_stays_where_it_is_whatever_the_map_says_of_its_primary(three: Changing) -> None:
        for name in three.names:
            three.follow(name, "a/0 b/0 c/0", Place("c/0", "b/0"))
        three.run(600)
        assert three.told() == {"a/0": (ACTIVE, 1, 0), "b/0": (PASSIVE, 1, 1), "c/0": (ABSENT, 1, 2)}

    def test_a_copy_waits_until_its_new_home_is_there(three: Changing) -> None:
        three.dead.add("c/0")
        for name in ("a/0", "b/0"):
            three.follow(name, "a/0 b/0 c/0", Place("a/0", "c/0"))
        three.run(600)
        assert three.told()["b/0"] == (PASSIVE, 1, 1)
        three.start("c/0")
        three.run(HOME_EACH + 600)
        assert three.told()["c/0"] == (PASSIVE, 1, 1) and three.told()["b/0"][0] == ABSENT

    def test_the_dead_leave_the_map_and_the_copy_is_made_anew(three: Changing) -> None:
        """As long as the map has it, the dead one holds on to its side: it may only be cut off."""
        three.dead.add("b/0")
        three.run(300)
        assert three.cores["a/0"].posts[0].backup == "b/0"
        for name in ("a/0", "c/0"):
            three.follow(name, "a/0 c/0", Place("a/0", "c/0"))
        three.run(600)
        assert three.told()["a/0"] == (ACTIVE, 1, 0) and three.told()["c/0"] == (PASSIVE, 1, 1)

    def test_who_followed_one_that_left_takes_over_where_packets_come(three: Changing) -> None:
        three.dead.add("a/0")
        three.run(300)
        for name in ("b/0", "c/0"):
            three.follow(name, "b/0 c/0", Place("b/0", "c/0"))
        three.run(100)
        three.want("b/0")
        three.run(100)
        assert three.told()["b/0"][0] == PASSIVE  # another one may say in a moment that it has the authority
        three.run(500)
        three.want("b/0")
        three.run(1000)
        assert three.told()["b/0"][0] == ACTIVE and three.told()["b/0"][2] == 0
        assert three.told()["c/0"] == (PASSIVE, three.told()["b/0"][1], 1)

    def test_a_move_to_who_has_left_is_given_up(three: Changing) -> None:
        move = three.cores["a/0"].migrate(0, "c/0", three.now)
        assert not move.over
        three.run(5)
        for name in ("a/0", "b/0"):
            three.follow(name, "a/0 b/0", Place("a/0", "b/0"))
        three.run(300)
        assert three.cores["a/0"].moves[0].why == "the map has c/0 no more"
        assert three.told()["a/0"] == (ACTIVE, 1, 0) and three.told()["b/0"] == (PASSIVE, 1, 1)

    def test_who_joins_is_heard_and_can_be_given_the_shard() -> None:
        network = Changing("a/0 b/0 d/0", {0: Place("a/0", "b/0")})
        network.dead.add("d/0")
        for name in ("a/0", "b/0"):
            network.follow(name, "a/0 b/0", Place("a/0", "b/0"))
        network.run(400)
        assert network.told()["a/0"] == (ACTIVE, 1, 0)  # it does not wait for who is in the map no more
        for name in ("a/0", "b/0"):
            network.follow(name, "a/0 b/0 d/0", Place("a/0", "b/0"))
        network.start("d/0")
        network.run(100)
        core = network.cores["a/0"]
        assert not core.migrate(0, "d/0", network.now).over
        network.run(1500)
        assert network.told()["d/0"][0] == ACTIVE and network.told()["a/0"][0] == PASSIVE
        assert network.cores["d/0"]._exchange.evidence("a/0", network.now) == ALIVE

    def test_maps_that_differ_are_noticed(three: Changing) -> None:
        for number, name in enumerate(three.names):
            three.cores[name].mark = (7, number)
        three.run(100)
        assert three.cores["a/0"].marks == {"b/0": (7, 1), "c/0": (7, 2)}
