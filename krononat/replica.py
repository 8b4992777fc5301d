"""The chore by which a core keeps its shards alive elsewhere: exchange and conductor, put together and asked about.

It runs in the worker between two breaths, so nothing here may take long. What is asked of it, and what it answers, stands in
`krononat.client`; the supervisor has looked at the questions (`cluster_answers`).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from replication import migration
from replication.conduct import Conductor, Place, Times
from replication.exchange import Exchange
from replication.keys import Key
from replication.migration import Move
from replication.protocol import ALIVE, Peer, Settings
from replication.rows import StateSink, StateSource
from shards import shunt, sides
from shards.state import ABSENT, ACTIVE, PASSIVE, ROLES, SESSION6_0, SESSION6_1, SYNCING, State
from shards.verdict import HOLD_OVERFLOW, NO_AUTHORITY, SHUNT_FOREIGN, SHUNT_MALFORMED, SHUNT_REFUSED, SHUNT_TOO_BIG

ROWS_AT_ONCE = 100  # of an answer: a message ends at 200 KB, a row with alarms takes a kilobyte
LOST = (NO_AUTHORITY, HOLD_OVERFLOW, SHUNT_TOO_BIG, SHUNT_REFUSED, SHUNT_FOREIGN, SHUNT_MALFORMED)
SHUNT_MTU = 1500 + shunt.BYTES  # of a link that carries 1,500 bytes and the header of a shunt
FAULTS_SHOWN = 10  # with where they happened
CONDUCT_EACH = 10  # ticks between two turns of the conductor while nothing is heard and nothing moves
PREPARE_EACH = 1000  # ticks between two looks for the way to the other cores
SIDES_LATE = 5000  # ticks after which a swap of sides should be over

_SAME_ADDRESSES = "have both know the same prefixes (krononat config apply, or pool add, there), then this"
_AGAIN = "try again in a moment"

Answer = dict[str, Any]


class Replica:
    """Made when a worker takes over; `told` are its orders (`krononat.cluster.orders`)."""

    def __init__(self, state: State, told: Mapping[str, Any], now: int) -> None:
        self._state, self._me = state, told["me"]
        settings = Settings(told["dead_after"], told["threshold"], cpus=tuple(told["cpus"]), holds=told["holds"])
        public, secret = (text.encode() for text in told["key"])
        source, sink = StateSource(state, settings.threshold), StateSink(state, settings.holds)
        self._endpoint = told["endpoint"]
        self.exchange = Exchange(source, sink, Peer(self._me, told["endpoint"], public), Key(public, secret), settings)
        self._met = _peers(told)
        self._peers = {name: peer.number for name, peer in self._met.items()}
        self._places = _places(told)
        for peer in self._met.values():
            self.exchange.meet(peer, now)
        self.rest_at_most = settings.ping // 2  # ticks: or those who live were taken for dead
        times = Times(*told["times"])._replace(tell=settings.tell)
        self.conductor = Conductor(state, self.exchange, self._me, self._peers, self._places, times, now)
        self.conductor.mark = _mark(told)
        _address(state, told)
        self._numbers: dict[int, int] = {}  # shard: number of its last move
        self._lost: dict[int, tuple[int, int]] = {}  # shard: packets lost and shunted, before its last move
        self._verified: dict[int, str] = {}  # shard: the peer that its copy is compared with
        self._comparing: set[int] = set()  # shards whose comparison is not counted yet
        self._underway: set[int] = set()  # shards whose move is not counted yet
        self._moves, self._mismatch = {"done": 0, "failed": 0}, 0
        self._now = now
        self._prepared, self._conducted = now - PREPARE_EACH, now - CONDUCT_EACH
        self._more = False
        self.faults, self._fault = 0, ""

    def follow(self, told: Mapping[str, Any], now: int) -> None:
        """Go by the orders of a newer map."""
        self._guarded(lambda now: self._follow(told, now), now)

    def _follow(self, told: Mapping[str, Any], now: int) -> bool:
        """A core that is meant otherwise than before is another one: who left goes first, who came is met then."""
        newer, places = _peers(told), _places(told)
        staying = {name: peer.number for name, peer in newer.items() if self._met.get(name) == peer}
        gone = self._met.keys() - staying.keys()
        self.conductor.follow(staying, self._places, now)
        for name in gone:
            self.exchange.part(name)
        lay_sides(self._state, [shard for shard, place in places.items() if place.others and not self._places[shard].others])
        _address(self._state, told)
        for name in newer.keys() - staying.keys():
            self.exchange.meet(newer[name], now)
        self._met, self._places = newer, places
        self._peers = {name: peer.number for name, peer in newer.items()}
        self.conductor.follow(self._peers, places, now)
        self.conductor.mark = _mark(told)
        shunt.prepare(self._state, now)
        return True

    def enlarge(self, now: int) -> None:
        """Pools have other addresses: what copies lack because these were unknown here is asked for again."""
        self._guarded(self._catch_up, now)

    def _catch_up(self, now: int) -> bool:
        self.conductor.addresses.look()
        for shard, post in self.conductor.posts.items():
            if post.role in (SYNCING, PASSIVE) and post.authority and self.exchange.refused_of(shard):
                self.exchange.resync(shard, post.authority)
        return True

    def descriptors(self) -> list[int]:
        """To wait for while idle."""
        return self.exchange.descriptors()

    def due(self, now: int) -> int:
        """Ticks that may pass before the next turn, if nothing comes."""
        return self.exchange.due(now)

    @property
    def is_pressed(self) -> bool:
        """Whether packets may wait for the next turn: a shard is on its way, or somebody's death is to be made sure."""
        return self.conductor.is_moving or self.conductor.is_expecting or self.exchange.is_asking

    def turn(self, now: int, called: bool = False) -> bool:
        """One turn; whether there is more to do at once. Where nothing but packets has come, only if it is due: they wait."""
        if not (called or self._more or self.exchange.is_due(now) or self.conductor.is_moving):
            return False
        self._now = now
        if now - self._prepared >= PREPARE_EACH:
            self._prepared = now
            shunt.prepare(self._state, now)
        moving, conducts = self.conductor.is_moving, called or self._more
        self._more = self._guarded(self.exchange.turn, now)
        if moving or conducts or self.exchange.was_whole or now - self._conducted >= CONDUCT_EACH:
            self._conducted = now
            self._more |= self._guarded(self.conductor.turn, now)
        if moving:
            self._count_moves()
        return self._more

    def hand_over(self, now: int) -> None:
        """Give every shard to its backup, where that has a complete copy: packets will find their way there, not here."""
        for shard, post in self.conductor.posts.items():
            if post.role == ACTIVE and post.backup and self.exchange.synced(shard, post.backup):
                self.conductor.migrate(shard, post.backup, now, anyway=True)

    def _guarded(self, turn: Callable[[int], bool], now: int) -> bool:
        """A fault of ours here must not end the forwarding: it is told, counted, an alarm, and the next turn goes on."""
        try:
            return turn(now)
        except Exception as error:
            self._note(error)
            return False

    def _note(self, error: Exception) -> str:
        self.faults += 1
        self._fault = f"{type(error).__name__}: {error}"
        if self.faults <= FAULTS_SHOWN:
            traceback.print_exc()
        return self._fault

    # --- questions --------------------------------------------------------------------------------------------------------

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """Answer one of the questions of `cluster_answers.REQUESTS`."""
        answers = {
            "cores": self._cores, "shards": self._shards, "replication": self._replication, "migrate": self._migrate,
            "move": self._move, "verify": self._verify, "resync": self._resync, "tallies": self._tallies, "marks": self._map,
        }  # fmt: skip
        try:
            return {"ok": True, **answers[request["do"]](request)}
        except Refusal as refusal:
            return _refused(refusal)
        except Exception as error:
            return _refused(Refusal("this cannot be answered", self._note(error), "a fault of Krononat's: report it"))

    def _part(self, request: Mapping[str, Any], rows: list[Answer]) -> Answer:
        first = int(request.get("from") or 0)
        end = first + ROWS_AT_ONCE
        return {"me": self._me, "rows": rows[first:end], "more": end if end < len(rows) else None}

    def _cores(self, request: Mapping[str, Any]) -> Answer:
        actives = [self.conductor.active(shard) for shard in self._places]
        passives = [self.conductor.passive(shard) for shard in self._places]
        counts = [self.conductor.counts(shard)[0] for shard in self._places]
        rows = [
            {
                "core": name,
                "evidence": ALIVE if name == self._me else self.exchange.evidence(name, self._now),
                "endpoint": endpoint,
                "active": actives.count(name),
                "passive": passives.count(name),
                "sessions": sum(count for count, active in zip(counts, actives, strict=True) if active == name),
            }
            for name, endpoint in [(self._me, self._endpoint), *((each.name, each.endpoint) for each in self._met.values())]
        ]
        return self._part(request, rows)

    def _map(self, request: Mapping[str, Any]) -> Answer:
        """By which map the cores go, as far as is known: version and digest."""
        marks = {self._me: self.conductor.mark, **self.conductor.marks}
        rows = [{"core": name, "version": version, "digest": digest} for name, (version, digest) in marks.items()]
        return self._part(request, rows)

    def _shards(self, request: Mapping[str, Any]) -> Answer:
        return self._part(request, [self._shard(shard) for shard in self._places])

    def _shard(self, shard: int) -> Answer:
        post, row, place = self.conductor.posts[shard], self._state.shards[shard], self._places[shard]
        active, passive = self.conductor.active(shard), self.conductor.passive(shard)
        sessions, mappings = self.conductor.counts(shard)
        in_sync = None if post.role == ABSENT else post.role == PASSIVE  # None: those who have it know
        if active == self._me:
            in_sync = bool(passive) and self.exchange.synced(shard, passive)
        return {
            "shard": shard, "primary": place.primary, "backup": place.backup, "reserve": place.reserve, "active": active,
            "passive": passive, "role": ROLES[post.role], "side": post.side, "epoch": post.epoch, "in_sync": in_sync,
            "sessions": sessions, "mappings": mappings, "wanted": int(row["wanted"]), "shunted": int(row["shunted"]),
            "alarms": self.alarms(shard),
        }  # fmt: skip

    def alarms(self, shard: int) -> list[str]:
        """What an operator should know of a shard, in sentences."""
        post, active = self.conductor.posts[shard], self.conductor.active(shard)
        found = []
        if post.role == ACTIVE:
            if not post.backup:
                found.append(f"shard {shard} has no backup")
            elif not self.exchange.synced(shard, post.backup):
                evidence = self.exchange.evidence(post.backup, self._now)
                found.append(f"shard {shard} has no backup in sync: {post.backup} is {evidence}")
            if post.backup and not self.exchange.speaks_ipv6(post.backup) and self._has_ipv6(shard):
                found.append(f"shard {shard} would lose its sessions of IPv6: {post.backup} is of a version that knows none")
            if post.side != 0 and self._now - post.since > SIDES_LATE:
                found.append(f"shard {shard} hands out a fifth of its ports only: {post.backup} holds on to the rest")
            if why := self.conductor.shut_out(shard):
                found.append(f"the copy of shard {shard} stays at {post.backup}, though the map has it elsewhere: {why}")
            if post.backup.partition("/")[0] == self._me.partition("/")[0]:
                found.append(f"shard {shard} has its backup on the same server")
        elif post.role != ABSENT and not active:
            found.append(f"nobody has the authority over shard {shard}")
        elif post.role != ABSENT and (evidence := self.exchange.evidence(active, self._now)) != ALIVE:
            found.append(f"{active}, which has the authority over shard {shard}, is {evidence}")
        if refused := self.exchange.refused_of(shard):
            found.append(
                f"the copy of shard {shard} here lacks {refused:,} rows that it refused: do the configurations differ?"
            )
        mtu = int(self._state.peers[self._peers[post.backup]]["mtu"]) if post.role == ACTIVE and post.backup else 0
        if 0 < mtu < SHUNT_MTU:
            found.append(f"shard {shard} would lose long packets in a move: only {mtu} bytes reach {post.backup}")
        if self.faults:
            found.append(f"replication has failed {self.faults} times, this is a fault of Krononat's: {self._fault}")
        if self.conductor.gave_up(shard, self._now):
            found.append(f"shard {shard} killed one owner after another: nobody is promoted now")
        return found

    def _has_ipv6(self, shard: int) -> bool:
        """Whether there ever was a session of IPv6."""
        return bool(self._state.slabs[shard, SESSION6_0]["extents"] or self._state.slabs[shard, SESSION6_1]["extents"])

    def _replication(self, request: Mapping[str, Any]) -> Answer:
        status = self.exchange.status()
        rows = [self._link(stream, status) for stream in status["streams"]]
        copies = [shard for shard, post in self.conductor.posts.items() if post.role in (SYNCING, PASSIVE)]
        rows += [self._copy(shard, status) for shard in copies]
        idle = self._peers.keys() - {row["peer"] for row in rows}
        rows += [self._row(None, name, status, False, {}, 0, []) for name in sorted(idle)]
        return self._part(request, rows)

    def _link(self, stream: Mapping[str, Any], status: Mapping[str, Any]) -> Answer:
        shard = stream["shard"]
        given = stream["in_sync"], stream["lag"], stream["resyncs"], self.alarms(shard)
        return self._row(shard, stream["peer"], status, *given)

    def _copy(self, shard: int, status: Mapping[str, Any]) -> Answer:
        post = self.conductor.posts[shard]
        return self._row(shard, post.authority, status, post.role == PASSIVE, {}, 0, self.alarms(shard))

    def _row(
        self,
        shard: int | None,
        peer: str,
        status: Mapping[str, Any],
        in_sync: bool,
        lag: Mapping[str, Any],
        resyncs: int,
        alarms: list[str],
    ) -> Answer:
        alarms = alarms + self._link_alarms(peer)
        post = self.conductor.posts[shard] if shard is not None else None
        link = status["links"].get(peer, {})
        return {
            "shard": shard, "peer": peer, "role": ROLES[post.role] if post else "", "epoch": post.epoch if post else 0,
            "evidence": link.get("evidence", ""), "in_sync": in_sync, "lag_records": lag.get("records", 0),
            "lag_bytes": lag.get("bytes", 0), "lag_s": lag.get("seconds", 0.0), "gaps": link.get("gaps", 0),
            "resyncs": resyncs, "refused": status["refused"], "alarms": alarms,
        }  # fmt: skip

    def _link_alarms(self, peer: str) -> list[str]:
        if self.exchange.is_twofold(peer, self._now):
            return [f"two servers claim the name {peer}: one of them has another's configuration and key; stop it"]
        evidence, known = self.exchange.evidence(peer, self._now), self.conductor.marks.get(peer)
        if evidence != ALIVE:
            return [f"{peer} cannot be reached: it is {evidence}"]
        if known and known[0] == self.conductor.mark[0] and known != self.conductor.mark:
            return [f"{peer} goes by another map of version {known[0]}: raise the version of the right one"]
        if known and known[0] < self.conductor.mark[0]:
            return [f"{peer} goes by version {known[0]} of the map, {self._me} by {self.conductor.mark[0]}"]
        return []

    # --- moves ------------------------------------------------------------------------------------------------------------

    def _migrate(self, request: Mapping[str, Any]) -> Answer:
        shard, target, dry_run = self._known(request["shard"]), request["target"], bool(request.get("dry_run"))
        active = self.conductor.active(shard)
        if active != self._me:
            told = f"{active or 'nobody'} has the authority over it"
            raise Refusal(f"shard {shard} is not {self._me}'s to move", told, f"ask {active}" if active else "")
        move = self.conductor.migrate(shard, target, self._now, dry_run, bool(request.get("copies")))
        if move.phase == migration.FAILED:
            raise Refusal(f"shard {shard} cannot move to {target}", move.why, self._remedy(move))
        if not dry_run:
            self._numbers[shard] = max(self._numbers.values(), default=0) + 1
            self._lost[shard] = self._lost_now(shard)
            self._underway.add(shard)
        return {"plan": self._plan(move), "move": None if dry_run else self._numbers[shard]}

    def _remedy(self, move: Move) -> str:
        """What to do about a move that was refused, by why it was."""
        if move.why != self.conductor.lacks(move.shard, move.target):
            return "krononat server list"
        return _AGAIN if self.conductor.addresses.is_unsure(move.target) else _SAME_ADDRESSES

    def _plan(self, move: Move) -> Answer:
        sessions, mappings = self.conductor.counts(move.shard)
        kind = "backup" if move.copies else "swap" if move.target == move.before else "copy"
        warnings = [] if kind == "swap" else [f"{sessions + mappings:,} rows are copied first"]
        if move.copies and move.before:
            warnings.append(f"{move.before} keeps no copy any more")
        if move.before and kind == "copy":
            warnings.append(f"{move.before} keeps no copy any more: {move.successor} is the backup")
        mtu = int(self._state.peers[self._peers[move.target]]["mtu"])
        if 0 < mtu < SHUNT_MTU:
            warnings.append(f"only {mtu} bytes reach {move.target}: larger packets are lost while the routes change")
        return {
            "shard": move.shard, "source": move.source, "target": move.target, "kind": kind, "sessions": sessions,
            "mappings": mappings, "epoch": self.conductor.posts[move.shard].epoch + (not move.copies), "warnings": warnings,
        }  # fmt: skip

    def _move(self, request: Mapping[str, Any]) -> Answer:
        if not self._numbers:
            return {"move": None}
        shard = max(self._numbers, key=lambda shard: self._numbers[shard])
        move = self.conductor.moves[shard]
        lost, shunted = (now - before for now, before in zip(self._lost_now(shard), self._lost[shard], strict=True))
        lag = self.exchange.lag(shard, move.target) if not move.over else None
        end = move.ended_at or self._now
        pause = (move.taken_at or end) - move.paused_at if move.paused_at else 0
        return {
            "move": {
                "id": self._numbers[shard], "shard": shard, "source": move.source, "target": move.target,
                "stage": move.phase, "done": move.over, "succeeded": move.phase == migration.DONE, "why": move.why,
                "duration_ms": end - move.began, "lag_records": lag.records if lag else 0,
                "sessions": move.sessions or self.conductor.counts(shard)[0], "mappings": self.conductor.counts(shard)[1],
                "pause_ms": pause, "shunted": shunted, "lost": lost, "copies": move.copies,
            }
        }  # fmt: skip

    def _lost_now(self, shard: int) -> tuple[int, int]:
        lost = sum(int(self._state.counters[verdict, 0]) for verdict in LOST)
        return lost, int(self._state.shards[shard]["shunted"])

    # --- comparing, copying anew ------------------------------------------------------------------------------------------

    def _verify(self, request: Mapping[str, Any]) -> Answer:
        shard = self._known(request["shard"])
        if request.get("begin"):
            peer = self.conductor.passive(shard)
            if self.conductor.active(shard) != self._me or not peer:
                told = f"{self._me} is {ROLES[self.conductor.posts[shard].role]}, its backup is {peer or 'none'}"
                raise Refusal(f"shard {shard} cannot be compared here", told, "krononat shard list")
            try:
                self.exchange.verify(shard, peer)
            except ValueError as error:
                raise Refusal(f"shard {shard} cannot be compared now", str(error), "krononat replication status") from None
            self._verified[shard] = peer
            self._comparing.add(shard)
        found = self.exchange.compared(shard, self._verified.get(shard, ""))
        if found is None:
            raise Refusal(f"nobody compares shard {shard}", "it was not begun here", f"krononat shard verify {shard}")
        if found.done and shard in self._comparing:
            self._comparing.discard(shard)
            self._mismatch += len(found.differing)
        shown = {**found._asdict(), "differing": [list(row) for row in found.differing]}
        return {"verification": {"shard": shard, "peer": self._verified[shard], **shown}}

    def _resync(self, request: Mapping[str, Any]) -> Answer:
        shard = self._known(request["shard"])
        post = self.conductor.posts[shard]
        if post.role == ACTIVE and post.backup:
            self.exchange.resync(shard, post.backup)
            return {"resync": {"shard": shard, "source": self._me, "target": post.backup}}
        if post.role not in (SYNCING, PASSIVE) or not post.authority:
            raise Refusal(f"{self._me} has no copy of shard {shard}", f"it is {ROLES[post.role]}", "krononat shard list")
        self.exchange.resync(shard, post.authority)
        return {"resync": {"shard": shard, "source": post.authority, "target": self._me}}

    # --- tallies ----------------------------------------------------------------------------------------------------------

    def _count_moves(self) -> None:
        """Moves that have just come to their end."""
        for shard in [shard for shard in self._underway if self.conductor.moves[shard].over]:
            self._moves["done" if self.conductor.moves[shard].phase == migration.DONE else "failed"] += 1
            self._underway.discard(shard)

    def _tallies(self, request: Mapping[str, Any]) -> Answer:
        taken, mismatch = self.conductor.taken_over, self._mismatch
        return {"tallies": {"moves": self._moves, "failovers": taken, "mismatch": mismatch, "faults": self.faults}}

    def _known(self, shard: int) -> int:
        if shard not in self._places:
            raise Refusal(f"there is no shard {shard}", f"the map has {len(self._places)}", "krononat shard list")
        return shard


def _peers(told: Mapping[str, Any]) -> dict[str, Peer]:
    return {name: Peer(name, endpoint, key.encode(), row) for name, endpoint, key, row, _ in told["peers"]}


def _places(told: Mapping[str, Any]) -> dict[int, Place]:
    return {shard: Place(*names) for shard, *names in told["shards"]}


def _mark(told: Mapping[str, Any]) -> tuple[int, int]:
    version, digest = told["mark"]
    return version, digest


def _address(state: State, told: Mapping[str, Any]) -> None:
    """Where packets for each core are shunted to; rows of cores that are none any more have no address. Counters stay."""
    addresses = {row: address for _, _, _, row, address in told["peers"]}
    for row in range(1, len(state.peers)):
        peer = state.peers[row]
        if int(peer["address"]) != addresses.get(row, 0):
            peer["address"], peer["alive"], peer["mtu"] = addresses.get(row, 0), 0, 0


def lay_sides(state: State, shards: Sequence[int]) -> None:
    """Cut the pools of shards that have a backup from now on: what is handed out already stays."""
    for number in range(int(state.settings[0]["pools"])):
        if int(state.pools[number]["shard"]) in shards:
            sides.lay(state, number)


class Refusal(Exception):
    """What cannot be done: what, why, what next."""

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.why, self.remedy = what, why, remedy


def _refused(refusal: Refusal) -> Answer:
    return {"ok": False, "error": {"what": refusal.what, "why": refusal.why, "next": refusal.remedy, "status": 1}}
