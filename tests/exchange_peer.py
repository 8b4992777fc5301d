"""A core in a process of its own, with plain tables: `python -m tests.exchange_peer`, told on its standard input.

One line of JSON: {"name", "key": [public, secret], "endpoint", "peers": [[name, endpoint, public]], "accept": [[shard, peer]]}.
"""

from __future__ import annotations

import json
import sys
import time

from replication.keys import Key
from replication.protocol import Peer
from tests.exchanges import Node, ticks


def main() -> None:
    """Say where it listens, then take turns for ever."""
    told = json.loads(sys.stdin.readline())
    key = Key(*(text.encode() for text in told["key"]))
    node = Node(told["name"], endpoint=told["endpoint"], key=key)
    for name, endpoint, public in told["peers"]:
        node.exchange.meet(Peer(name, endpoint, public.encode()), ticks())
    for shard, peer in told["accept"]:
        node.exchange.accept(shard, peer, 1)
    print(node.exchange.endpoint, flush=True)
    while True:
        if not node.exchange.turn(ticks()):
            time.sleep(0.0005)


if __name__ == "__main__":
    main()
