"""One core of the simulation: the real `Conductor`, woken from a value, given one input, and put to sleep again.

What it does depends on its value and its ways out alone, so each case is computed once. The exchange is replaced by what it
promises: within a life of a link every message arrives, once and in order; a copy begins with `begin`, is whole with `end`, and
begins anew with every life.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np

from replication import conduct, migration, roles
from replication.conduct import Conductor, Times
from replication.migration import Move
from replication.protocol import ALIVE, SILENT, Evidence, Heard, Lag
from replication.roles import Post, Told
from shards.state import ABSENT, ACTIVE, DRAINING, JOINING, NO_SIDE, PASSIVE, PICKUP_ASIDE, SYNCING

NAMES = ("a", "b", "c")
PLACE = conduct.Place("a", "b")
ROOMS = conduct.Place("a", "b", "c")


class Map(NamedTuple):
    """What cores there are, and where the shard is meant to be."""

    cores: tuple[str, ...]
    place: conduct.Place


MAPS = {  # by how many cores a world has and what the newer map brings: the older one, the newer one
    (2, ""): (Map(NAMES[:2], PLACE), Map(NAMES[:2], conduct.Place("b", "a"))),
    (3, ""): (Map(NAMES, PLACE), Map(NAMES, conduct.Place("a", "c"))),
    (3, "join"): (Map(NAMES[:2], PLACE), Map(NAMES, PLACE)),
    (3, "leave"): (Map(NAMES, PLACE), Map(NAMES[:2], PLACE)),
    (3, "rooms"): (Map(NAMES, ROOMS), Map(NAMES, ROOMS)),  # nothing changes: "c" is in another room
}
NOW = 1 << 20
AGES = (300, 3000, 6000)  # limits that `roles` asks about
PORTS = 2  # of each side

Row = tuple[int, int]  # external port, internal endpoint
UP, DEAD, FROZEN = "up", "dead", "frozen"
WAITING, SENT, SYNCED = "waiting", "sent", "synced"


class Copy(NamedTuple):
    """What a core takes from another: `replication.subscriber`."""

    peer: str
    epoch: int
    union: bool
    series: int = 0
    installed: int = 0


class Stream(NamedTuple):
    """What a core sends to another: `replication.publisher`."""

    phase: str
    series: int
    everything: bool


class Way(NamedTuple):
    """The way from a core to another one, without what is on it."""

    open: bool = False
    stream: Stream | None = None
    said: Any = None  # posts that were told last in this life
    series: int = 0  # of the last copy


class Node(NamedTuple):
    """A core. Ticks are ages."""

    life: str
    post: Post
    told: tuple[tuple[str, Told], ...] = ()
    heard: frozenset[str] = frozenset()
    streams: tuple[tuple[str, bool], ...] = ()
    accepting: tuple[str | None, int, bool] | None = None
    move: Move | None = None
    rises: tuple[int, int] = (0, 0)  # in memory: how many, epoch of the last
    copy: Copy | None = None
    seen: frozenset[Row] | None = None  # of a copy that is not whole yet
    evidence: tuple[Evidence, ...] = ()
    rows: frozenset[Row] = frozenset()
    dirty: frozenset[Row] = frozenset()
    sent_all: bool = False
    backup: int = 0  # as memory has it: row of PEER
    pickup: int = 0
    pending: bool = False  # it heard something, and has not decided yet
    map: int = 0  # which of both it follows
    homeless: bool = False  # its copy is not yet where the newer map wants it
    grace: bool = False  # it took over from one who died, and left that one's ports alone at first; the time for it is not over


class _Names:
    """Values by number: comparing and hashing a world costs nothing then."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        """Number of a value."""
        found = self._numbers.get(value)
        if found is None:
            found = self._numbers[value] = len(self.values)
            self.values.append(value)
        return found


# --- one core ---------------------------------------------------------------------------------------------------------------


class _Quiet:
    """Stands for `replication.quiet.Quiet`."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def for_long(self, now: int, ticks: int) -> bool:
        return self._quiet


class _Wire:
    """Stands for the exchange of one core: `ways` and `node` are what it knows, `sent` what it says."""

    def __init__(self, names: tuple[str, ...], me: str) -> None:
        self.names, self.me = names, me
        self.peers = [name for name in names if name != me]
        self.ways: dict[str, Way] = {}
        self.evidences: dict[str, Evidence] = {}
        self.copy: Copy | None = None
        self.seen: frozenset[Row] | None = None
        self.rows: frozenset[Row] = frozenset()
        self.dirty: frozenset[Row] = frozenset()
        self.sent: list[tuple[str, Any]] = []
        self.epoch: Callable[[], int] = lambda: 0

    # What the conductor asks for.

    def evidence(self, peer: str, now: int) -> Evidence:
        return self.evidences[peer]

    def synced(self, shard: int, peer: str) -> bool:
        way = self.ways.get(peer, Way())
        return way.open and way.stream is not None and way.stream.phase == SYNCED

    def flushed(self, shard: int, peer: str) -> bool:
        way = self.ways.get(peer, Way())
        return way.open and way.stream is not None and way.stream.phase != WAITING and not self.dirty

    def is_wide(self, shard: int, peer: str) -> bool:
        way = self.ways.get(peer, Way())
        return way.stream is not None and way.stream.everything

    def last_words(self, shard: int, peer: str) -> bool:
        return True

    def complete(self, shard: int, peer: str) -> bool:
        copy = self.copy
        return copy is not None and copy.peer == peer and bool(copy.installed) and copy.installed == copy.series

    def lag(self, shard: int, peer: str) -> Lag:
        return Lag(0, 0, 0.0)

    def tell(self, peer: str, kind: str, fields: dict[str, Any]) -> bool:
        way = self.ways[peer]
        if not way.open:
            return False
        told = (kind, tuple(tuple(post.items()) for post in fields["posts"]) if kind == "posts" else tuple(fields.items()))
        if kind == "posts":
            if told == way.said:
                return True
            self.ways[peer] = way._replace(said=told)
        self.sent.append((peer, told))
        return True

    def stream(self, shard: int, peer: str, on: bool, everything: bool = False, snapshot: bool = True) -> None:
        way = self.ways[peer]
        if not on:
            self.ways[peer] = way._replace(stream=None)
        elif way.stream is not None:
            self.ways[peer] = way._replace(stream=way.stream._replace(everything=everything))
        else:
            self.ways[peer] = way._replace(stream=Stream(WAITING, 0, everything))
            if not snapshot and way.open:
                self._begin(peer, False)

    def accept(self, shard: int, peer: str | None, epoch: int = 0, union: bool = False) -> None:
        if self.copy is not None and self.copy.peer == peer:
            self.copy = self.copy._replace(epoch=epoch, union=union)
            return
        self.copy, self.seen = (Copy(peer, epoch, union) if peer else None), None

    def forget(self, known: Collection[str]) -> None:
        """See `Exchange.part`."""
        for peer in [peer for peer in self.peers if peer not in known]:
            self.ways[peer], self.evidences[peer] = Way(), SILENT
            if self.copy is not None and self.copy.peer == peer:
                self.copy, self.seen = None, None

    # What it does in its own turn.

    def pump(self) -> None:
        """Begin what waits."""
        for peer in self.peers:
            way = self.ways[peer]
            if way.open and way.stream is not None and way.stream.phase == WAITING:
                self._begin(peer, True)

    def drain(self) -> None:
        """Send what has changed to all who have a copy, or are getting one."""
        ready = [peer for peer in self.peers if self._flows(peer)]
        if ready:
            for peer in ready:
                stream = self.ways[peer].stream
                assert stream
                self.sent.append((peer, ("rows", self.epoch(), stream.series, self.dirty)))
            self.dirty = frozenset()

    def _flows(self, peer: str) -> bool:
        way = self.ways[peer]
        return way.open and way.stream is not None and way.stream.phase != WAITING

    def _begin(self, peer: str, snapshot: bool) -> None:
        way = self.ways[peer]
        assert way.stream
        if snapshot and not any(self._flows(other) for other in self.peers):
            self.dirty = frozenset()
        series = way.series % 4 + 1
        self.ways[peer] = way._replace(stream=way.stream._replace(phase=SENT, series=series), series=series)
        self.sent.append((peer, ("begin", self.epoch(), series, snapshot)))
        if snapshot:
            self.sent.append((peer, ("rows", self.epoch(), series, self.rows)))
            self.sent.append((peer, ("end", self.epoch(), series)))

    # What comes in; see `replication.subscriber`.

    def take(self, peer: str, frame: Any, role: int) -> int:
        """Apply a frame of rows; the series that is whole now, 0: none."""
        kind, epoch, series, *more = frame
        series = int(series)
        copy = self.copy
        if copy is None or copy.peer != peer or epoch < copy.epoch or (kind != "begin" and series != copy.series):
            return 0
        if kind == "begin":
            (snapshot,) = more
            self.copy = copy._replace(series=series, installed=copy.installed if snapshot else series)
            self.seen = frozenset() if snapshot else None
            return 0 if snapshot else series
        if kind == "rows":
            self._apply(more[0], role)
            return 0
        if not copy.union and self.seen is not None:
            self.rows &= self.seen
        self.copy, self.seen = copy._replace(installed=series), None
        return series

    def _apply(self, rows: frozenset[Row], role: int) -> None:
        """See `shards.apply`: the authority merges and keeps its own, anybody else takes the other's word."""
        owners = dict(self.rows)
        for external, internal in sorted(rows):
            mine = owners.get(external)
            if role == ACTIVE:
                if mine is None:
                    owners[external] = internal
                    self.dirty |= {(external, internal)}
            else:
                owners[external] = internal
        self.rows = frozenset(owners.items())
        if role != ACTIVE:
            self.dirty -= rows
        if self.seen is not None:
            self.seen |= rows


class _Core(Conductor):
    """The real one, but for the memory that the packet path reads."""

    def _act(self, shard: int, before: Post, now: int) -> None:
        if self.posts[shard].role == DRAINING and self.posts[shard].authority:
            self._quiet.setdefault(shard, cast(Any, _Quiet(False)))
        super()._act(shard, before, now)


# Attributes of a Conductor that a Node holds, or that are always the same here. A new one must be put where it belongs.
HELD = {
    "posts", "_told", "_heard", "_streams", "_accepting", "moves", "_giving", "_sent_all", "_peers", "_places", "_names",
    "_homeless",
}  # fmt: skip
SAME = {
    "_state", "_exchange", "_me", "_times", "_nothing", "_last", "_last_told", "_untold", "_evidence", "_idle_at", "_wanted",
    "_counts", "mark", "marks", "taken_over", "addresses",
}  # fmt: skip
WITHIN_A_STEP = {"_handed", "_quiet", "_forgetting"}


class Result(NamedTuple):
    """What a core did about an input."""

    node: int
    ways: int
    sent: tuple[tuple[str, int], ...]  # messages, by receiver
    whole: int  # series of a copy that is whole now


class Machine:
    """All cores; values have numbers, so that comparing and hashing a world costs nothing."""

    def __init__(self, count: int, change: str = "") -> None:
        self.names = NAMES[:count]
        self.count = count
        self.maps = MAPS[count, change]
        self.numbers = _Names()
        self.do = lru_cache(maxsize=None)(self._do)

    def value(self, number: int) -> Any:
        """What has this number."""
        return self.numbers.values[number]

    def known(self, me: str, map_: int) -> dict[str, int]:
        """Row of PEER by core, by a map; a core's row is the same in both."""
        peers = [name for name in self.names if name != me]
        return {name: row for row, name in enumerate(peers, 1) if name in self.maps[map_].cores}

    def first_map(self, me: str) -> int:
        """The map that a core begins with: who is not in the older one has never seen it."""
        return 0 if me in self.maps[0].cores else 1

    # --- waking up --------------------------------------------------------------------------------------------------------

    def _memory(self, me: str, node: Node | None, anew: bool) -> Any:
        """The rows of SHARD and PEER that a conductor reads and writes."""
        peers = [name for name in self.names if name != me]
        row: dict[str, Any] = {
            "role": JOINING if me in PLACE.home else ABSENT,
            "side": {"a": 0, "b": 1}.get(me, NO_SIDE),
            "epoch": 1,
            "creates": 0,
        }
        row |= {"authority": 0, "backup": 0, "wanted": 0, "sessions": 0, "mappings": 0, "shunted": 0, "pickup": 0}
        if node is not None:
            number = {name: index for index, name in enumerate(peers, 1)}
            post = node.post
            row |= {"role": post.role, "side": post.side, "epoch": post.epoch, "sessions": len(node.rows) if anew else 0}
            row |= {"authority": number.get(post.authority, 0), "backup": node.backup}
        rises, epoch = node.rises if node else (0, 0)
        row |= {"risen_at": np.repeat([NOW, 0], [rises, roles.RISES_AT_MOST - rises]), "risen_epoch": epoch}
        row |= {"grace_until": NOW + 1, "grace": False}
        if node is not None and not anew:
            row |= {"pickup": node.pickup, "grace": node.grace}
        alive = [{"alive": 0} for _ in self.names]
        rest = {"settings": [{"statics": 0, "pools": 0}], "core": [{"in_doubt": 0}], "peers": alive}
        return SimpleNamespace(shards=[row], dirty=np.zeros(1, np.uint64), **rest)

    def _wake(self, me: str, node: Node | None, ways: dict[str, Way], anew: bool) -> tuple[_Core, _Wire]:
        wire = _Wire(self.names, me)
        wire.ways = dict(ways)
        wire.evidences = dict.fromkeys(wire.peers, SILENT)
        if node is not None:
            wire.rows, wire.dirty = node.rows, node.dirty
            if not anew:
                wire.copy, wire.seen = node.copy, node.seen
                wire.evidences = dict(zip(wire.peers, node.evidence, strict=True))
        told = node.map if node is not None else self.first_map(me)
        peers, places = self.known(me, told), {0: self.maps[told].place}
        core = _Core(self._memory(me, node, anew), cast(Any, wire), me, peers, places, Times(), NOW)
        wire.epoch = lambda: core.posts[0].epoch
        if node is not None and not anew:
            self._remind(core, node)
        return core, wire

    def _remind(self, core: _Core, node: Node) -> None:
        core.posts[0] = node.post._replace(since=NOW - node.post.since)
        core._told[0] = dict(node.told)
        core._heard = set(node.heard)
        core._streams[0] = dict(node.streams)
        if node.accepting is not None:
            core._accepting[0] = node.accepting
        if node.move is not None:
            core.moves[0] = node.move._replace(since=NOW - node.move.since)
        if node.homeless:
            core._homeless[0] = NOW
        core._giving[0] = node.post.winner
        if node.sent_all:
            core._sent_all.add(0)
        core._forgetting.clear()  # takes no time here, so it is over
        core._quiet.clear()
        if node.post.role == DRAINING and node.post.authority:
            core._quiet[0] = cast(Any, _Quiet(False))
        row = cast(Any, core._state.shards[0])
        row["creates"] = node.post.role == ACTIVE

    def _sleep(self, core: _Core, wire: _Wire, node: Node | None, pending: bool) -> Node:
        post = core.posts[0]
        ages = post.role in (JOINING, DRAINING) or (post.role in (SYNCING, PASSIVE) and not post.authority)
        ages = ages or (post.role == ABSENT and not post.authority and core._me == core._places[0].reserve)
        move = core.moves.get(0)
        if move is not None and move.over:
            move = None
        if move is not None:
            move = move._replace(since=0, began=0, paused_at=0, taken_at=0, ended_at=0, sessions=0)
        rows = wire.rows if 0 not in core._forgetting else frozenset()
        row = cast(Any, core._state.shards[0])
        return Node(
            node.life if node else UP,
            post._replace(since=NOW - post.since if ages else 0),
            tuple(sorted((name, told._replace(evidence=ALIVE)) for name, told in core._told[0].items())),
            frozenset(core._heard),
            tuple(sorted(core._streams[0].items())),
            core._accepting.get(0),
            move,
            _rises(core._state.shards[0]),
            wire.copy,
            wire.seen,
            tuple(wire.evidences[peer] for peer in wire.peers),
            rows,
            wire.dirty & rows,
            0 in core._sent_all,
            row["backup"],
            int(row["pickup"]),
            pending,
            int(core._places[0] == self.maps[1].place and core._peers == self.known(core._me, 1)),
            0 in core._homeless,
            post.role == ACTIVE and (bool(row["grace"]) or row["pickup"] == PICKUP_ASIDE),
        )

    # --- inputs -----------------------------------------------------------------------------------------------------------

    def _do(self, me: int, node_number: int, ways_number: int, given: tuple[Any, ...]) -> Result:
        """What core `me` does about an input: (kind, ...)."""
        name = self.names[me]
        node: Node | None = self.value(node_number)
        kind, *more = given
        peers = [other for other in self.names if other != name]
        ways = dict(zip(peers, self.value(ways_number), strict=True))
        anew = kind in ("start", "restart", "cold")
        if kind == "cold":
            node = None
        core, wire = self._wake(name, node, ways, anew)
        whole = self._input(core, wire, kind, more)
        pending = kind == "gather"
        if not pending and kind != "create":
            core._decide(0, NOW)
            core._tell(NOW)
        wire.pump()
        then = self._sleep(core, wire, node, pending)
        sent: dict[str, list[Any]] = {}
        for to, message in wire.sent:
            sent.setdefault(to, []).append(message)
        number = self.numbers.number
        told = tuple((to, number(tuple(messages))) for to, messages in sent.items())
        return Result(number(then), number(tuple(wire.ways[peer] for peer in peers)), told, whole)

    def _input(self, core: _Core, wire: _Wire, kind: str, more: list[Any]) -> int:
        row = cast(Any, core._state.shards[0])
        if kind in ("hear", "gather"):
            peer, message = more
            if message[0] == "posts":
                core._hear(Heard(peer, "posts", {"posts": [dict(post) for post in message[1]]}))
            elif message[0] == "handover":
                core._hear(Heard(peer, "handover", dict(message[1])))
            else:
                return wire.take(peer, message, core.posts[0].role)
        elif kind == "follow":
            core.follow(self.known(core._me, 1), {0: self.maps[1].place}, NOW)
            wire.forget(core._peers.keys())
        elif kind == "want":
            row["wanted"] = core._wanted[0] + 1
        elif kind == "age":
            core.posts[0] = core.posts[0]._replace(since=NOW - more[0])
        elif kind == "quiet":
            core._quiet[0] = cast(Any, _Quiet(True))
        elif kind == "migrate":
            core.migrate(0, more[0], NOW)
        elif kind == "impatience":
            core.moves[0] = core.moves[0]._replace(since=NOW - max(migration.PATIENCE.values()) - 1)
        elif kind == "grace":
            row |= {"pickup": 0, "grace": False}
        elif kind == "drain":
            wire.drain()
        elif kind == "create":
            self._create(core, wire, more[0])
        return 0

    def _create(self, core: _Core, wire: _Wire, internal: int) -> None:
        """As the packet path does: the lowest free port of our own side."""
        post, aside = core.posts[0], cast(Any, core._state.shards[0])["pickup"] == PICKUP_ASIDE
        free = [port for port in ports_of(1 - post.side if aside else post.side) if port not in dict(wire.rows)]
        if free:
            wire.rows |= {(free[0], internal)}
            wire.dirty |= {(free[0], internal)}


def _rises(row: Any) -> tuple[int, int]:
    return int(np.count_nonzero(row["risen_at"])), int(row["risen_epoch"])


def ports_of(side: int) -> range:
    """External ports of a side."""
    return range(0) if side == NO_SIDE else range(side * PORTS, (side + 1) * PORTS)
