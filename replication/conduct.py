"""What a core does about its shards: hears what the others are, decides (`roles`, `migration`), and acts on it.

Acting is three things: the row of SHARD, which the packet path reads; whose rows are applied here and to whom ours are sent
(`exchange`); and telling the others. Everything is told again now and then (`Times.tell`), and at once when it changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from replication import migration, rises, roles
from replication.addresses import Addresses
from replication.migration import Move, Seen
from replication.protocol import ALIVE, Exchange, Heard
from replication.quiet import Quiet
from replication.roles import Facts, Post, Told
from replication.rows import in_doubt
from shards import apply, recovery, timers
from shards.state import (
    ABSENT,
    ACTIVE,
    CLASSES,
    DRAINING,
    JOINING,
    MAPPING_0,
    MAPPING_1,
    NO_SIDE,
    PASSIVE,
    PICKUP_ASIDE,
    SYNCING,
    State,
)

AGAIN_AFTER = 20  # ticks: who lives and could not be told is told again
LOOK_EACH = 50  # ticks between two decisions where nothing happens
SOON = 500  # ticks until such an attempt is made again that was refused at once
HOME_EACH = 5000  # ticks between two attempts to bring a copy to where a newer map wants it
ROWS_AT_ONCE = 1 << 14  # of those that are looked at in one turn
FORGOTTEN_AT_ONCE = 1 << 11  # of those that may end in one turn: an end takes a microsecond, another shard's packets wait
EPOCHS = 1 << 31  # a map's epochs are below, and so is whatever is believed: one more never leaves 32 bits

# Keys of a post on the wire, in the order of `_post_for`.
_SHORT = ("s", "r", "e", "d", "c", "w", "win", "b", "g", "y", "h", "i", "t")


class Place(NamedTuple):
    """Where the map wants a shard."""

    primary: str
    backup: str  # empty: none
    reserve: str = ""  # a core in another room, without a copy, that serves it when theirs is away; empty: none

    @property
    def home(self) -> tuple[str, ...]:
        """Who is to have it, and its copy."""
        return (self.primary, self.backup) if self.backup else (self.primary,)

    @property
    def others(self) -> bool:
        """Whether anybody but the primary may hand out its ports."""
        return bool(self.backup or self.reserve)


class Times(NamedTuple):
    """Ticks (ms)."""

    join_after: int = 3000
    resume_after: int = 300
    grace: int = 10_000
    quiet: int = 1000
    silent_room: str = roles.APART
    tell: int = 50  # until all is told again; a change is told at once


class Conductor:
    """All shards of one core. `peers`: row of PEER by name of core."""

    def __init__(
        self,
        state: State,
        exchange: Exchange,
        me: str,
        peers: Mapping[str, int],
        places: Mapping[int, Place],
        times: Times,
        now: int,
    ) -> None:
        self._state, self._exchange, self._me, self._times = state, exchange, me, times
        self._peers, self._places = dict(peers), dict(places)
        self._names = {row: name for name, row in self._peers.items()}
        self.posts = {shard: self._remembered(shard, now) for shard in places}
        self._told: dict[int, dict[str, Told]] = {shard: {} for shard in places}
        self._counts: dict[int, dict[str, tuple[int, int]]] = {shard: {} for shard in places}
        self._heard: set[str] = set()
        self._handed: dict[int, tuple[int, str]] = {}
        self._sent_all: set[int] = set()  # shards of which, since we have our side, all rows were sent to the backup
        self._giving: dict[int, str] = {}  # by shard: the winner that is given what we have made
        self._streams: dict[int, dict[str, bool]] = {shard: {} for shard in places}
        self._accepting: dict[int, tuple[str | None, int, bool]] = {}
        self._wanted = {shard: int(state.shards[shard]["wanted"]) for shard in places}
        self._forgetting: dict[int, tuple[int, int]] = {}
        self._idle_at: dict[int, tuple[int, int, int]] = {}  # shard: tick, class, row
        self._quiet: dict[int, Quiet] = {}
        self.moves: dict[int, Move] = {}
        self.taken_over = 0  # shards, ever
        self._homeless: dict[int, int] = {}  # shards whose place a newer map changed: tick of the next attempt to follow it
        self.mark: tuple[int, int] = (0, 0)  # version and digest of the map that we follow
        self.marks: dict[str, tuple[int, int]] = {}  # what the others say that they follow
        self.addresses = Addresses(state)
        self._last = self._last_told = now - times.tell
        self._untold: list[str] = []
        self._evidence = ""
        self._nothing = np.zeros(len(state.dirty), np.uint64)  # no row was seen: all end
        for shard in places:
            self._act(shard, Post(-1, 0, NO_SIDE, now), now)

    def _remembered(self, shard: int, now: int) -> Post:
        """What the memory says that we are: a core whose memory lives on has been away for a moment only."""
        row, place = self._state.shards[shard], self._places[shard]
        role, side, epoch = int(row["role"]), int(row["side"]), int(row["epoch"])
        backup = self._names.get(int(row["backup"]), "")
        if role == JOINING and row["sessions"] == 0 and row["mappings"] == 0:
            return Post(JOINING, epoch, side, now, cold=True, heir=self._me == place.backup)
        if role in (JOINING, ACTIVE, DRAINING):  # killed again while joining: the backup may have taken over all the same
            return Post(JOINING, epoch, side, now, backup=backup)
        if role in (SYNCING, PASSIVE):
            authority = self._names.get(int(row["authority"]), "")
            return Post(SYNCING, epoch, side, now, heir=role == PASSIVE, whole=role == PASSIVE, authority=authority)
        return Post(role, epoch, side, now)

    # --- a turn -----------------------------------------------------------------------------------------------------------

    def turn(self, now: int) -> bool:
        """Hear, decide, act, tell; whether there is more to do at once. Short where nothing has happened."""
        news = [self._hear(message) for message in self._exchange.heard()]
        evidence = self._look_at_peers(now)
        busy = self._work(now)
        wanted = any(int(self._state.shards[shard]["wanted"]) != count for shard, count in self._wanted.items())
        if any(news) or wanted or self.is_moving or evidence != self._evidence or now - self._last >= LOOK_EACH:
            self._evidence, self._last = evidence, now
            changed = [shard for shard in self.posts if self._decide(shard, now)]
            if changed or self._is_to_be_told(now):
                self._tell(now)
        return busy

    @property
    def is_moving(self) -> bool:
        """Whether a shard is being moved from here: then packets may wait for every turn."""
        return any(self._is_moving(shard) for shard in self.moves)

    @property
    def is_expecting(self) -> bool:
        """Whether somebody hands a shard over: what he says of it is to be heard soon."""
        return any(each.role == DRAINING for told in self._told.values() for each in told.values())

    def _is_moving(self, shard: int) -> bool:
        return shard in self.moves and not self.moves[shard].over

    def _look_at_peers(self, now: int) -> str:
        """What is known about every peer's being alive, where packets see it too."""
        told = []
        for name, row in self._peers.items():
            evidence = self._exchange.evidence(name, now)
            self._state.peers[row]["alive"] = evidence == ALIVE
            told.append(evidence)
        return " ".join(told)

    def _hear(self, message: Heard) -> bool:
        """Whether it is news."""
        peer, kind, fields = message
        if peer not in self._peers:  # it was, when it said so
            return False
        if kind == "posts":
            self._take_mark(peer, fields.get("v"))
            self.addresses.told_digest(peer, fields.get("x"))
            return self._take_posts(peer, fields.get("posts"))
        if kind == "addresses":
            self.addresses.told_ranges(peer, fields)
        return kind == "handover" and self._take_handover(peer, fields)

    def _take_mark(self, peer: str, mark: Any) -> None:
        match mark:
            case [int(version), int(digest)]:
                self.marks[peer] = version, digest

    def _take_posts(self, peer: str, posts: Any) -> bool:
        """What a peer is to each shard; of which it says nothing, it has nothing to do with."""
        told = {shard: Told(peer) for shard in self.posts}
        for post in posts if isinstance(posts, list) else []:
            found = _read(peer, post)
            if found and found[0] in told:
                told[found[0]] = found[1]
                self._counts[found[0]][peer] = _counted(post)
        news = peer not in self._heard or any(self._told[shard].get(peer) != each for shard, each in told.items())
        self._heard.add(peer)
        for shard, each in told.items():
            self._told[shard][peer] = each
        return news

    def _take_handover(self, peer: str, fields: Mapping[str, Any]) -> bool:
        match fields:
            case {"s": int(shard), "e": int(epoch), "b": str(successor)} if shard in self.posts and epoch < EPOCHS:
                if self.posts[shard].authority == peer and self._exchange.complete(shard, peer):
                    known = successor if successor in self._peers else ""  # its map may have more cores than ours
                    self._handed[shard] = (epoch, known)  # and every row that was said before it is here
                    return True
        return False

    def _others(self, shard: int, now: int) -> list[Told]:
        told = self._told[shard]
        found = [told.get(name) or self._by_map(shard, name) for name in self._peers]
        return [each._replace(evidence=self._exchange.evidence(each.name, now)) for each in found]

    def _by_map(self, shard: int, name: str) -> Told:
        """Who has said nothing yet may have begun, where we cannot hear it, with the side that the map gives it."""
        place = self._places[shard]
        return Told(name, side={place.primary: 0, place.backup: 1}.get(name, NO_SIDE))

    def _decide(self, shard: int, now: int) -> bool:
        before, others = self.posts[shard], self._others(shard, now)
        facts = self._facts(shard, before, now)
        post = roles.decide(before, others, facts)
        if facts.handed:
            self._handed.pop(shard)
        rises.note(self._state.shards[shard], rises.epoch_of_rise(before, post, others, facts.handed > 0), now)
        if post.role == ACTIVE and before.role in (ABSENT, SYNCING, PASSIVE) and not facts.handed:
            self.taken_over += 1
        if post.role == ACTIVE and facts.handed and post.backup == self._places[shard].reserve:
            self._homeless[shard] = now  # its room was away: the copy is to come home, too
        if not self._is_moving(shard):
            post = roles.look_for_backup(post, others, facts)
        post = self._move(shard, self._go_home(shard, post, now), others, now)
        self._wanted[shard] = int(self._state.shards[shard]["wanted"])
        self.posts[shard] = post
        if post != before:
            self._act(shard, before, now)
        self._arrange(shard, post, self._others(shard, now) if post != before else others)
        self._note_sent(shard, before, now)
        self._note_heir(shard)
        return post != before

    def _note_heir(self, shard: int) -> None:
        """Memory names whom we must ask when we come back: our backup, or the one before who thinks that it still is."""
        post, told = self.posts[shard], self._told[shard].values()
        before = next((each.name for each in told if each.heir and each.role != ACTIVE), post.backup)
        self._state.shards[shard]["backup"] = self._peers.get(before if post.role == ACTIVE else post.backup, 0)

    def _note_sent(self, shard: int, before: Post, now: int) -> None:
        """Nothing of this turn's changes is sent yet: what is now on its way is what was made before."""
        post = self.posts[shard]
        if (post.role, post.side, post.backup) != (before.role, before.side, before.backup):
            self._sent_all.discard(shard)
        elif post.role != ACTIVE or self._steps_aside(shard, now):
            return
        elif self._exchange.synced(shard, post.backup) and self._exchange.flushed(shard, post.backup):
            self._sent_all.add(shard)

    def _steps_aside(self, shard: int, now: int) -> bool:
        """Whether new connections take ports of the other side (see `ports.claim`), which is nobody else's to have meanwhile.

        As long as the grace lasts, though a copy may be whole long before: a connection that the dead owner had made, and that
        has not spoken since, has its port only because nobody hands it out. A backup inherits without a side of its own, too,
        if we die; if we fall silent it does not.
        """
        row = self._state.shards[shard]
        return bool(row["pickup"] == PICKUP_ASIDE) and timers.remaining(now, int(row["grace_until"])) > 0

    def _facts(self, shard: int, post: Post, now: int) -> Facts:
        place = self._places[shard]
        handed, successor = self._handed.get(shard, (0, ""))
        partner = place.backup if self._me == place.primary else place.primary
        return Facts(
            self._me, now, int(self._state.shards[shard]["wanted"]) != self._wanted[shard], self._me == place.primary,
            partner if self._me in place.home else "", place.home,
            self._me == place.reserve and shard not in self._forgetting, self._times.silent_room,
            place.reserve in ("", self._me) or place.reserve in self._heard,
            self._heard >= self._peers.keys(), handed, successor,
            self._is_quiet(shard, post, now),
            bool(post.winner) and self._exchange.synced(shard, post.winner),
            rises.lately(self._state.shards[shard], now),
            self._times.join_after, self._times.resume_after,
        )  # fmt: skip

    def _is_quiet(self, shard: int, post: Post, now: int) -> bool:
        """Whether no packet comes any more, and who has the shard now was told of those that came."""
        quiet = self._quiet.get(shard)
        return quiet is not None and quiet.for_long(now, self._times.quiet) and self._exchange.last_words(shard, post.taker)

    # --- another map ------------------------------------------------------------------------------------------------------

    def follow(self, peers: Mapping[str, int], places: Mapping[int, Place], now: int) -> None:
        """Go by a newer map, of the same shards. Nothing that is forwarded changes by that.

        Who has left is forgotten: to be called before its row of PEER is another's. A shard stays where it is; only its copy
        goes to a new place by itself, and only if this core has the authority by both: in fact, and by the map.
        """
        gone = self._peers.keys() - peers.keys()
        self._peers, self._names = dict(peers), {row: name for name, row in peers.items()}
        self._heard -= gone
        self.addresses.forget(gone)
        for shard in self.posts:
            self._forget(shard, gone, now)
            if places[shard] != self._places[shard] or not self.posts[shard].backup:
                self._homeless[shard] = now
        self.marks = {name: mark for name, mark in self.marks.items() if name not in gone}
        self._places = dict(places)

    def _forget(self, shard: int, gone: Collection[str], now: int) -> None:
        for name in gone:
            for known in (self._told[shard], self._counts[shard], self._streams[shard]):
                known.pop(name, None)
        if self._accepting.get(shard, (None,))[0] in gone:
            del self._accepting[shard]
        if self._handed.get(shard, (0, ""))[1] in gone:
            self._handed[shard] = self._handed[shard][0], ""
        before = post = self.posts[shard]
        move = self.moves.get(shard)
        if move and move.target in gone:
            self.moves[shard], post = migration.give_up(move, post, f"the map has {move.target} no more", now)
        elif move and move.before in gone:
            self.moves[shard] = move._replace(before="")
        self.posts[shard] = roles.without(post, gone, now)
        if self.posts[shard] != before:
            self._act(shard, before, now)

    def _go_home(self, shard: int, post: Post, now: int) -> Post:
        """Have the copy where a newer map wants it, if that is ours to see to; a post without a backup names it at once."""
        if shard not in self._homeless or now < self._homeless[shard] or post.role == DRAINING:
            return post
        place, move = self._places[shard], self.moves.get(shard)
        if post.role != ACTIVE or self._me not in place.home or (post.backup and self._me != place.primary):
            del self._homeless[shard]
            return post
        home = place.backup if self._me == place.primary else place.primary
        if post.backup == home or not home:
            del self._homeless[shard]
        elif not post.backup and not post.guest:
            del self._homeless[shard]
            return post._replace(backup=home)
        elif not move or move.over:
            self._homeless[shard] = now + HOME_EACH
            lets_go = self._exchange.evidence(post.backup, now) == ALIVE  # of its side; else it would not
            if lets_go and self.migrate(shard, home, now, copies=True).over and not self.lacks(shard, home):
                self._homeless[shard] = now + SOON  # sides are being swapped, say
        return post

    def shut_out(self, shard: int) -> str:
        """Why a copy of ours may not go where the map wants it, as a sentence; empty: it may, or it is there."""
        post, place = self.posts[shard], self._places[shard]
        is_to_move = shard in self._homeless and post.role == ACTIVE and self._me == place.primary
        return self.lacks(shard, place.backup) if is_to_move and post.backup not in ("", place.backup) else ""

    # --- what is known ----------------------------------------------------------------------------------------------------

    def active(self, shard: int) -> str:
        """The core that has the authority, as far as is known; empty: none."""
        post = self.posts[shard]
        if post.role == ACTIVE:
            return self._me
        top = roles.active_among(list(self._told[shard].values()))
        return top.name if top else post.authority

    def passive(self, shard: int) -> str:
        """The core that keeps a copy; empty: none."""
        post = self.posts[shard]
        if post.role == ACTIVE:
            return post.backup
        top = roles.active_among(list(self._told[shard].values()))
        return top.backup if top else ""

    def counts(self, shard: int) -> tuple[int, int]:
        """(sessions, mappings): of our own rows, or as the core with the authority told."""
        if self.posts[shard].role != ABSENT:
            row = self._state.shards[shard]
            return int(row["sessions"]), int(row["mappings"])
        return self._counts[shard].get(self.active(shard), (0, 0))

    def gave_up(self, shard: int, now: int) -> bool:
        """Whether there were too many promotions lately."""
        return rises.lately(self._state.shards[shard], now) >= roles.RISES_AT_MOST

    # --- moves ------------------------------------------------------------------------------------------------------------

    def migrate(
        self, shard: int, target: str, now: int, dry_run: bool = False, copies: bool = False, anyway: bool = False
    ) -> Move:
        """Begin to move a shard of ours, or its copy; a move that is refused is over at once, and says why.

        `anyway`: though the target does not know all of its external addresses, for we are about to end.
        """
        others = self._others(shard, now)
        told = next((told for told in [*others, Told(self._me)] if told.name == target), None)
        if told is None:
            known = ", ".join([self._me, *self._peers])
            return Move(shard, self._me, target, "", "", now, now, migration.FAILED, f"no such core; there are: {known}")
        moving = self.moves.get(shard)
        if moving and not moving.over:
            return moving._replace(phase=migration.FAILED, why=f"it is moving to {moving.target} already")
        move = migration.plan(shard, self._me, self.posts[shard], told, now, copies=copies, anyway=anyway)
        if not move.over and not anyway and (why := self.lacks(shard, target)):
            move = move._replace(phase=migration.FAILED, why=why, ended_at=now)
        if not dry_run and not move.over:
            self.moves[shard] = move
        return move

    def lacks(self, shard: int, target: str) -> str:
        """Why a core should not be given a shard of ours: external addresses that it does not know. Empty: it knows all."""
        unsure = f"{target} knows other external addresses than {self._me}, and has not said yet which"
        return unsure if self.addresses.is_unsure(target) else self.addresses.lacking(target, shard)

    def _move(self, shard: int, post: Post, others: list[Told], now: int) -> Post:
        move = self.moves.get(shard)
        if move is None or move.over:
            return post
        target = next(told for told in others if told.name == move.target)
        synced, flushed = self._exchange.synced(shard, target.name), self._exchange.flushed(shard, target.name)
        wide = self._exchange.is_wide(shard, target.name)
        sessions = int(self._state.shards[shard]["sessions"])
        lacking = self.addresses.lacking(target.name, shard) if move.minds else ""
        seen = Seen(target, synced and wide, flushed, sessions, lacking, self.addresses.is_unsure(target.name))
        after, post = migration.step(move, post, seen, now)
        if after.phase == migration.HANDOVER and move.phase == migration.PAUSE:
            self._exchange.tell(target.name, "handover", {"s": shard, "e": post.epoch + 1, "b": move.successor})
        self.moves[shard] = after
        return post

    # --- acting -----------------------------------------------------------------------------------------------------------

    def _act(self, shard: int, before: Post, now: int) -> None:
        """Let the packet path know; the authority is let go first and taken last."""
        row, post = self._state.shards[shard], self.posts[shard]
        if post.role != ACTIVE:
            row["creates"] = 0
        row["role"], row["epoch"], row["side"] = post.role, post.epoch, post.side
        row["authority"] = self._peers.get(post.authority, 0)
        if post.role == ACTIVE and before.role != ACTIVE:
            self._begin(shard, before, now)
        if post.role == DRAINING and post.authority and shard not in self._quiet:
            self._quiet[shard] = Quiet(self._state, shard, now)
        if post.role != DRAINING:
            self._quiet.pop(shard, None)
        if post.role == ABSENT and before.role != ABSENT:  # at the start, too: we may have been killed before it was all done
            self._forgetting[shard] = (0, 0)
        elif post.role != ABSENT:
            self._forgetting.pop(shard, None)

    def _begin(self, shard: int, before: Post, now: int) -> None:
        row, post = self._state.shards[shard], self.posts[shard]
        if post.taken:
            row["pickup"] = row["grace_until"] = 0  # who hands over has told of all that lives (see `publisher`)
        elif before.role != DRAINING or post.epoch != before.epoch:  # else it was not handed over, after all
            row["pickup"] = self._pickup(shard, before, now)
            row["grace_until"] = (now + self._times.grace) & 0xFFFFFFFF
        row["creates"] = 1
        with in_doubt(self._state):
            recovery.install_statics(self._state, now)
        self._idle_at[shard] = (now + self._times.grace, MAPPING_0, 0)

    def _pickup(self, shard: int, before: Post, now: int) -> int:
        """Whether connections may be picked up: of a dead owner, or still, where a handover has lapsed."""
        row, post = self._state.shards[shard], self.posts[shard]
        if before.role == DRAINING and not before.authority:
            return int(row["pickup"]) if timers.remaining(now, int(row["grace_until"])) > 0 else 0
        if post.pickup and all(told.side != 1 - post.side for told in self._others(shard, now)):
            return PICKUP_ASIDE
        return int(post.pickup)

    def _arrange(self, shard: int, post: Post, others: list[Told]) -> None:
        """Whose rows are applied, and who is sent ours."""
        accepting = _accepted(self._me, post, others)
        if accepting != self._accepting.get(shard):
            self._accepting[shard] = accepting
            self._exchange.accept(shard, *accepting)
        wanted = self._receivers(shard, post, others)
        streams = self._streams[shard]
        anew = post.winner != self._giving.get(shard, "")  # what it was sent before it won it may have refused
        self._giving[shard] = post.winner
        for name in [name for name in streams if name not in wanted or anew]:
            self._exchange.stream(shard, name, False)
            del streams[name]
        for name, (everything, snapshot) in wanted.items():
            if name not in streams or everything != streams[name]:
                self._exchange.stream(shard, name, True, everything, snapshot)
                streams[name] = everything

    def _receivers(self, shard: int, post: Post, others: list[Told]) -> dict[str, tuple[bool, bool]]:
        """(half-open connections too, beginning with a snapshot) by core."""
        move = self.moves.get(shard)
        target = move.target if move and not move.over else ""
        if post.winner:
            return {post.winner: (True, True)}
        if post.role == DRAINING:
            return {post.taker: (True, True)}
        if post.role != ACTIVE:
            return {}
        return {
            # Who has just handed over has all rows; not if we died since: then what was on its way to it is lost.
            told.name: (told.name == target, told.role != DRAINING or not post.taken)
            for told in others
            if told.name in (post.backup, post.guest) and told.wants and told.epoch == post.epoch
        }

    def _work(self, now: int) -> bool:
        """What takes more than a moment, in pieces: forgetting a shard that is another's, mappings that nobody uses."""
        for shard, (klass, at) in list(self._forgetting.items()):
            with in_doubt(self._state):
                following = apply.end_unseen(self._state, shard, klass, at, self._nothing, now, FORGOTTEN_AT_ONCE)
            if following >= 0:
                self._forgetting[shard] = (klass, int(following))
            elif klass + 1 < CLASSES:
                self._forgetting[shard] = (klass + 1, 0)
            else:
                del self._forgetting[shard]
            return True
        for shard, (due, klass, at) in list(self._idle_at.items()):
            if now >= due:
                self._end_idle(shard, due, klass, at, now)
                return True
        for quiet in self._quiet.values():
            quiet.look(now, ROWS_AT_ONCE)
        return False

    def _end_idle(self, shard: int, due: int, klass: int, at: int, now: int) -> None:
        following = -1
        if self.posts[shard].role == ACTIVE:
            with in_doubt(self._state):
                following = int(apply.end_idle(self._state, shard, klass, at, now, ROWS_AT_ONCE))
        if following >= 0:
            self._idle_at[shard] = (due, klass, following)
        elif klass == MAPPING_0:
            self._idle_at[shard] = (due, MAPPING_1, 0)
        else:
            del self._idle_at[shard]

    # --- telling ----------------------------------------------------------------------------------------------------------

    def _tell(self, now: int) -> None:
        self._last_told = now
        self._untold = [name for name in self._peers if not self._tell_one(name, now)]
        for name in self._peers:
            if owed := self.addresses.owed(name, now):
                self._exchange.tell(name, "addresses", owed)

    def _tell_one(self, name: str, now: int) -> bool:
        posts = [post for shard in self.posts if (post := self._post_for(shard, name, now))]
        return self._exchange.tell(name, "posts", {"posts": posts, "v": list(self.mark), "x": self.addresses.digest})

    def _is_to_be_told(self, now: int) -> bool:
        """Whether all is told again: it is time, or somebody who lives could not be told, since its link had just begun."""
        since = now - self._last_told
        missed = since >= AGAIN_AFTER and any(self._exchange.evidence(name, now) == ALIVE for name in self._untold)
        return missed or since >= self._times.tell

    def _post_for(self, shard: int, name: str, now: int) -> dict[str, Any] | None:
        """What a peer is told of a shard; nothing where this core has nothing to do with it."""
        post = self.posts[shard]
        if post.role == ABSENT and post.side == NO_SIDE:
            return None
        others = self._others(shard, now)
        to = next(told for told in others if told.name == name)
        heir = roles.heir(post, to, others) if post.role == ACTIVE else post.heir
        synced = post.role == ACTIVE and name in self._streams[shard] and self._exchange.synced(shard, name)
        values = (
            shard, post.role, post.epoch, post.side, post.cold, roles.wants(post), post.winner,
            post.backup if post.role == ACTIVE else "", post.guest,
            roles.yours(post, to, others, shard in self._sent_all), heir, synced, post.taken,
        )  # fmt: skip
        return dict(zip(_SHORT, values, strict=True), n=self.counts(shard))


def _read(peer: str, post: Any) -> tuple[int, Told] | None:
    """What a peer says of a shard; None where it says nonsense."""
    if not isinstance(post, dict) or not all(key in post for key in _SHORT):
        return None
    shard, role, epoch, side, cold, wants, winner, backup, guest, yours, heir, synced, taken = (post[key] for key in _SHORT)
    numbers, words = (shard, role, epoch, side, yours), (winner, backup, guest)
    if not all(type(number) is int for number in numbers) or not all(isinstance(word, str) for word in words):
        return None
    if not (ABSENT <= role <= DRAINING and 0 <= side <= NO_SIDE and 0 <= yours <= NO_SIDE and 0 <= epoch < EPOCHS):
        return None
    cold, wants, heir, synced, taken = map(bool, (cold, wants, heir, synced, taken))
    return shard, Told(peer, role, epoch, side, cold, wants, winner, backup, guest, yours, heir, synced, taken)


def _counted(post: Mapping[str, Any]) -> tuple[int, int]:
    match post.get("n"):
        case [int(sessions), int(mappings)]:
            return sessions, mappings
    return 0, 0


def _accepted(me: str, post: Post, others: Iterable[Told]) -> tuple[str | None, int, bool]:
    """(core whose rows are applied, its least epoch, whether ours stay beside them)."""
    if post.role == ACTIVE:
        givers = [told for told in others if told.winner == me or told.role == DRAINING]
        if not givers:
            return None, 0, False
        giver = min(givers, key=lambda told: told.evidence != ALIVE)  # the dead give nothing, and others wait for their turn
        return giver.name, post.epoch if giver.winner == me else post.epoch - 1, True
    if roles.wants(post) and post.authority:
        return post.authority, post.epoch, post.role == DRAINING
    return None, 0, False
