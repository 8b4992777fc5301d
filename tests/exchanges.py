"""Cores that exchange rows over real ZeroMQ on the loopback, in one process: the obvious tables, links as they are."""

from __future__ import annotations

import time
from collections.abc import Callable

from replication import keys
from replication.exchange import Exchange
from replication.keys import Key
from replication.protocol import Peer, Settings
from replication.tables import Sink, Source
from tests.tables import Tables

ANYWHERE = "tcp://127.0.0.1:*"
PATIENCE_S = 60.0  # on a crowded machine


def ticks() -> int:
    """Now, as the worker has it."""
    return time.monotonic_ns() // 1_000_000 & 0xFFFFFFFF


class Node:
    """A core: its rows and its exchange."""

    def __init__(
        self,
        name: str,
        settings: Settings = Settings(),  # noqa: B008 - a tuple
        endpoint: str = ANYWHERE,
        key: Key | None = None,
        rows: tuple[Source, Sink] | None = None,
    ) -> None:
        self.name = name
        self.key = key or keys.generate()
        self.tables = Tables()
        source, sink = rows or (self.tables, self.tables)
        self.exchange = Exchange(source, sink, Peer(name, endpoint, self.key.public), self.key, settings)

    @property
    def peer(self) -> Peer:
        """What the others know of it."""
        return Peer(self.name, self.exchange.endpoint, self.key.public)

    def refused(self) -> dict[str, int]:
        """What it refused, and why."""
        return {reason: count for reason, count in self.exchange.refused.items() if count}


class Room:
    """Nodes that take turns."""

    def __init__(self, *names: str, settings: Settings = Settings()) -> None:  # noqa: B008 - a tuple
        self.nodes: dict[str, Node] = {}
        for name in names:
            self.add(Node(name, settings))

    def add(self, node: Node) -> None:
        """One more node, which all others meet."""
        for other in self.nodes.values():
            node.exchange.meet(other.peer, ticks())
            other.exchange.meet(node.peer, ticks())
        self.nodes[node.name] = node

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def turn(self, *names: str) -> None:
        """One turn of each."""
        for name in names or self.nodes:
            self.nodes[name].exchange.turn(ticks())

    def until(self, happened: Callable[[], object], *names: str, patience_s: float = PATIENCE_S) -> None:
        """Take turns until it has happened."""
        last = time.monotonic() + patience_s
        while not happened():
            assert time.monotonic() < last, self.story()
            self.turn(*names)
            time.sleep(0.0003)

    def run(self, seconds: float, *names: str) -> None:
        """Take turns for so long."""
        last = time.monotonic() + seconds
        while time.monotonic() < last:
            self.turn(*names)
            time.sleep(0.0003)

    def story(self) -> str:
        """What all of them know, for a failed test."""
        return "\n".join(f"{name}: {node.exchange.status()}" for name, node in self.nodes.items())

    def pair_up(self, shard: int, source: str, target: str, epoch: int = 1, union: bool = False) -> None:
        """Let one send a shard to another, and wait until it has it all."""
        self[target].exchange.accept(shard, source, epoch, union)
        self[source].exchange.stream(shard, target, True)
        self.until(lambda: self[source].exchange.synced(shard, target))

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.exchange.close()
