"""Everything that can happen to a shard of two or three cores, one step at a time: real conductors, links that are obvious.

A `World` is a value. A step is anything that may come next: a message arrives, a packet, a crash, a timer. Whatever may happen
between two steps of a core may happen in any order, so the search over all worlds is a search over all interleavings.

What a core does about a step is done by the real `Conductor` (and with it `roles` and `migration`). It is woken from the values
in its `Node`, given one input, and put to sleep again; since that depends on the node and its ways out alone, each such case is
computed once. The exchange is replaced by what it promises: within a life of a link every message arrives, once and in order; a
copy begins with `begin`, is whole with `end`, and begins anew with every life.

What is simpler than life, and why that hides nothing:

* Time is a class: the ticks since the role began are 0, or one of the limits that `roles` asks about. Timers fire in any order.
* Posts are told at once, and again only when they differ: telling the same again changes nothing.
* Rows are mappings (external port, internal endpoint). Both sides of the pool have `PORTS` ports, always the lowest is taken: so
  two that hand out from one side, without knowing each other's rows, do clash.
* A session never ends: what is lost was lost by replication, not by time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np

from replication import conduct, migration
from replication.conduct import Conductor, Times
from replication.migration import Move
from replication.protocol import ALIVE, CLOSED, SILENT, Evidence, Heard, Lag
from replication.roles import Post, Told
from shards.state import ABSENT, ACTIVE, DRAINING, JOINING, NO_SIDE, PASSIVE, ROLES, SYNCING

NAMES = ("a", "b", "c")
PLACE = conduct.Place("a", "b")
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
    rises: int = 0
    copy: Copy | None = None
    seen: frozenset[Row] | None = None  # of a copy that is not whole yet
    evidence: tuple[Evidence, ...] = ()
    rows: frozenset[Row] = frozenset()
    dirty: frozenset[Row] = frozenset()
    sent_all: bool = False
    pending: bool = False  # it heard something, and has not decided yet


class Budget(NamedTuple):
    """How often what need not happen may happen."""

    flows: int = 2
    moves: int = 0
    crashes: int = 0
    cold: int = 0  # crashes that cost the memory
    cuts: int = 0
    freezes: int = 0
    timers: int = 0  # that fire although nothing is broken
    batches: int = 0  # times that several messages are heard before one decision


class World(NamedTuple):
    """All of it; nodes, ways and queues by number, see `_Names`."""

    nodes: tuple[int, ...]
    ways: tuple[int, ...]  # of each node: its Ways
    queues: tuple[int, ...]  # by sender * count + receiver
    cut: int  # bits of pairs
    budget: Budget
    used: int  # internal endpoints that have sent something
    must: frozenset[Row]  # what was handed out, and nothing has excused the loss of
    lost: frozenset[Row]  # what only a crashed core knew


class Violation(Exception):
    """A rule is broken; the argument says which."""


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
        elif way.stream is not None and (way.stream.everything or not everything):
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

    def _begin(self, shard: int, post: Post, now: int) -> None:
        self._state.shards[shard]["creates"] = 1

    def _act(self, shard: int, before: Post, now: int) -> None:
        if self.posts[shard].role == DRAINING and self.posts[shard].authority:
            self._quiet.setdefault(shard, cast(Any, _Quiet(False)))
        super()._act(shard, before, now)


# Attributes of a Conductor that a Node holds, or that are always the same here. A new one must be put where it belongs.
HELD = {"posts", "_told", "_heard", "_streams", "_accepting", "moves", "_rises", "_giving", "_sent_all"}
SAME = {
    "_state", "_exchange", "_me", "_times", "_peers", "_places", "_names", "_nothing", "_last", "_last_told", "_evidence",
    "_idle_at", "_wanted", "alarms", "_counts",
}  # fmt: skip
WITHIN_A_STEP = {"_handed", "_quiet", "_forgetting"}


class Result(NamedTuple):
    """What a core did about an input."""

    node: int
    ways: int
    sent: tuple[tuple[str, int], ...]  # messages, by receiver
    whole: int  # series of a copy that is whole now


class Machine:
    """All cores; `decide` replaces the rules, to see that a broken rule is found."""

    def __init__(self, count: int) -> None:
        self.names = NAMES[:count]
        self.count = count
        self.numbers = _Names()
        self.do = lru_cache(maxsize=None)(self._do)

    def value(self, number: int) -> Any:
        """What has this number."""
        return self.numbers.values[number]

    # --- waking up --------------------------------------------------------------------------------------------------------

    def _memory(self, me: str, node: Node | None, anew: bool) -> Any:
        """The rows of SHARD and PEER that a conductor reads and writes."""
        peers = [name for name in self.names if name != me]
        row = {"role": JOINING if me in PLACE else ABSENT, "side": {"a": 0, "b": 1}.get(me, NO_SIDE), "epoch": 1, "creates": 0}
        row |= {"authority": 0, "backup": 0, "wanted": 0, "sessions": 0, "mappings": 0, "shunted": 0}
        if node is not None:
            number = {name: index for index, name in enumerate(peers, 1)}
            post = node.post
            row |= {"role": post.role, "side": post.side, "epoch": post.epoch, "sessions": len(node.rows) if anew else 0}
            row |= {"authority": number.get(post.authority, 0), "backup": number.get(post.backup, 0)}
        return SimpleNamespace(shards=[row], peers=[{"alive": 0} for _ in self.names], dirty=np.zeros(1, np.uint64))

    def _wake(self, me: str, node: Node | None, ways: dict[str, Way], anew: bool) -> tuple[_Core, _Wire]:
        wire = _Wire(self.names, me)
        wire.ways = dict(ways)
        wire.evidences = dict.fromkeys(wire.peers, SILENT)
        if node is not None:
            wire.rows, wire.dirty = node.rows, node.dirty
            if not anew:
                wire.copy, wire.seen = node.copy, node.seen
                wire.evidences = dict(zip(wire.peers, node.evidence, strict=True))
        peers = {name: row for row, name in enumerate(wire.peers, 1)}
        core = _Core(self._memory(me, node, anew), cast(Any, wire), me, peers, {0: PLACE}, Times(), NOW)
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
        core._rises[0].extend([NOW] * node.rises)
        core._giving[0] = node.post.winner
        if node.sent_all:
            core._sent_all.add(0)
        core._quiet.clear()
        if node.post.role == DRAINING and node.post.authority:
            core._quiet[0] = cast(Any, _Quiet(False))
        row = cast(Any, core._state.shards[0])
        row["creates"] = node.post.role == ACTIVE

    def _sleep(self, core: _Core, wire: _Wire, node: Node | None, pending: bool) -> Node:
        post = core.posts[0]
        ages = post.role in (JOINING, DRAINING) or (post.role in (SYNCING, PASSIVE) and not post.authority)
        move = core.moves.get(0)
        if move is not None and move.over:
            move = None
        if move is not None:
            move = move._replace(since=0, began=0, paused_at=0, taken_at=0, ended_at=0, sessions=0)
        rows = wire.rows if 0 not in core._forgetting else frozenset()
        return Node(
            node.life if node else UP,
            post._replace(since=NOW - post.since if ages else 0),
            tuple(sorted((name, told._replace(evidence=ALIVE)) for name, told in core._told[0].items())),
            frozenset(core._heard),
            tuple(sorted(core._streams[0].items())),
            core._accepting.get(0),
            move,
            len(core._rises[0]),
            wire.copy,
            wire.seen,
            tuple(wire.evidences[peer] for peer in wire.peers),
            rows,
            wire.dirty & rows,
            0 in core._sent_all,
            pending,
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
        elif kind == "drain":
            wire.drain()
        elif kind == "create":
            self._create(core, wire, more[0])
        return 0

    def _create(self, core: _Core, wire: _Wire, internal: int) -> None:
        """As the packet path does: the lowest free port of our own side."""
        post = core.posts[0]
        free = [port for port in ports_of(post.side) if port not in dict(wire.rows)]
        if free:
            wire.rows |= {(free[0], internal)}
            wire.dirty |= {(free[0], internal)}


def ports_of(side: int) -> range:
    """External ports of a side."""
    return range(0) if side == NO_SIDE else range(side * PORTS, (side + 1) * PORTS)


# --- all cores --------------------------------------------------------------------------------------------------------------


class Simulation:
    """Steps of worlds."""

    def __init__(self, count: int = 2) -> None:
        self.machine = Machine(count)
        self.count = count
        self.names = self.machine.names

    def begin(self, budget: Budget) -> World:
        """Cores that have just been switched on, links that are not open yet."""
        machine, number = self.machine, self.machine.numbers.number
        closed = number((Way(),) * (self.count - 1))
        results = [machine.do(me, number(None), closed, ("start",)) for me in range(self.count)]
        empty = (number(()),) * self.count**2
        nodes, ways = tuple(each.node for each in results), tuple(each.ways for each in results)
        return World(nodes, ways, empty, 0, budget, 0, frozenset(), frozenset())

    def settle(self, world: World, budget: Budget) -> World:
        """The same cores when nothing is left to happen, in an order that is usual."""
        calm = world._replace(budget=Budget(flows=0))
        while left := [then for _, then in self.steps(calm) if then.budget == calm.budget]:
            calm = left[0]
        self.check_rest(calm)
        return calm._replace(budget=budget)

    # --- reading ----------------------------------------------------------------------------------------------------------

    def node(self, world: World, me: int) -> Node:
        """A core."""
        return cast(Node, self.machine.value(world.nodes[me]))

    def nodes(self, world: World) -> list[Node]:
        """All cores."""
        return [self.node(world, me) for me in range(self.count)]

    def way(self, world: World, sender: int, receiver: int) -> Way:
        """Way from a core to another one."""
        return cast(Way, self.machine.value(world.ways[sender])[receiver - (receiver > sender)])

    def queue(self, world: World, sender: int, receiver: int) -> tuple[Any, ...]:
        """What is on it."""
        return cast("tuple[Any, ...]", self.machine.value(world.queues[sender * self.count + receiver]))

    def is_cut(self, world: World, one: int, other: int) -> bool:
        """Whether nothing gets from one to the other."""
        return bool(world.cut >> (min(one, other) * self.count + max(one, other)) & 1)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Ordered pairs of cores."""
        return ((one, other) for one in range(self.count) for other in range(self.count) if one != other)

    # --- writing ----------------------------------------------------------------------------------------------------------

    def _set_node(self, world: World, me: int, **changes: Any) -> World:
        nodes = list(world.nodes)
        nodes[me] = self.machine.numbers.number(self.node(world, me)._replace(**changes))
        return world._replace(nodes=tuple(nodes))

    def _set_way(self, world: World, sender: int, receiver: int, **changes: Any) -> World:
        ways = list(self.machine.value(world.ways[sender]))
        at = receiver - (receiver > sender)
        ways[at] = ways[at]._replace(**changes)
        numbers = list(world.ways)
        numbers[sender] = self.machine.numbers.number(tuple(ways))
        return world._replace(ways=tuple(numbers))

    def _set_queue(self, world: World, sender: int, receiver: int, messages: tuple[Any, ...]) -> World:
        queues = list(world.queues)
        queues[sender * self.count + receiver] = self.machine.numbers.number(messages)
        return world._replace(queues=tuple(queues))

    def _set_evidence(self, world: World, me: int, peer: int, evidence: Evidence) -> World:
        all_of_it = list(self.node(world, me).evidence)
        at = peer - (peer > me)
        if all_of_it[at] == evidence:
            return world
        all_of_it[at] = evidence
        return self._set_node(world, me, evidence=tuple(all_of_it))

    def evidence(self, world: World, me: int, peer: int) -> Evidence:
        """What a core knows about another's being alive."""
        return self.node(world, me).evidence[peer - (peer > me)]

    def _give(self, world: World, me: int, *given: Any) -> World:
        """Give a core an input."""
        result = self.machine.do(me, world.nodes[me], world.ways[me], given)
        nodes, ways = list(world.nodes), list(world.ways)
        nodes[me], ways[me] = result.node, result.ways
        world = world._replace(nodes=tuple(nodes), ways=tuple(ways))
        for name, number in result.sent:
            to = self.names.index(name)
            world = self._set_queue(world, me, to, self.queue(world, me, to) + self.machine.value(number))
        if result.whole and given[0] in ("hear", "gather"):
            world = self._acknowledge(world, self.names.index(given[1]), me, result.whole)
        return world

    def _acknowledge(self, world: World, sender: int, receiver: int, series: int) -> World:
        way = self.way(world, sender, receiver)
        if way.open and way.stream and way.stream.phase == SENT and way.stream.series == series:
            return self._set_way(world, sender, receiver, stream=way.stream._replace(phase=SYNCED))
        return world

    # --- steps ------------------------------------------------------------------------------------------------------------

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """All that may happen next, by name. While a core gathers messages nothing else happens: nobody sees the difference."""
        gathering = [me for me in range(self.count) if self.node(world, me).pending]
        if gathering:
            yield from self._gathering(world, gathering[0])
            return
        yield from self._links(world)
        for me in range(self.count):
            if self.node(world, me).life == UP:
                yield from self._core(world, me)
        yield from self._faults(world)

    def _gathering(self, world: World, me: int) -> Iterator[tuple[str, World]]:
        yield f"{self.names[me]} decides", self._give(self._set_node(world, me, pending=False), me, "look")
        for sender in range(self.count):
            if sender != me and self._arrives(world, sender, me):
                yield self._deliver(world, sender, me, "gather")

    def _arrives(self, world: World, sender: int, receiver: int) -> bool:
        alive = self.node(world, receiver).life == UP
        return alive and not self.is_cut(world, sender, receiver) and bool(self.queue(world, sender, receiver))

    def _deliver(self, world: World, sender: int, receiver: int, how: str) -> tuple[str, World]:
        message, *rest = self.queue(world, sender, receiver)
        then = self._set_queue(world, sender, receiver, tuple(rest))
        if self.node(world, sender).life != DEAD:
            then = self._set_evidence(then, receiver, sender, ALIVE)
        verb = "hears" if how == "hear" else "gathers"
        return f"{self.names[receiver]} {verb} {self.names[sender]}: {told(message)}", self._give(
            then, receiver, how, self.names[sender], message
        )

    def _links(self, world: World) -> Iterator[tuple[str, World]]:
        for sender, receiver in self.pairs():
            if self._arrives(world, sender, receiver):
                yield self._deliver(world, sender, receiver, "hear")
                if world.budget.batches and self._more_to_hear(world, sender, receiver):
                    name, then = self._deliver(world, sender, receiver, "gather")
                    yield name, _spend(then, "batches")
            if self.is_cut(world, sender, receiver) or {self.node(world, each).life for each in (sender, receiver)} != {UP}:
                continue
            if not self.way(world, sender, receiver).open:
                yield f"{self.names[sender]} opens a life to {self.names[receiver]}", self._open(world, sender, receiver)
            elif self.evidence(world, receiver, sender) != ALIVE:
                then = self._set_evidence(world, receiver, sender, ALIVE)
                yield f"{self.names[receiver]} sees {self.names[sender]} again", self._give(then, receiver, "look")
            elif self._is_missing(world, sender, receiver):
                then = self._restart_stream(world, sender, receiver)
                yield f"{self.names[receiver]} asks {self.names[sender]} for a copy", self._give(then, sender, "look")

    def _more_to_hear(self, world: World, sender: int, receiver: int) -> bool:
        waiting = [self.queue(world, each, receiver) for each in range(self.count) if each != receiver]
        return sum(map(len, waiting)) > 1

    def _open(self, world: World, sender: int, receiver: int) -> World:
        """Both have heard each other then, and what the receiver had of the life before is forgotten."""
        then = self._set_queue(world, sender, receiver, ())
        then = self._set_evidence(self._set_evidence(then, sender, receiver, ALIVE), receiver, sender, ALIVE)
        copy = self.node(then, receiver).copy
        if copy is not None and copy.peer == self.names[sender]:
            then = self._set_node(then, receiver, copy=copy._replace(series=0, installed=0), seen=None)
        way = self.way(then, sender, receiver)
        stream = way.stream and way.stream._replace(phase=WAITING)
        then = self._set_way(then, sender, receiver, open=True, said=None, stream=stream)
        return self._give(self._give(then, receiver, "look"), sender, "look")

    def _is_missing(self, world: World, sender: int, receiver: int) -> bool:
        """See `Subscriber.missing`: a ping, behind all that was sent, tells of a copy that the receiver does not have."""
        copy, stream = self.node(world, receiver).copy, self.way(world, sender, receiver).stream
        if copy is None or stream is None or stream.phase == WAITING or copy.peer != self.names[sender]:
            return False
        behind = not self.queue(world, sender, receiver) and self.node(world, sender).post.epoch >= copy.epoch
        return behind and copy.series != stream.series

    def _restart_stream(self, world: World, sender: int, receiver: int) -> World:
        stream = self.way(world, sender, receiver).stream
        assert stream
        return self._set_way(world, sender, receiver, stream=stream._replace(phase=WAITING))

    def _core(self, world: World, me: int) -> Iterator[tuple[str, World]]:
        """What happens at one core."""
        name, node = self.names[me], self.node(world, me)
        yield from self._changed(world, me, f"{name} looks", "look")
        if node.dirty:
            yield from self._changed(world, me, f"{name} sends what has changed", "drain")
        yield from self._packets(world, me)
        for age in AGES:
            if age > node.post.since and self._may_age(world, me):
                yield from self._changed(world, me, f"{name}: {age} ticks later", "age", age)
        if node.post.role == DRAINING and node.post.authority:
            yield from self._changed(world, me, f"{name} has seen no packet for long", "quiet")
        if node.move and node.move.phase != migration.DRAIN and (world.budget.timers or self._is_broken(world)):
            then = world if self._is_broken(world) else _spend(world, "timers")
            yield from self._changed(then, me, f"{name} has no more patience", "impatience")
        if world.budget.moves and node.post.role == ACTIVE and not node.move:
            for target in self.names:
                yield from self._changed(_spend(world, "moves"), me, f"{name} is to move it to {target}", "migrate", target)

    def _changed(self, world: World, me: int, name: str, *given: Any) -> Iterator[tuple[str, World]]:
        """A step, if it makes a difference."""
        then = self._give(world, me, *given)
        if then != world:
            yield name, then

    def _packets(self, world: World, me: int) -> Iterator[tuple[str, World]]:
        """The first packet of an internal endpoint; a core that may not create passes it on, or wants somebody who may."""
        name, node = self.names[me], self.node(world, me)
        post = node.post
        at = me
        if post.role != ACTIVE:
            if not post.authority or self.evidence(world, me, self.names.index(post.authority)) != ALIVE:
                yield from self._changed(world, me, f"a packet at {name} wants an authority", "want")
                return
            at = self.names.index(post.authority)
        serving = self.node(world, at)
        if not world.budget.flows or serving.life != UP or serving.post.role != ACTIVE:
            return
        for internal in range(world.used + 1):
            if internal not in dict((inside, port) for port, inside in node.rows | serving.rows):
                then = self._give(_spend(world, "flows"), at, "create", internal)
                made = self.node(then, at).rows - serving.rows
                if made:
                    then = then._replace(used=max(world.used, internal + 1), must=then.must | made)
                    yield f"a packet of {internal} at {name}: {self.names[at]} hands out {sorted(made)[0][0]}", then

    # --- what breaks ------------------------------------------------------------------------------------------------------

    def _is_broken(self, world: World) -> bool:
        return bool(world.cut) or any(node.life != UP for node in self.nodes(world))

    def _may_age(self, world: World, me: int) -> bool:
        """Whether time can pass here with nothing heard: whoever can be heard has said all he has to say before.

        Of a core that hands over: always, if timers may fire early.
        """
        if self.node(world, me).post.role == DRAINING and world.budget.timers:
            return True
        return all(self._has_spoken(world, peer, me) for peer in range(self.count) if peer != me)

    def _has_spoken(self, world: World, peer: int, me: int) -> bool:
        if self.node(world, peer).life == DEAD or self.is_cut(world, peer, me):
            return True
        opened = self.way(world, peer, me).open and self.way(world, me, peer).open
        return opened and not self.queue(world, peer, me) and self.node(world, peer).life == UP

    def _faults(self, world: World) -> Iterator[tuple[str, World]]:
        """One thing is broken at a time; what was broken is mended sooner or later."""
        yield from self._notices(world)
        broken = self._is_broken(world)
        for me in range(self.count):
            yield from self._dying(world, me, broken)
        for one, other in self.pairs():
            if one < other:
                yield from self._cutting(world, one, other, broken)

    def _dying(self, world: World, me: int, broken: bool) -> Iterator[tuple[str, World]]:
        name, node, budget = self.names[me], self.node(world, me), world.budget
        if node.life == DEAD:
            yield f"{name} starts again", self._start(world, me, "restart")
        elif node.life == FROZEN:
            yield f"{name} goes on", self._set_node(world, me, life=UP)
        elif not broken and self._is_whole(world):
            if budget.crashes:
                yield f"{name} dies", self._crash(_spend(world, "crashes"), me)
            if budget.cold:
                then = self._start(self._crash(_spend(world, "cold"), me), me, "cold")
                yield f"{name} dies, and starts again without its memory", then
            if budget.freezes:
                yield f"{name} freezes", self._set_node(_spend(world, "freezes"), me, life=FROZEN)

    def _is_whole(self, world: World) -> bool:
        """Whether what was broken before is mended: nobody is on his way back."""
        return all(node.post.role != JOINING or node.post.cold for node in self.nodes(world))

    def _crash(self, world: World, me: int) -> World:
        """What it sent may still arrive; what was sent to it does not."""
        node = self.node(world, me)
        others = [self.node(world, other).rows for other in range(self.count) if other != me]
        only = node.rows - frozenset().union(*others)
        world = self._set_node(world, me, life=DEAD)._replace(must=world.must - only, lost=world.lost | only)
        for other in range(self.count):
            if other != me:
                world = self._set_queue(world, other, me, ())
                world = self._set_way(self._set_way(world, other, me, open=False, said=None), me, other, open=False, said=None)
        return world

    def _start(self, world: World, me: int, how: str) -> World:
        """That takes longer than the others need to read what was on its way; so nothing of it is left."""
        for other in range(self.count):
            if other != me:
                world = self._set_queue(world, me, other, ())
        return self._give(self._set_node(world, me, life=UP), me, how)

    def _cutting(self, world: World, one: int, other: int, broken: bool) -> Iterator[tuple[str, World]]:
        names, bit = f"{self.names[one]} and {self.names[other]}", 1 << (one * self.count + other)
        if self.is_cut(world, one, other):
            healed = world._replace(cut=world.cut & ~bit)
            yield f"{names} are joined again", healed
            for sender, receiver in ((one, other), (other, one)):
                healed = self._set_queue(healed, sender, receiver, ())
                healed = self._set_way(healed, sender, receiver, open=False, said=None)
            yield f"{names} are joined again, by new connections", healed
        elif world.budget.cuts and not broken and self._is_whole(world):
            yield f"{names} are cut off", _spend(world, "cuts")._replace(cut=world.cut | bit)

    def _notices(self, world: World) -> Iterator[tuple[str, World]]:
        for me, peer in self.pairs():
            if self.node(world, me).life != UP or self.evidence(world, me, peer) == CLOSED:
                continue
            life, cut = self.node(world, peer).life, self.is_cut(world, me, peer)
            evidence = CLOSED if life == DEAD and not cut else SILENT if life != UP or cut else ALIVE
            if evidence not in (ALIVE, self.evidence(world, me, peer)):
                then = self._set_evidence(world, me, peer, evidence)
                yield f"{self.names[me]} finds {self.names[peer]} {evidence}", self._give(then, me, "look")

    # --- rules ------------------------------------------------------------------------------------------------------------

    def check(self, world: World) -> None:
        """What holds always; `Violation` where it does not."""
        nodes = self.nodes(world)
        owners: dict[int, int] = {}
        for node in nodes:
            for port, internal in node.rows - world.lost:
                if owners.setdefault(port, internal) != internal:
                    raise Violation(f"port {port} is of {owners[port]} and of {internal}")
        sides = [node.post.side for node in nodes if node.life != DEAD and node.post.role == ACTIVE]
        if len([side for side in sides if side != NO_SIDE]) != len({side for side in sides if side != NO_SIDE}):
            raise Violation("two cores hand out ports of one side")

    def check_rest(self, world: World) -> None:
        """What holds where nothing is left to happen."""
        nodes = self.nodes(world)
        active = [node for node in nodes if node.post.role == ACTIVE]
        if len(active) != 1:
            raise Violation(f"{len(active)} cores have the authority in the end")
        (owner,) = active
        name = self.names[nodes.index(owner)]
        if not owner.rows >= world.must:
            raise Violation(f"{sorted(world.must - owner.rows)} are lost")
        for other, node in zip(self.names, nodes, strict=True):
            if node is owner:
                continue
            if (node.post.epoch, node.post.authority) != (owner.post.epoch, name):
                raise Violation(f"{other} follows {node.post.authority or 'nobody'} at epoch {node.post.epoch}")
            expected = PASSIVE if other == owner.post.backup else ABSENT
            if node.post.role != expected:
                raise Violation(f"{other} is {ROLES[node.post.role]} in the end, not {ROLES[expected]}")
            if expected == PASSIVE and (node.post.side, owner.post.side) != (1, 0):
                raise Violation(f"the sides are {owner.post.side} and {node.post.side} in the end")
            if expected == PASSIVE and node.rows != owner.rows:
                raise Violation(f"{other} has not what {name} has")


def _spend(world: World, what: str) -> World:
    return world._replace(budget=world.budget._replace(**{what: getattr(world.budget, what) - 1}))


def told(message: Any) -> str:
    """A message, for people."""
    if message[0] != "posts":
        return " ".join(str(sorted(part) if isinstance(part, frozenset) else part) for part in message)
    if not message[1]:
        return "absent"
    post = dict(message[1][0])
    words = [f"{key}={value}" for key, value in post.items() if key not in ("s", "r", "e", "d") and value not in ("", False)]
    return f"{ROLES[post['r']]} of epoch {post['e']}, side {post['d']} {' '.join(words)}"


# --- searching --------------------------------------------------------------------------------------------------------------


class Search:
    """All worlds that can be reached from a first one, breadth first, so that the trace of a violation is a shortest one."""

    def __init__(self, simulation: Simulation, first: World, at_most: int) -> None:
        self.simulation, self.first = simulation, first
        self.at_most = at_most
        self.before: dict[World, tuple[World, str] | None] = {first: None}
        self.complete = False
        self.depth = 0
        self.rests = 0

    def run(self) -> None:
        """Search; Violation, with its trace, where a rule is broken."""
        level = deque([self.first])
        edges: dict[World, list[World]] = {}
        resting: list[World] = []
        while level and len(self.before) < self.at_most:
            following: deque[World] = deque()
            while level and len(self.before) < self.at_most:
                world = level.popleft()
                if self._expand(world, following, edges):
                    resting.append(world)
            self.depth += not level
            level = level or following
        self.rests = len(resting)
        self.complete = not level
        if self.complete:
            self._check_ways_out(edges, resting)

    def _expand(self, world: World, following: deque[World], edges: dict[World, list[World]]) -> bool:
        """Look at what may come next; whether nothing must."""
        at_rest = True
        for name, then in self.simulation.steps(world):
            if then.budget == world.budget:
                at_rest = False
            edges.setdefault(then, []).append(world)
            if then not in self.before:
                self.before[then] = (world, name)
                following.append(then)
                self._judge(then, self.simulation.check)
        if at_rest:
            self._judge(world, self.simulation.check_rest)
        return at_rest

    def _judge(self, world: World, check: Callable[[World], None]) -> None:
        try:
            check(world)
        except Violation as violation:
            raise Violation(f"{violation}\n{self.trace(world)}") from None

    def _check_ways_out(self, edges: dict[World, list[World]], resting: list[World]) -> None:
        """From everywhere there must be a way to rest: no going round for ever."""
        good, left = set(resting), deque(resting)
        while left:
            for world in edges.get(left.popleft(), ()):
                if world not in good:
                    good.add(world)
                    left.append(world)
        for world in self.before:
            if world not in good:
                raise Violation(f"nothing comes to rest any more\n{self.trace(world)}")

    def trace(self, world: World) -> str:
        """How a world came about."""
        names: list[str] = []
        at: World | None = world
        while at is not None and (step := self.before[at]) is not None:
            at, name = step
            names.append(name)
        nodes = self.simulation.nodes(world)
        ends = [
            f"  {name}: {node.life} {ROLES[node.post.role]} epoch {node.post.epoch} side {node.post.side} of "
            f"{node.post.authority or '-'} winner {node.post.winner or '-'} backup {node.post.backup or '-'} {sorted(node.rows)}"
            for name, node in zip(self.simulation.names, nodes, strict=True)
        ]
        return "\n".join([f"{number:3d} {name}" for number, name in enumerate(reversed(names), 1)] + ends)
