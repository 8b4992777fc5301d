"""Everything that can happen to a shard of two or three cores, one step at a time: real conductors, links that are obvious.

A `World` is a value. A step is anything that may come next: a message arrives, a packet, a crash, a timer. Whatever may happen
between two steps of a core may happen in any order, so a search over all worlds is a search over all interleavings.

What is simpler than life, and why that hides nothing:

* Time is a class: the ticks since the role began are 0, or one of the limits that `roles` asks about. Timers fire in any order.
* Posts are told at once, and again only when they differ: telling the same again changes nothing.
* Rows are mappings (external port, internal endpoint). Both sides of the pool have `PORTS` ports, always the lowest is taken:
  two that hand out from one side, without knowing each other's rows, do clash.
* A session never ends: what is lost was lost by replication, not by time.
* A newer map comes once, and every core sees it at a moment of its own; who is not let in by another cannot be heard there.

What is left out, and why:

* A core that died, and is cut off before it could ask who has the authority now: it cannot tell that from being alone (see
  `roles`). So nothing else breaks until a core that died has heard, or has waited.
* What only a dead core knew, because it had not been sent, may be lost (`World.lost`), and its ports may be handed out anew,
  but not as long as the grace lasts: until then its connections may speak up, and are to find their ports (`World.unspoken`).
  Ports that it had handed out from the other side, before it had its own, and that nobody has a copy of, are not spared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from replication import migration
from replication.protocol import ALIVE, CLOSED, SILENT, Evidence
from shards.state import ABSENT, ACTIVE, DRAINING, JOINING, NO_SIDE, PASSIVE, ROLES
from tests import simulated_core
from tests.simulated_core import AGES, DEAD, FROZEN, SENT, SYNCED, UP, WAITING, Machine, Node, Row, Way


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
    maps: int = 0  # newer maps: one at most, which the cores see one by one
    rooms: int = 0  # times that all cores but the last, the reserve, die at once
    apart: int = 0  # times that they are cut off it, all at once


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
    newest: int = 0  # the newest map there is
    unspoken: frozenset[Row] = frozenset()  # what only the core knew that died last, of the side that it had then


class Violation(Exception):
    """A rule is broken; the argument says which."""


# --- all cores --------------------------------------------------------------------------------------------------------------


class Simulation:
    """Steps of worlds."""

    def __init__(self, count: int = 2, change: str = "") -> None:
        self.machine = Machine(count, change)
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

    def knows(self, world: World, me: int, peer: int) -> bool:
        """Whether a core is in another's map."""
        return self.names[peer] in self.machine.maps[self.node(world, me).map].cores

    def acquainted(self, world: World, one: int, other: int) -> bool:
        """Whether both let each other in."""
        return self.knows(world, one, other) and self.knows(world, other, one)

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
        yield from self._maps(world)
        for me in range(self.count):
            if self.node(world, me).life == UP:
                yield from self._core(world, me)
        yield from self._faults(world)

    def _gathering(self, world: World, me: int) -> Iterator[tuple[str, World]]:
        yield f"{self.names[me]} decides", self._give(self._set_node(world, me, pending=False), me, "look")
        for sender in range(self.count):
            if sender != me and self._arrives(world, sender, me):
                yield self._deliver(world, sender, me, "gather")

    def _maps(self, world: World) -> Iterator[tuple[str, World]]:
        """Each core sees a newer map at a moment of its own. Who is in it no more has nothing by then: that is looked after."""
        if not world.newest and (not world.budget.maps or any(self._is_used(world, each) for each in self._leaving())):
            return
        newer = world if world.newest else _spend(world, "maps")._replace(newest=1)
        for me in range(self.count):
            node = self.node(world, me)
            if node.life == UP and not node.map and self.names[me] in self.machine.maps[1].cores:
                then = self._give(newer, me, "follow")
                for other in range(self.count):
                    if other != me and not self.knows(then, me, other):
                        then = self._set_queue(self._set_queue(then, me, other, ()), other, me, ())
                        then = self._set_way(then, other, me, open=False, said=None)
                yield f"{self.names[me]} follows a newer map", then

    def _leaving(self) -> list[int]:
        return [me for me, name in enumerate(self.names) if name not in self.machine.maps[1].cores]

    def _is_used(self, world: World, me: int) -> bool:
        """Whether a core has something of the shard, or is about to get it."""
        name = self.names[me]
        posts = [node.post for node in self.nodes(world)]
        named = any(name in (post.backup, post.guest, post.taker, post.winner) for post in posts)
        moving = any(node.move and name in (node.move.target, node.move.before) for node in self.nodes(world))
        return named or moving or self.node(world, me).post.role != ABSENT or self._is_broken(world)

    def _arrives(self, world: World, sender: int, receiver: int) -> bool:
        alive = self.node(world, receiver).life == UP and self.acquainted(world, sender, receiver)
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
            if not self.acquainted(world, sender, receiver):
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
        if node.grace:
            yield from self._changed(world, me, f"the grace is over at {name}", "grace")
        if node.post.role == DRAINING and node.post.authority:
            yield from self._changed(world, me, f"{name} has seen no packet for long", "quiet")
        if node.move and node.move.phase != migration.DRAIN and (world.budget.timers or self._is_broken(world)):
            then = world if self._is_broken(world) else _spend(world, "timers")
            yield from self._changed(then, me, f"{name} has no more patience", "impatience")
        if world.budget.moves and node.post.role == ACTIVE and not node.move and not self._is_apart(world):
            for target in self.machine.maps[world.newest].cores:
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
        if self.node(world, peer).life == DEAD or self.is_cut(world, peer, me) or not self.acquainted(world, peer, me):
            return True
        opened = self.way(world, peer, me).open and self.way(world, me, peer).open
        return opened and not self.queue(world, peer, me) and self.node(world, peer).life == UP

    def _faults(self, world: World) -> Iterator[tuple[str, World]]:
        """One thing is broken at a time; what was broken is mended sooner or later."""
        yield from self._notices(world)
        broken = self._is_broken(world)
        for me in range(self.count):
            yield from self._dying(world, me, broken)
        yield from self._room(world, broken)
        for one, other in self.pairs():
            if one < other:
                yield from self._cutting(world, one, other, broken)

    def _dying(self, world: World, me: int, broken: bool) -> Iterator[tuple[str, World]]:
        name, node, budget = self.names[me], self.node(world, me), world.budget
        if node.life == DEAD:
            yield f"{name} starts again", self._start(world, me, "restart")
            if budget.cold:
                yield f"{name} starts again without its memory", self._start(_spend(world, "cold"), me, "cold")
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

    def _room(self, world: World, broken: bool) -> Iterator[tuple[str, World]]:
        """What befalls a room as a whole: all cores but the last are in it."""
        if broken or not self._is_whole(world):
            return
        room, last = range(self.count - 1), self.count - 1
        if world.budget.rooms:
            then = _spend(world, "rooms")
            for me in room:
                then = self._crash(then, me)
            yield "the room dies", then._replace(must=frozenset(), lost=then.lost | world.must)
        if world.budget.apart and not self._swaps(world):
            cut = sum(1 << (me * self.count + last) for me in room)
            yield "the rooms are cut off", _spend(world, "apart")._replace(cut=world.cut | cut)

    def _swaps(self, world: World) -> bool:
        """Whether more than one core may hand out ports now: see `roles`, what is left out."""
        posts = [node.post for node in self.nodes(world)]
        moving = any(node.move for node in self.nodes(world)) or any(post.role == DRAINING for post in posts)
        return moving or not any(post.role == ACTIVE and post.side == 0 for post in posts)

    def _is_apart(self, world: World) -> bool:
        return all(self.is_cut(world, me, self.count - 1) for me in range(self.count - 1)) and self.count > 2

    def _is_whole(self, world: World) -> bool:
        """Whether what was broken before is mended: nobody is on his way back."""
        joining = [node.post.role == JOINING for node in self.nodes(world)]
        return not any(joining) or (all(joining) and all(node.post.cold for node in self.nodes(world)))

    def _crash(self, world: World, me: int) -> World:
        """What it sent may still arrive; what was sent to it does not."""
        node = self.node(world, me)
        others = [self.node(world, other) for other in range(self.count) if other != me]
        heirs = [other.rows for other in others if other.post.heir or other.post.role in (ACTIVE, DRAINING)]
        only = node.rows - frozenset().union(*heirs)
        world = self._set_node(world, me, life=DEAD)
        own = frozenset(row for row in only if row[0] in simulated_core.ports_of(node.post.side))
        world = world._replace(must=world.must - only, lost=world.lost | only, unspoken=own)
        for other in range(self.count):
            if other != me:
                world = self._set_queue(world, other, me, ())
                world = self._set_way(self._set_way(world, other, me, open=False, said=None), me, other, open=False, said=None)
        return world

    def _start(self, world: World, me: int, how: str) -> World:
        """That takes longer than the others need to read what was on its way; so nothing of it is left."""
        for other in range(self.count):
            if other != me:
                world = self._set_way(self._set_queue(world, me, other, ()), me, other, stream=None)
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
            if not self.acquainted(world, me, peer):
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
        for node in nodes:
            for port, internal in node.rows if node.grace else ():
                if any(port == each and internal != dead for each, dead in world.unspoken):
                    raise Violation(f"port {port} was given to {internal} before the grace was over")
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
        place = self.machine.maps[world.newest].place
        if world.newest and name == place.primary and owner.rises[0] == 0 and owner.homeless:
            raise Violation(f"the copy is at {owner.post.backup} in the end, not at {place.backup}")
        if not owner.rows >= world.must:
            raise Violation(f"{sorted(world.must - owner.rows)} are lost")
        for other, node in zip(self.names, nodes, strict=True):
            if node is owner:
                continue
            if other not in self.machine.maps[world.newest].cores:
                continue  # it is none any more, or not yet
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
