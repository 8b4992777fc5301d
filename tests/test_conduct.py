"""Conductors of two and three cores with real memories over links that are obvious: who has the authority in the end."""

from __future__ import annotations

from collections import defaultdict

import pytest

from replication import migration, rises, roles
from replication.conduct import _SHORT, Conductor, Place, Times, _accepted
from replication.protocol import ALIVE, CLOSED, SILENT, Evidence, Fields, Heard, Lag
from replication.roles import Post, Told
from shards.state import ABSENT, ACTIVE, DRAINING, JOINING, NO_SIDE, PASSIVE, PICKUP_ASIDE, SYNCING, Sizes, State, new_state

SIZES = Sizes(**{**dict.fromkeys(Sizes._fields, 1), "extents": 3, "buckets": 4, "neighbours": 4, "peers": 3, "shards": 2})
SYNC = 20  # ticks that a snapshot takes
WIDEN = 5  # ticks until what was left out is sent
TIMES = Times(join_after=500, resume_after=100, grace=400, quiet=50)


class _Network:
    """Cores, the messages between them, who is cut off."""

    def __init__(self, names: str, places: dict[int, Place]) -> None:
        self.names, self.places, self.now = names.split(), places, 1000
        self.cut: set[frozenset[str]] = set()
        self.dead: set[str] = set()
        self.frozen: set[str] = set()
        self.hoarse = False  # nobody gets his last words out
        self.queues: dict[tuple[str, str], list[Heard]] = defaultdict(list)
        self.heard_at: dict[tuple[str, str], int] = {}
        self.states = {name: self._memory(name) for name in self.names}
        self.cores: dict[str, Conductor] = {}
        for name in self.names:
            self.start(name)

    def _memory(self, name: str) -> State:
        state = new_state(SIZES)
        for shard, place in self.places.items():
            row = state.shards[shard]
            row["epoch"], row["side"] = 1, {place.primary: 0, place.backup: 1}.get(name, NO_SIDE)
            row["role"] = JOINING if name in place.home else ABSENT
        return state

    def start(self, name: str, cold: bool = False) -> None:
        if cold:
            self.states[name] = self._memory(name)
        self.dead.discard(name)
        for pair in [pair for pair in self.queues if name in pair]:
            self.queues[pair].clear()
        peers = {other: row for row, other in enumerate((n for n in self.names if n != name), 1)}
        wire = _Wire(self, name)
        self.cores[name] = Conductor(self.states[name], wire, name, peers, self.places, TIMES, self.now)

    def connected(self, a: str, b: str) -> bool:
        return frozenset((a, b)) not in self.cut and not {a, b} & self.dead

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.now += 1
            for name in self.names:
                if name not in self.dead | self.frozen:
                    self.cores[name].turn(self.now)
            self.one_authority_a_side()

    def one_authority_a_side(self) -> None:
        """What must never be: two cores that create from the same side of a shard."""
        for shard in self.places:
            rows = [self.states[name].shards[shard] for name in self.names if name not in self.dead]
            sides = [int(row["side"]) for row in rows if row["creates"]]
            assert len(sides) == len(set(sides)) and NO_SIDE not in sides, self.told(shard)

    def want(self, name: str, shard: int = 0) -> None:
        """A packet that needs an authority has come to this core."""
        row = self.states[name].shards[shard]
        if not row["creates"]:
            row["wanted"] += 1

    def told(self, shard: int = 0) -> dict[str, tuple[int, int, int]]:
        posts = {name: self.cores[name].posts[shard] for name in self.names}
        return {name: (post.role, post.epoch, post.side) for name, post in posts.items()}


class _Wire:
    """Links of one core."""

    def __init__(self, network: _Network, me: str) -> None:
        self.network, self.me = network, me
        self.streams: dict[tuple[int, str], int] = {}
        self.wide: dict[tuple[int, str], int] = {}  # since when everything is sent

    def turn(self, now: int) -> bool:
        return False

    def tell(self, peer: str, kind: str, fields: Fields) -> bool:
        if self.network.connected(self.me, peer):
            self.network.queues[self.me, peer].append(Heard(self.me, kind, fields))
            return True
        return False

    def heard(self) -> list[Heard]:
        found = []
        for peer in self.network.names:
            queue = self.network.queues[peer, self.me]
            if queue and self.network.connected(peer, self.me):
                self.network.heard_at[peer, self.me] = self.network.now
                found += queue
            queue.clear()
        return found

    def evidence(self, peer: str, now: int) -> Evidence:
        if peer in self.network.dead and frozenset((self.me, peer)) not in self.network.cut:
            return CLOSED
        return ALIVE if now - self.network.heard_at.get((peer, self.me), -(10**9)) <= 150 else SILENT

    def stream(self, shard: int, peer: str, on: bool, everything: bool = False, snapshot: bool = True) -> None:
        if on and everything:
            self.wide.setdefault((shard, peer), self.network.now)
        else:
            self.wide.pop((shard, peer), None)
        if on:
            self.streams.setdefault((shard, peer), self.network.now if snapshot else 0)
        else:
            self.streams.pop((shard, peer), None)

    def accept(self, shard: int, peer: str | None, epoch: int = 0, union: bool = False) -> None: ...

    def synced(self, shard: int, peer: str) -> bool:
        began = self.streams.get((shard, peer))
        return began is not None and self.network.now - began >= SYNC and self.network.connected(self.me, peer)

    def is_wide(self, shard: int, peer: str) -> bool:
        since = self.wide.get((shard, peer))
        return since is not None and self.network.now - since >= WIDEN

    def last_words(self, shard: int, peer: str) -> bool:
        return not self.network.hoarse

    def complete(self, shard: int, peer: str) -> bool:
        return True

    def flushed(self, shard: int, peer: str) -> bool:
        return self.synced(shard, peer)

    def lag(self, shard: int, peer: str) -> Lag:
        return Lag(0, 0, 0.0)

    def resync(self, shard: int, peer: str) -> None: ...


@pytest.fixture
def pair() -> _Network:
    network = _Network("a/0 b/0", {0: Place("a/0", "b/0")})
    network.run(400)
    return network


def test_the_map_is_how_it_begins(pair: _Network) -> None:
    assert pair.told() == {"a/0": (ACTIVE, 1, 0), "b/0": (PASSIVE, 1, 1)}
    assert pair.states["a/0"].shards[0]["creates"] == 1 and pair.states["b/0"].shards[0]["creates"] == 0
    assert pair.states["b/0"].shards[0]["authority"] == 1 and pair.states["b/0"].peers[1]["alive"] == 1


def test_a_primary_whose_backup_never_comes_begins_alone() -> None:
    network = _Network("a/0 b/0", {0: Place("a/0", "b/0")})
    network.dead.add("b/0")
    network.run(400)
    assert network.told()["a/0"][0] == JOINING
    network.run(200)
    assert network.told()["a/0"] == (ACTIVE, 1, 0)


def test_nobody_is_promoted_without_packets(pair: _Network) -> None:
    pair.dead.add("a/0")
    pair.run(1000)
    assert pair.told()["b/0"] == (PASSIVE, 1, 1)


def test_a_dead_owner_is_followed_by_its_heir_and_comes_back_as_its_backup(pair: _Network) -> None:
    pair.dead.add("a/0")
    pair.want("b/0")
    pair.run(20)
    assert pair.told()["b/0"] == (ACTIVE, 2, 0) and pair.states["b/0"].shards[0]["pickup"] == PICKUP_ASIDE
    pair.start("a/0")
    pair.run(5)
    assert pair.states["a/0"].shards[0]["creates"] == 0
    pair.run(600)
    assert pair.told() == {"a/0": (PASSIVE, 2, 1), "b/0": (ACTIVE, 2, 0)}


def test_the_other_side_is_nobody_elses_until_the_grace_is_over(pair: _Network) -> None:
    """New connections take its ports meanwhile: the dead owner's are for those that have not spoken up since."""
    pair.dead.add("a/0")
    pair.want("b/0")
    pair.run(20)
    pair.start("a/0")
    pair.run(TIMES.grace - 100)
    assert pair.told() == {"a/0": (PASSIVE, 2, NO_SIDE), "b/0": (ACTIVE, 2, 0)}, "its copy is whole, it has no side yet"
    assert pair.states["b/0"].shards[0]["pickup"] == PICKUP_ASIDE
    pair.run(300)
    assert pair.told() == {"a/0": (PASSIVE, 2, 1), "b/0": (ACTIVE, 2, 0)}


def test_who_has_no_side_yet_takes_over_from_one_who_dies_too(pair: _Network) -> None:
    pair.dead.add("a/0")
    pair.want("b/0")
    pair.run(20)
    pair.start("a/0")
    pair.run(TIMES.grace - 100)
    pair.dead.add("b/0")
    pair.want("a/0")
    pair.run(20)
    assert pair.told()["a/0"] == (ACTIVE, 3, 0)


def test_who_was_away_for_a_moment_goes_on(pair: _Network) -> None:
    pair.dead.add("a/0")
    pair.run(50)
    pair.start("a/0")
    pair.run(90)
    assert pair.told()["a/0"] == (ACTIVE, 1, 0)
    pair.run(300)
    assert pair.told() == {"a/0": (ACTIVE, 1, 0), "b/0": (PASSIVE, 1, 1)}


def test_who_comes_back_with_nothing_does_not_make_the_copy_worthless(pair: _Network) -> None:
    pair.dead.add("a/0")
    pair.run(50)
    pair.start("a/0", cold=True)
    pair.run(600)
    assert pair.told() == {"a/0": (PASSIVE, 2, 1), "b/0": (ACTIVE, 2, 0)}


def test_a_partition_has_two_owners_with_two_sides_and_ends_with_one(pair: _Network) -> None:
    pair.cut.add(frozenset(("a/0", "b/0")))
    pair.run(200)
    pair.want("b/0")
    pair.run(50)
    assert pair.told() == {"a/0": (ACTIVE, 1, 0), "b/0": (ACTIVE, 2, 1)}
    pair.cut.clear()
    pair.run(5)
    assert pair.cores["a/0"].posts[0].winner == "b/0", "it gives what it has made"
    pair.run(600)
    assert pair.told() == {"a/0": (PASSIVE, 2, 1), "b/0": (ACTIVE, 2, 0)}


def test_a_frozen_owner_finds_another_one(pair: _Network) -> None:
    pair.frozen.add("a/0")
    pair.run(200)
    pair.want("b/0")
    pair.run(20)
    assert pair.told()["b/0"] == (ACTIVE, 2, 1)
    pair.frozen.clear()
    pair.run(600)
    assert pair.told() == {"a/0": (PASSIVE, 2, 1), "b/0": (ACTIVE, 2, 0)}


def test_a_shard_moves_to_its_backup_and_back(pair: _Network) -> None:
    for number, (source, target) in enumerate((("a/0", "b/0"), ("b/0", "a/0")) * 3):
        assert not pair.cores[source].migrate(0, target, pair.now).over
        pair.run(600)
        assert pair.told() == {source: (PASSIVE, 2 + number, 1), target: (ACTIVE, 2 + number, 0)}
        move = pair.cores[source].moves[0]
        assert move.phase == migration.DONE and move.taken_at - move.paused_at <= 5


def test_a_handover_is_no_takeover_sessions_that_are_due_end_at_once(pair: _Network) -> None:
    """With a grace after each, nothing would ever end where shards move more often than it is over."""
    pair.states["b/0"].shards[0]["grace_until"] = pair.now + 5
    pair.cores["a/0"].migrate(0, "b/0", pair.now)
    pair.run(600)
    assert pair.told()["b/0"] == (ACTIVE, 2, 0)
    assert pair.states["b/0"].shards[0]["grace_until"] == pair.states["b/0"].shards[0]["pickup"] == 0


def test_who_hands_over_has_told_of_all_that_live_before_it_retires(pair: _Network) -> None:
    pair.hoarse = True
    pair.cores["a/0"].migrate(0, "b/0", pair.now)
    pair.run(600)
    assert pair.told() == {"a/0": (DRAINING, 2, 1), "b/0": (ACTIVE, 2, 0)}
    pair.hoarse = False
    pair.run(5)
    assert pair.told()["a/0"][0] == PASSIVE


@pytest.mark.parametrize("grace", [0, 300])
@pytest.mark.parametrize("cut_after", [0, 1])  # before it is handed over, and after
def test_a_handover_in_vain_leaves_the_grace_as_it_was(grace: int, cut_after: int, pair: _Network) -> None:
    """As of an owner that took over from a dead one. Where the other may have had it, nothing ends soon."""
    pair.cores["a/0"].posts[0] = pair.cores["a/0"].posts[0]._replace(pickup=True)
    row = pair.states["a/0"].shards[0]
    until = (pair.now + 1000) * (grace > 0)
    row["pickup"], row["grace_until"] = PICKUP_ASIDE * (grace > 0), until
    pair.cores["a/0"].migrate(0, "b/0", pair.now)
    while pair.told()["a/0"][0] != DRAINING:
        pair.run(1)
    pair.run(cut_after)
    pair.cut.add(frozenset(("a/0", "b/0")))
    pair.run(320)
    assert pair.told()["a/0"][:2] == (ACTIVE, 3 if cut_after else 1)
    assert row["pickup"] == PICKUP_ASIDE * (grace > 0)
    assert row["grace_until"] == until if not cut_after else row["grace_until"] > pair.now


@pytest.mark.parametrize("after", range(0, 120, 3))
@pytest.mark.parametrize("harm", ["cut", "source", "target"])
def test_a_move_that_is_interrupted_ends_with_one_owner(after: int, harm: str, pair: _Network) -> None:
    pair.cores["a/0"].migrate(0, "b/0", pair.now)
    pair.run(after)
    if harm == "cut":
        pair.cut.add(frozenset(("a/0", "b/0")))
    else:
        pair.dead.add({"source": "a/0", "target": "b/0"}[harm])
    for _ in range(50):
        for name in ("a/0", "b/0"):
            if name not in pair.dead:
                pair.want(name)
        pair.run(10)
    pair.cut.clear()
    for name in list(pair.dead):
        pair.start(name)
    pair.run(1500)
    roles = sorted((told[0], told[2]) for told in pair.told().values())
    assert roles == [(PASSIVE, 1), (ACTIVE, 0)], (after, harm, pair.told())
    assert len({told[1] for told in pair.told().values()}) == 1


def test_a_shard_moves_to_a_third_core() -> None:
    network = _Network("a/0 b/0 c/0", {0: Place("a/0", "b/0"), 1: Place("b/0", "c/0")})
    network.run(700)
    assert network.told() == {"a/0": (ACTIVE, 1, 0), "b/0": (PASSIVE, 1, 1), "c/0": (ABSENT, 1, NO_SIDE)}
    network.cores["a/0"].migrate(0, "c/0", network.now)
    network.run(2000)
    assert network.told() == {"a/0": (PASSIVE, 2, 1), "b/0": (ABSENT, 2, NO_SIDE), "c/0": (ACTIVE, 2, 0)}
    assert network.cores["a/0"].moves[0].phase == migration.DONE
    assert network.told(1) == {"a/0": (ABSENT, 1, NO_SIDE), "b/0": (ACTIVE, 1, 0), "c/0": (PASSIVE, 1, 1)}


def test_moves_that_cannot_be_are_refused(pair: _Network) -> None:
    for core, target, why in (
        ("a/0", "x/9", "no such core; there are: a/0, b/0"),
        ("a/0", "a/0", "it is there already"),
        ("b/0", "a/0", "b/0 has not the authority over it; a/0 has"),
    ):
        move = pair.cores[core].migrate(0, target, pair.now)
        assert move.over and move.why == why and not pair.cores[core].moves
    pair.dead.add("b/0")
    assert pair.cores["a/0"].migrate(0, "b/0", pair.now).why == "b/0 is closed"


def test_what_kills_its_owners_is_not_handed_on_for_ever(pair: _Network) -> None:
    """Each core that takes the shard dies of it; after three times within half a minute nobody takes it."""
    taken = 0
    owner, other = "a/0", "b/0"
    for _ in range(6):
        pair.dead.add(owner)
        pair.want(other)
        pair.run(30)
        if pair.told()[other][0] != ACTIVE:
            break
        taken += 1
        pair.start(owner)
        pair.run(400)
        owner, other = other, owner
    assert 3 <= taken <= 6
    assert SYNCING not in [told[0] for told in pair.told().values()]


def test_nonsense_of_a_peer_changes_nothing(pair: _Network) -> None:
    before = pair.told()
    for fields in (
        {},
        {"posts": [1, {}, {"s": 0}]},
        {"posts": [dict.fromkeys(("s", "r", "e", "d", "c", "w", "win", "b", "g", "y", "h", "i"), -1)]},
    ):
        pair.queues["b/0", "a/0"].append(Heard("b/0", "posts", fields))
        pair.queues["b/0", "a/0"].append(Heard("b/0", "handover", fields))
        pair.run(3)
    pair.run(100)
    assert pair.told() == before


def test_epochs_and_names_that_cannot_be_are_not_taken(pair: _Network) -> None:
    """One more than what is believed must fit its row; and an alarm looks the backup up among the cores that are known."""
    before = pair.told()
    post = dict(zip(_SHORT, (0, ACTIVE, 2**32 - 1, 1, False, False, "", "", "", 2, False, False, False), strict=True))
    for kind, fields in (("posts", {"posts": [post]}), ("handover", {"s": 0, "e": 2**40, "b": "a/0"})):
        for one, other in (("a/0", "b/0"), ("b/0", "a/0")):
            pair.queues[one, other].append(Heard(one, kind, fields))
            pair.run(3)
    pair.run(100)
    assert pair.told() == before
    pair.queues["a/0", "b/0"].append(Heard("a/0", "handover", {"s": 0, "e": 2, "b": "z/9"}))
    pair.cores["b/0"].turn(pair.now)
    assert pair.cores["b/0"].posts[0].role == ACTIVE and pair.cores["b/0"].posts[0].backup == "a/0"


def test_who_is_killed_twice_still_waits_for_its_backup(pair: _Network) -> None:
    """The first of two lives was too short to hear who has the shard now."""
    pair.states["a/0"].shards[0]["sessions"] = 5
    pair.dead.add("a/0")
    pair.want("b/0")
    pair.run(5)
    assert pair.told()["b/0"][::2] == (ACTIVE, 0)
    for _ in range(3):
        pair.start("a/0")
        pair.run(1)
        assert not pair.states["a/0"].shards[0]["creates"]
    pair.run(400)
    assert pair.told()["a/0"][0] == PASSIVE


def test_what_was_being_forgotten_is_forgotten_by_the_next_life(pair: _Network) -> None:
    state = pair.states["b/0"]
    state.shards[0]["role"] = ABSENT
    assert Conductor(state, _Wire(pair, "b/0"), "b/0", {"a/0": 1}, pair.places, TIMES, pair.now)._forgetting == {0: (0, 0)}


def test_half_open_connections_are_sent_for_a_move_only(pair: _Network) -> None:
    owner = pair.cores["a/0"]
    assert owner.migrate(0, "b/0", pair.now).why == ""
    pair.run(2)
    assert owner._streams[0] == {"b/0": True}
    pair.cut.add(frozenset(("a/0", "b/0")))
    pair.run(200)
    assert owner.moves[0].phase == migration.FAILED
    pair.cut.clear()
    pair.run(400)
    assert owner._streams[0] == {"b/0": False}


def test_a_dead_giver_does_not_keep_others_waiting() -> None:
    others = [Told("b/0", SYNCING, 3, winner="a/0", evidence=CLOSED), Told("c/0", SYNCING, 3, winner="a/0")]
    assert _accepted("a/0", Post(ACTIVE, 3, 1, 0), others) == ("c/0", 3, True)
    assert _accepted("a/0", Post(ACTIVE, 3, 1, 0), others[:1]) == ("b/0", 3, True)


# --- what kills one owner after another -----------------------------------------------------------------------------------


def _kill_in_turn(network: _Network, kills: int) -> list[str]:
    """Who has the authority after each death of its owner: packets come all the time, and the dead come back a moment later."""
    found = []
    for _ in range(kills):
        (owner,) = (name for name in network.names if network.states[name].shards[0]["creates"])
        network.dead.add(owner)
        for _ in range(20):
            for name in network.names:
                network.want(name)
            network.run(20)
        found += [name for name in network.names if name not in network.dead and network.states[name].shards[0]["creates"]]
        network.start(owner)
        network.run(400)
    return found


def test_a_shard_that_kills_one_owner_after_another_stays_with_the_last(pair: _Network) -> None:
    assert _kill_in_turn(pair, 3) == ["b/0", "a/0", "b/0"]
    assert _kill_in_turn(pair, 3) == [], "nobody else is promoted any more"
    assert all(pair.cores[name].gave_up(0, pair.now) for name in pair.names)
    assert pair.told()["b/0"][0] == ACTIVE, "the last owner goes on each time that it is back"
    pair.run(roles.RISES_WITHIN)
    assert _kill_in_turn(pair, 1) == ["a/0"], "later deaths have other reasons"


def test_promotions_are_counted_once_and_outlive_a_worker(pair: _Network) -> None:
    pair.dead.add("a/0")
    pair.want("b/0")
    pair.run(100)
    pair.start("a/0")
    pair.run(500)
    for name in pair.names:
        row = pair.states[name].shards[0]
        assert rises.lately(row, pair.now) == 1 and row["risen_epoch"] == 2, name
    pair.start("b/0")
    pair.run(300)
    assert rises.lately(pair.states["b/0"].shards[0], pair.now) == 1


def test_there_is_room_for_as_many_as_are_counted(pair: _Network) -> None:
    assert len(pair.states["a/0"].shards[0]["risen_at"]) == roles.RISES_AT_MOST


def test_a_handover_is_no_promotion(pair: _Network) -> None:
    pair.cores["a/0"].migrate(0, "b/0", pair.now)
    pair.run(600)
    assert pair.told()["b/0"][0] == ACTIVE and pair.told()["b/0"][1] == 2
    assert [rises.lately(pair.states[name].shards[0], pair.now) for name in pair.names] == [0, 0]
