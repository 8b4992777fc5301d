"""Does the target of a move know all external addresses of the shard? Cores tell each other what they know of them."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgpack
import numpy as np
import pytest

from replication import migration
from replication.addresses import RANGES_AT_MOST, TELL_EACH, Addresses
from replication.conduct import HOME_EACH, Place
from replication.frames import HEADER_AT_MOST
from replication.migration import Move, Seen
from replication.protocol import ALIVE
from replication.roles import Post, Told
from shards.jit import PURE
from shards.state import ABSENT, ACTIVE, JOINING, NO_SIDE, PASSIVE, State, new_state
from tests.test_conduct import SIZES
from tests.test_following_cores import Changing

FEW, MORE = "203.0.113.0/30", "203.0.113.0/29"


def memory(*prefixes: str) -> State:
    """Of a core with a pool for shard 0."""
    state = new_state(SIZES._replace(pools=1, externals=8))
    state.settings[0]["pools"], state.pools[0]["rooms"] = 1, 8
    have(state, *prefixes)
    return state


def have(state: State, *prefixes: str) -> None:
    hosts = sorted(int(host) for prefix in prefixes for host in IPv4Network(prefix))
    state.externals["address"][: len(hosts)] = hosts
    state.pools[0]["externals"] = len(hosts)


def exchanged(one: Addresses, other: Addresses) -> None:
    """Each hears what the other says."""
    one.told_digest("b/0", other.digest)
    other.told_digest("a/0", one.digest)
    for teller, listener, me, peer in ((one, other, "a/0", "b/0"), (other, one, "b/0", "a/0")):
        if fields := teller.owed(peer, 1000):
            listener.told_ranges(me, msgpack.unpackb(msgpack.packb(fields), strict_map_key=False))


if PURE:

    def test_who_knows_the_same_is_told_nothing_more() -> None:
        one, other = Addresses(memory(MORE)), Addresses(memory(MORE))
        one.told_digest("b/0", other.digest)
        assert one.owed("b/0", 1000) is None and not one.is_unsure("b/0") and one.lacking("b/0", 0) == ""

    def test_who_lacks_some_is_named_with_how_many_and_who_has_more_lacks_nothing() -> None:
        one, other = Addresses(memory(MORE)), Addresses(memory(FEW))
        one.told_digest("b/0", other.digest)
        assert one.is_unsure("b/0") and one.lacking("b/0", 0) == ""
        exchanged(one, other)
        assert not one.is_unsure("b/0") and not other.is_unsure("a/0")
        told = "b/0 does not know 4 of its external addresses, 203.0.113.4 for one: who is mapped there would be cut off"
        assert (one.lacking("b/0", 0), other.lacking("a/0", 0)) == (told, "")
        assert one.lacking("b/0", 1) == "", "a shard without pools here"

    def test_it_is_told_again_now_and_then_and_at_once_when_something_changes() -> None:
        state = memory(MORE)
        one = Addresses(state)
        one.told_digest("b/0", 7)
        assert one.owed("b/0", 1000) and not one.owed("b/0", 1050) and one.owed("b/0", 1000 + TELL_EACH)
        one.told_digest("b/0", 8)
        assert one.owed("b/0", 2050) and not one.owed("b/0", 2100)
        have(state, FEW)
        one.look()
        assert one.owed("b/0", 2150)
        one.forget(["b/0"])
        assert one.owed("b/0", 9999) is None

    def test_an_older_version_says_nothing_and_nonsense_is_not_listened_to() -> None:
        one = Addresses(memory(MORE))
        one.told_digest("b/0", None)
        assert not one.is_unsure("b/0") and one.lacking("b/0", 0) == "" and one.owed("b/0", 1000) is None
        one.told_digest("b/0", 7)
        for ranges in ({0: [1]}, {0: [2, 1]}, {0: [0, 1 << 32]}, {0: ["a", "b"]}, {"0": [1, 2]}, {0: [0, 1 << 31]}, {0: 7}):
            one.told_ranges("b/0", {"x": 7, "r": ranges, "w": True})
            assert one.is_unsure("b/0"), ranges
        one.told_ranges("c/0", {"x": 7, "r": {}, "w": True})
        one.told_ranges("b/0", {"x": 7, "r": {}, "w": True})
        assert "does not know 8 of" in one.lacking("b/0", 0)

    def test_who_says_no_more_what_it_knows_is_of_an_older_version_from_then_on() -> None:
        one, other = Addresses(memory(MORE)), Addresses(memory(FEW))
        exchanged(one, other)
        assert one.lacking("b/0", 0)
        one.told_digest("b/0", None)
        assert not one.is_unsure("b/0") and one.lacking("b/0", 0) == "" and one.owed("b/0", 9000) is None
        one.told_digest("b/0", 7)
        assert one.is_unsure("b/0") and one.owed("b/0", 9000)

    def test_what_it_says_later_counts_from_then_on() -> None:
        """An answer that is kept is of what was known."""
        state = memory(MORE)
        one, other = Addresses(state), Addresses(memory(FEW))
        exchanged(one, other)
        told = one.lacking("b/0", 0)
        assert "know 4 of" in told
        have(state, "203.0.113.0/30", "203.0.113.4/31")
        one.look()
        assert "know 2 of" in one.lacking("b/0", 0)
        one.told_ranges("b/0", {"x": other.digest, "r": {0: [int(IPv4Address("203.0.113.4")), 0xCB007105]}, "w": True})
        assert "know 4 of its external addresses, 203.0.113.0" in one.lacking("b/0", 0)
        one.told_digest("b/0", one.digest)
        assert one.lacking("b/0", 0) == ""

    def test_of_a_shard_that_does_not_fit_into_a_message_nothing_is_known() -> None:
        one, other = Addresses(memory(MORE)), Addresses(memory(FEW))
        scattered = {0: np.arange(10), 1: 2 * np.arange(RANGES_AT_MOST) + (1 << 31), 2: np.arange(5)}
        one._own = scattered | {2: np.arange(6)}
        other._own = scattered
        other._ranges = {shard: [int(each) for host in told for each in (host, host)] for shard, told in scattered.items()}
        exchanged(one, other)
        fields = other.owed("a/0", 5000)
        assert fields and not fields["w"] and len(msgpack.packb(fields)) < HEADER_AT_MOST - 1000
        assert one.lacking("b/0", 0) == "" and "of so many ranges" in one.lacking("b/0", 1)
        assert "b/0 does not know 1 of" in one.lacking("b/0", 2), "a shard behind one that does not fit"

    def _nothing(peer: str, now: int) -> None: ...

    class _Pools(Changing):
        """Cores with a pool."""

        def _memory(self, name: str) -> State:
            state = memory(FEW)
            for shard, place in self.places.items():
                row = state.shards[shard]
                row["epoch"], row["side"] = 1, {place.primary: 0, place.backup: 1}.get(name, NO_SIDE)
                row["role"] = JOINING if name in place.home else ABSENT
            return state

        def have(self, name: str, *prefixes: str) -> None:
            have(self.states[name], *prefixes)
            self.cores[name].addresses.look()

    @pytest.fixture
    def three() -> _Pools:
        network = _Pools("a/0 b/0 c/0", {0: Place("a/0", "b/0")})
        network.run(400)
        assert network.told()["a/0"] == (ACTIVE, 1, 0)
        return network

    @pytest.mark.parametrize("target", ["b/0", "c/0"])
    def test_a_move_to_who_lacks_addresses_is_refused_until_it_has_them(three: _Pools, target: str) -> None:
        three.have("a/0", MORE)
        move = three.cores["a/0"].migrate(0, target, three.now, dry_run=True)
        assert move.over and "has not said yet which" in move.why
        three.run(120)
        for dry_run in (True, False):
            move = three.cores["a/0"].migrate(0, target, three.now, dry_run=dry_run)
            assert move.phase == migration.FAILED and f"{target} does not know 4 of its external addresses" in move.why
        assert 0 not in three.cores["a/0"].moves
        three.have(target, MORE)
        three.run(120)
        assert not three.cores["a/0"].migrate(0, target, three.now).over
        three.run(600)
        assert three.told()[target][0] == ACTIVE

    def test_who_knows_more_may_have_it(three: _Pools) -> None:
        three.have("c/0", MORE)
        three.run(120)
        assert not three.cores["a/0"].migrate(0, "c/0", three.now).over
        three.run(600)
        assert three.told()["c/0"][0] == ACTIVE

    @pytest.mark.parametrize("after", [1, 10, 30])
    def test_a_move_ends_where_it_began_when_the_shard_gets_addresses_that_its_target_lacks(three: _Pools, after: int) -> None:
        assert not three.cores["a/0"].migrate(0, "c/0", three.now).over
        three.run(after)
        three.have("a/0", MORE)
        three.run(600)
        move = three.cores["a/0"].moves[0]
        assert move.phase == migration.FAILED and str(IPv4Address("203.0.113.4")) in move.why
        assert three.told()["a/0"] == (ACTIVE, 1, 0) and three.told()["b/0"] == (PASSIVE, 1, 1)

    def test_the_backup_before_is_let_go_only_when_it_is_known_what_the_target_knows(
        three: _Pools, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that tells a digest, and nothing more."""
        monkeypatch.setitem(migration.PATIENCE, migration.SYNC, 500)
        assert not three.cores["a/0"].migrate(0, "c/0", three.now).over
        three.have("c/0", MORE)
        three.cores["c/0"].addresses.owed = _nothing  # type: ignore[method-assign]
        for _ in range(48):
            three.run(10)
            assert three.told()["b/0"] == (PASSIVE, 1, 1) and three.cores["a/0"].posts[0].backup == "b/0"
        assert three.cores["a/0"].moves[0].phase == migration.SYNC
        three.run(50)
        move = three.cores["a/0"].moves[0]
        told = "c/0 knows other external addresses than a/0, and did not say which within 0.5 s"
        assert (move.phase, move.why) == (migration.FAILED, told)

    @pytest.mark.parametrize(
        "side, waited_for", [(1, "c/0 knows other external"), (NO_SIDE, "b/0, its backup, did not let go")]
    )
    def test_a_release_that_takes_too_long_says_what_has_not_come(side: int, waited_for: str) -> None:
        """Who is given the old backup's side, and knows others than we since then."""
        move = Move(0, "a/0", "c/0", "a/0", "b/0", 0, 0, migration.RELEASE)
        post, seen = (
            Post(ACTIVE, 1, 0, 0, backup="c/0"),
            Seen(Told("c/0", PASSIVE, 1, side, evidence=ALIVE), True, True, 0, unsure=True),
        )
        assert migration.step(move, post, seen, migration.PATIENCE[migration.RELEASE])[0] == move
        failed, after = migration.step(move, post, seen, migration.PATIENCE[migration.RELEASE] + 1)
        assert failed.why.startswith(waited_for) and after.backup == "b/0"

    def test_two_moves_at_once_are_looked_into_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
        """Of two shards, to cores that know others than we and than each other."""
        network = _Pools("a/0 b/0 c/0", {shard: Place("a/0", "b/0") for shard in (0, 1)})
        network.run(400)
        for name, prefix in (("b/0", MORE), ("c/0", "203.0.113.0/31")):
            network.have(name, prefix)
        network.have("a/0", "203.0.113.0/31")
        network.have("c/0", FEW)
        network.run(120)
        looked = Counter[tuple[str, int]]()
        look = Addresses._look_for

        def counted(self: Addresses, peer: str, shard: int) -> str:
            if self is network.cores["a/0"].addresses:
                looked[peer, shard] += 1
            return look(self, peer, shard)

        monkeypatch.setattr(Addresses, "_look_for", counted)
        for shard, target in enumerate(("b/0", "c/0")):
            assert not network.cores["a/0"].migrate(shard, target, network.now).over
        network.run(600)
        assert [network.told(shard)[target][0] for shard, target in enumerate(("b/0", "c/0"))] == [ACTIVE, ACTIVE]
        assert max(looked.values(), default=0) <= 1

    def test_a_copy_that_may_not_come_home_is_told_and_comes_when_it_may(three: _Pools) -> None:
        """It is tried now and then, not at every turn."""
        core = three.cores["a/0"]
        three.have("a/0", MORE)
        three.run(120)
        tried = Counter[str]()
        migrate = core.migrate

        def counted(shard: int, target: str, now: int, **more: Any) -> Move:
            tried[target] += 1
            return migrate(shard, target, now, **more)

        core.migrate = counted  # type: ignore[method-assign, assignment]
        assert core.shut_out(0) == ""
        for name in three.names:
            three.follow(name, "a/0 b/0 c/0", Place("a/0", "c/0"))
        three.run(HOME_EACH // 2)
        assert tried == {"c/0": 1} and three.told()["b/0"] == (PASSIVE, 1, 1)
        assert "c/0 does not know 4 of" in core.shut_out(0)
        three.have("c/0", MORE)
        three.run(HOME_EACH // 2 + 600)
        assert tried == {"c/0": 2} and three.told()["c/0"] == (PASSIVE, 1, 1) and core.shut_out(0) == ""

    def test_who_stops_gives_what_it_has_all_the_same(three: _Pools) -> None:
        three.have("a/0", MORE)
        three.run(120)
        assert not three.cores["a/0"].migrate(0, "b/0", three.now, anyway=True).over
        three.run(600)
        assert three.told()["b/0"][0] == ACTIVE
