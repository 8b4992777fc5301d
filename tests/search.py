"""Searching the worlds of `simulation`: all of them, breadth first, or long ways through them by chance."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from shards.state import ROLES
from tests.simulation import Budget, Simulation, Violation, World


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
            f"  {name}: {node.life} {ROLES[node.post.role]} epoch {node.post.epoch} side {node.post.side} {sorted(node.rows)}, "
            f"follows {node.post.authority or '-'}, gives {node.post.winner or '-'}, backup {node.post.backup or '-'}"
            for name, node in zip(self.simulation.names, nodes, strict=True)
        ]
        return "\n".join([f"{number:3d} {name}" for number, name in enumerate(reversed(names), 1)] + ends)


def wander(simulation: Simulation, seed: int, budget: Budget, steps: int) -> int:
    """A long way by chance: `steps` steps, then nothing breaks any more and all must come to rest; how many it took.

    Every world on the way is checked. A violation names the seed and the way.
    """
    dice, names = random.Random(seed), list[str]()
    world = simulation.settle(simulation.begin(budget), budget)
    try:
        for number in range(4 * steps):
            found = list(simulation.steps(world))
            if number >= steps:
                found = [(name, then) for name, then in found if then.budget == world.budget]
            if not found:
                break
            name, world = dice.choice(found)
            names.append(name)
            simulation.check(world)
        else:
            raise Violation(f"not at rest {3 * steps} steps after the last failure")
        simulation.check_rest(world)
    except Violation as violation:
        told = "\n".join(f"{number:4d} {name}" for number, name in enumerate(names, 1))
        raise Violation(f"seed {seed}: {violation}\n{told}") from None
    return len(names)
